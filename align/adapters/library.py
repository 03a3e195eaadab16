"""PEFT's tuners by name: `adapter=oft`, `adapter=library adapter.type=LOKR`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from align.adapters.adapter import Still
from align.adapters.tuners import Tuner, check_tuner
from align.core.config import check_arguments
from align.core.errors import UserError, first_line

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel, TrainingArguments

# Keywords of PEFT's that are set here, and the key to use instead.
_RESERVED = {
    "target_modules": "adapter.target_modules",
    "modules_to_save": "adapter.modules_to_save",
    "peft_type": "adapter.type",
    "task_type": "method",
    "base_model_name_or_path": "model.path",
    "revision": "model.revision",
    "inference_mode": "align evaluate",
    "auto_mapping": "model.path",
}


@dataclass(frozen=True)
class Library(Still):
    """One of PEFT's tuners; see hydra_conf/adapter/library.yaml.

    Attributes:
        type: its name in PEFT: `OFT`.
        target_modules: last names of the modules that it is put on; `[all-linear]`, `[all-norms]`.
        modules_to_save: ends of the names of modules that train in full beside it.
        options: its own keywords, as PEFT names them: `{r: 8}`.
    """

    type: str
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    modules_to_save: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """PEFT's name in lower case."""
        return self.type.lower()

    @property
    def removable(self) -> bool:
        """Every tuner that is allowed leaves the weights that it is put on alone."""
        return True

    @property
    def trains_checkpoint_weights(self) -> bool:
        """Where it, or `modules_to_save`, trains copies of whole modules."""
        return self._tuner.replaces or bool(self.modules_to_save)

    @property
    def takes_four_bits(self) -> bool:
        """As the tuner."""
        return self._tuner.four_bits

    @property
    def _tuner(self) -> Tuner:
        return check_tuner(self.type)

    def takes_wrapper(self, wrapper: str) -> bool:
        """As the tuner's gradients allow."""
        return not (self._tuner.hooked and wrapper == "fsdp2")

    def check_launch(self, wrapper: str, arguments: TrainingArguments) -> None:
        """Refuses FSDP2 where it would lose what the tuner does to gradients."""
        if not self.takes_wrapper(wrapper):
            raise UserError(
                f"adapter={self.kind} projects gradients by hooks of its parameters, which {wrapper} exchanges for "
                "parameters without hooks: launch with ddp or DeepSpeed."
            )

    def check(self) -> None:
        """Refuses a tuner that is not exact here, and keywords that have a key of their own."""
        check_tuner(self.type)
        for name in self.options.keys() & _RESERVED.keys():
            raise UserError(f"adapter.options.{name} is set by this toolkit: use {_RESERVED[name]} instead.")
        if not self.target_modules:
            raise UserError(
                "adapter.target_modules=[] leaves nothing to train: name modules, or [all-linear]."
            )

    def check_options(self) -> None:
        """Refuses keywords and values that PEFT does not take."""
        kind = config_class(self.type)
        check_arguments(
            self.options, kind, group="adapter.options", reserved={}, library=f"PEFT's {kind.__name__}"
        )
        self.made(targets=self.target_modules, saved=[])

    def with_modules(self, names: Sequence[str]) -> Library:
        """See `Adapter`."""
        return replace(self, modules_to_save=[*self.modules_to_save, *names])

    def made(self, *, targets: list[str] | str, saved: list[str], **more: Any) -> PeftConfig:
        """PEFT's configuration.

        Args:
            targets: names, or a pattern of whole names.
            saved: modules that train in full beside it.
            more: what follows from the model.
        """
        keywords: Mapping[str, Any] = {**self.options, **more}
        try:
            return config_class(self.type)(
                target_modules=targets, modules_to_save=saved or None, task_type="CAUSAL_LM", **keywords
            )
        except (ValueError, TypeError) as error:
            raise UserError(
                f"adapter.options do not fit adapter.type={self.type}: {first_line(error)}."
            ) from error

    def add(self, model: PreTrainedModel) -> PeftModel:
        """See `Adapter`."""
        return put_on(model, self.config_for(model))

    def config_for(self, model: PreTrainedModel) -> PeftConfig:
        """PEFT's configuration with the modules as the model has them; raises UserError where it is not for it."""
        from align.adapters.targets import check_tied, is_tied, leaf, saved_of, targets_of, within_text_part

        targets = targets_of(model, self.target_modules)
        saved = saved_of(model, self.modules_to_save, targets)
        check_tied(model, targets)
        tying: dict[str, Any] = {}
        if is_tied(model) and {"embed_tokens", "lm_head"} & {leaf(name) for name in saved}:
            tying["ensure_weight_tying"] = True
        return self.made(targets=within_text_part(model, targets), saved=saved, **tying)


def config_class(tuner: str) -> Any:
    """PEFT's dataclass of a tuner's keywords."""
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(tuner)]


def put_on(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """The model inside PEFT; raises UserError with PEFT's reason where it does not go on this model."""
    from peft import get_peft_model

    try:
        return get_peft_model(model, config)  # type: ignore[return-value]
    except (ValueError, TypeError, NotImplementedError, AssertionError) as error:
        if model.device.type == "meta":  # it looks at values
            raise
        raise UserError(
            f"adapter cannot be applied to {type(model).__name__}: {' '.join(str(error).split())}"
        ) from error
