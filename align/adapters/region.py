"""CoFiTune: a band of layers trains, of these modules of some names, and of these neurons that matter little more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from align.adapters.adapter import Still
from align.core.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

MASKED = {"up_proj", "down_proj"}
MASK_ENDINGS = (".safetensors", ".jsonl")
# Wrappers that leave weights and their gradients whole on every process, until they are there.
WHOLE = ("none", "ddp", "zero1", "zero2")


@dataclass(frozen=True)
class Region(Still):
    """A region of the model (arXiv 2404.10306); see hydra_conf/adapter/region.yaml.

    Attributes:
        layers: begin and end of the band, as shares of the depth: `[0.25, 0.5]` of 32 layers is layers 8 to 15.
        modules: last names of the modules that train within it.
        modules_to_save: ends of the names of further modules that train, wherever they are.
        soft_mask: a file of importances by which rows get less of their gradients, or of the texts to measure them on;
            see sparing.py.
    """

    layers: list[float] = field(default_factory=lambda: [0.25, 0.5])
    modules: list[str] = field(default_factory=lambda: ["up_proj", "down_proj"])
    modules_to_save: list[str] = field(default_factory=list)
    soft_mask: str | None = None

    kind = "region"
    removable = True
    trains_checkpoint_weights = True
    takes_four_bits = False

    def check(self) -> None:
        """Refuses a band that is none, and no modules."""
        if len(self.layers) != 2 or not 0.0 <= self.layers[0] < self.layers[1] <= 1.0:
            raise UserError(
                f"adapter.layers={self.layers} is no band of layers: give two shares of the depth, such as [0.25, 0.5]."
            )
        if not self.modules:
            raise UserError(
                "adapter.modules=[] leaves nothing to train: name modules, such as [up_proj, down_proj]."
            )

        if self.soft_mask is not None:
            self._check_soft_mask(self.soft_mask)

    def _check_soft_mask(self, path: str) -> None:
        if Path(path).suffix not in MASK_ENDINGS:
            raise UserError(
                f"adapter.soft_mask={path} has an unknown ending: give importances (.safetensors) or texts (.jsonl)."
            )
        others = sorted(set(self.modules) - MASKED)
        if others or self.modules_to_save:
            raise UserError(
                f"adapter.soft_mask spares neurons of {' and '.join(sorted(MASKED))}, and "
                f"{(others or self.modules_to_save)[0]} trains too: leave it out, or set adapter.soft_mask=null."
            )

    def takes_wrapper(self, wrapper: str) -> bool:
        """With a soft mask in those that leave weights whole on every process."""
        return self.soft_mask is None or wrapper in WHOLE

    def check_launch(self, wrapper: str, arguments: TrainingArguments) -> None:
        """With a soft mask refuses wrappers that split weights, whose rows it scales, and a file that is not there."""
        if self.soft_mask is None:
            return
        if not self.takes_wrapper(wrapper):
            raise UserError(
                f"adapter.soft_mask scales rows of weights, which {wrapper} splits over processes: launch with ddp, "
                "zero1 or zero2, or set adapter.soft_mask=null."
            )
        if not Path(self.soft_mask).is_file():
            raise UserError(f"adapter.soft_mask={self.soft_mask} does not exist: check the path.")

    def with_modules(self, names: Sequence[str]) -> Region:
        """See `Adapter`."""
        return replace(self, modules_to_save=[*self.modules_to_save, *names])

    def add(self, model: PreTrainedModel) -> PeftModel:
        """See `Adapter`."""
        from align.adapters.copies import train_copies

        return train_copies(model, self.chosen(model))

    def band(self, layers: int) -> range:
        """The numbers of the layers that train, of a model with so many: at least one."""
        first, end = (round(share * layers) for share in self.layers)
        first = min(first, layers - 1)
        return range(first, max(end, first + 1))

    def callbacks(self, policy: nn.Module) -> Sequence[TrainerCallback]:
        """See `Adapter`."""
        if self.soft_mask is None:
            return ()
        from align.adapters.sparing import Sparing
        from align.models.structure import decoder_layers, find_causal_lm

        lm = find_causal_lm(policy)
        inside = {id(part) for layer in decoder_layers(lm) for part in layer.modules()}
        ends = tuple(f".{name}" for name in self.modules)
        names = [name for name, part in lm.named_modules() if id(part) in inside and name.endswith(ends)]
        return [Sparing(policy, Path(self.soft_mask), names)]

    def chosen(self, model: PreTrainedModel) -> list[str]:
        """Names of the modules that train, of the text part."""
        from align.adapters.targets import leaf, saved_of, targets_of
        from align.models.structure import decoder_layers
        from align.models.text_part import text_modules

        wanted = set(targets_of(model, self.modules, key="adapter.modules"))
        layers = list(decoder_layers(model))
        inside = {id(module) for number in self.band(len(layers)) for module in layers[number].modules()}
        ends = tuple(saved_of(model, self.modules_to_save, []))
        return [
            name
            for name, module in text_modules(model)
            if (id(module) in inside and leaf(name) in wanted) or (ends and name.endswith(ends))
        ]
