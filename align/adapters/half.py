"""Half Fine-Tuning: a random half of the weights trains, the other half keeps what the model knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from align.adapters.adapter import Still
from align.core.config import check_choice, check_seed

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

SCOPES = ("category", "layer", "model")
EMBEDDINGS = ("auto", "train", "freeze")


@dataclass(frozen=True)
class Half(Still):
    """HFT (arXiv 2404.18466); see hydra_conf/adapter/half.yaml and halves.py.

    Attributes:
        scope: of what half trains, one of `SCOPES`.
        seed: of the draw; another stage of training draws with another one.
        embeddings: whether token embedding and output head train: `auto` where they are two weights.
        modules_to_save: ends of the names of further modules that train.
    """

    scope: str = "category"
    seed: int = 42
    embeddings: str = "auto"
    modules_to_save: list[str] = field(default_factory=list)

    kind = "half"
    removable = True
    trains_checkpoint_weights = True
    takes_four_bits = False

    def check(self) -> None:
        """Refuses words that are not known and a seed that cannot be drawn with."""
        check_choice("adapter.scope", self.scope, SCOPES)
        check_choice("adapter.embeddings", self.embeddings, EMBEDDINGS)
        check_seed(self.seed)

    def with_modules(self, names: Sequence[str]) -> Half:
        """See `Adapter`."""
        return replace(self, modules_to_save=[*self.modules_to_save, *names])

    def add(self, model: PreTrainedModel) -> PeftModel:
        """See `Adapter`."""
        from align.adapters.copies import train_copies

        chosen = self.chosen(model)
        return train_copies(model, {name.rpartition(".")[0] for name in chosen}, trains=chosen.__contains__)

    def chosen(self, model: PreTrainedModel) -> frozenset[str]:
        """Names of the parameters that train, of the text part."""
        from align.adapters.halves import trained_half
        from align.adapters.targets import is_tied, saved_of
        from align.models.text_part import text_modules

        shapes = {
            f"{name}.{own}": getattr(
                weight, "ds_shape", weight.shape
            )  # ZeRO-3 has scattered the weight itself
            for name, module in text_modules(model)
            for own, weight in module.named_parameters(recurse=False)
        }
        chosen = trained_half(shapes, scope=self.scope, seed=self.seed)
        ends = tuple(saved_of(model, self.modules_to_save, []))
        chosen |= {name for name in shapes if ends and name.rpartition(".")[0].endswith(ends)}
        if self.embeddings == "freeze" or (self.embeddings == "auto" and is_tied(model)):
            outer = (model.get_input_embeddings(), model.get_output_embeddings())
            frozen = {name for name, module in model.named_modules() if any(module is one for one in outer)}
            chosen = frozenset(name for name in chosen if name.rpartition(".")[0] not in frozen)
        return chosen
