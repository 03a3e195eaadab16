"""What an adapter is to the rest: it chooses the parameters that train, and says what can be done with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

from align.models.settings import ModelSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        TrainerCallback,
        TrainingArguments,
    )


class Adapter(Protocol):
    """A choice of the group `adapter`: a frozen dataclass whose fields are the group's keys."""

    @property
    def kind(self) -> str:
        """Its name in messages: `lora`, `oft`, `half`."""

    @property
    def removable(self) -> bool:
        """Whether the policy with the adapter switched off is the starting model, to the last bit.

        It is then the reference that costs no memory.
        """

    @property
    def trains_checkpoint_weights(self) -> bool:
        """Whether weights of the checkpoint's own sizes train, which float32 suits."""

    @property
    def takes_four_bits(self) -> bool:
        """Whether it trains on a base of four-bit weights (`model.quantization`)."""

    @property
    def soft_tokens(self) -> int:
        """Tokens that it puts before each prompt; they count towards `data.max_length`."""

    @property
    def whole_gradients(self) -> bool:
        """Whether in some steps the gradients of all weights that it is put on are there, at 4 bytes each."""

    def takes_wrapper(self, wrapper: str) -> bool:
        """Whether it trains in a wrapper, by its name in `align plan`: `ddp`, `zero3`."""

    def check(self) -> None:
        """Refuses what is wrong whatever the model, without torch."""

    def check_options(self) -> None:
        """The same, as the library that computes the adapter tells."""

    def check_launch(self, wrapper: str, arguments: TrainingArguments) -> None:
        """Refuses what it cannot do in a launch, before weights load.

        Args:
            wrapper: how the policy is spread over processes, by its name in `align plan`: `none`, `ddp`, `zero3`.
            arguments: of the trainer.
        """

    def with_modules(self, names: Sequence[str]) -> Adapter:
        """The same adapter with more modules that train in full, named by the ends of their names (routers)."""

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> Adapter:
        """The same adapter with ids in the place of tokens that it names; raises UserError for one that is none."""

    def without_values(self) -> Adapter:
        """The same adapter with a start that asks for no values of weights: what is counted, and tried in fp64."""

    def add(self, model: PreTrainedModel) -> PeftModel:
        """The model with the adapter on it; raises UserError where the model is not for it."""

    def begin(self, policy: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        """Gives the policy that trains, and none of the small copies that it is tried on, what it begins with."""

    def rates(self, policy: nn.Module) -> Mapping[str, float]:
        """Factors of the learning rate by parameter name, for those that have one other than 1."""

    def callbacks(self, policy: nn.Module) -> Sequence[TrainerCallback]:
        """What it does between the steps of training."""


class Still:
    """What most adapters have in common: no tokens, one learning rate, and nothing to do before or between steps."""

    @property
    def soft_tokens(self) -> int:
        """None."""
        return 0

    whole_gradients = False

    def takes_wrapper(self, wrapper: str) -> bool:
        """In every one."""
        return True

    def check_options(self) -> None:
        """Nothing beyond `check`."""

    def begin(self, policy: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        """What `add` has drawn."""

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """It names none."""
        return self

    def without_values(self) -> Self:
        """It asks for none."""
        return self

    def check_launch(self, wrapper: str, arguments: TrainingArguments) -> None:
        """Every launch does."""

    def rates(self, policy: nn.Module) -> Mapping[str, float]:
        """One rate for all."""
        return {}

    def callbacks(self, policy: nn.Module) -> Sequence[TrainerCallback]:
        """None."""
        return ()


def add_adapter(model: PreTrainedModel, adapter: Adapter | None) -> Any:
    """The model with its adapter; without one the model itself, all parameters of which train.

    Of a composite only the text part gets adapters, and only its parameters train, whatever modules of the same names
    its other parts have.

    Raises:
        UserError: the adapter is not for this model.
    """
    if adapter is not None:
        return adapter.add(model)
    from align.models.text_part import freeze_other_parts

    freeze_other_parts(model)
    return model


def adapter_with_routers(model: nn.Module, settings: ModelSettings) -> Adapter | None:
    """The adapter; with `model.moe.router=train` the routers train in full beside it."""
    adapter: Adapter | None = settings.adapter
    if adapter is None or settings.moe.router != "train":
        return adapter
    from align.models.routers import routers_of

    # The last two words of `model.layers.3.mlp.gate`: `gate` alone would also be the end of `shared_expert_gate`.
    names = {".".join(name.split(".")[-2:]) for name in routers_of(model)}
    return adapter.with_modules(sorted(names))
