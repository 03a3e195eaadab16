"""Keywords of the group `trainer` with a fixed set of values or a range, and the packages that some of them need.

`tests/training/test_trainer_keys.py` holds these lists against the installed library.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.core.config import check_choice
from align.core.errors import UserError

_STRATEGIES = ("no", "steps", "epoch")
_TORCH = "torch"
# Package to install → the optimizers that come with it.
OPTIMIZERS = {
    _TORCH: ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"),
    "torch-xla": ("adamw_torch_xla",),
    "torch-npu": ("adamw_torch_npu_fused",),
    "torchdistx": ("adamw_anyprecision",),
    "torchao": ("adamw_torch_4bit", "adamw_torch_8bit"),
    "bitsandbytes": (
        *("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"),
        *("ademamix", "ademamix_8bit", "paged_ademamix_8bit", "paged_ademamix_32bit"),
        *("lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit"),
        *("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
    ),
    "galore-torch": (
        *("galore_adamw", "galore_adamw_8bit", "galore_adafactor"),
        *("galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise"),
    ),
    "apollo-torch": ("apollo_adamw", "apollo_adamw_layerwise"),
    "lomo-optim": ("lomo", "adalomo"),
    "grokadamw": ("grokadamw",),
    "schedulefree": ("schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd"),
    "torch-optimi": ("stable_adamw",),
}
_MODULES = {"torch-optimi": "optimi"}  # that are not named as their package

# Where figures are reported to → modules of which one has to be there; kubeflow is told by its environment.
REPORTERS: dict[str, tuple[str, ...]] = {
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub",),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "kubeflow": (),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
# Keywords with a fixed set of values, in the library's words.
VALUES = {
    "eval_strategy": _STRATEGIES,
    "logging_strategy": _STRATEGIES,
    "save_strategy": (*_STRATEGIES, "best"),
    "hub_strategy": ("end", "every_save", "checkpoint", "all_checkpoints"),
    "lr_scheduler_type": (
        *("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"),
        *("inverse_sqrt", "reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr"),
        *("warmup_stable_decay", "greedy"),
    ),
    "optim": tuple(name for names in OPTIMIZERS.values() for name in names),
}


@dataclass(frozen=True)
class Range:
    """The numbers that a keyword takes.

    Attributes:
        words: what they are, for a sentence that begins with "give".
        least: the least of them.
        most: the greatest.
        beyond: whether `least` and `most` themselves are none of them.
        also: a number beside them.
    """

    words: str
    least: float
    most: float = sys.float_info.max
    beyond: bool = False
    also: float | None = None

    def __contains__(self, value: float) -> bool:
        """Whether it is one of them; NaN never is."""
        if value == self.also:
            return True
        return self.least < value < self.most if self.beyond else self.least <= value <= self.most


_FROM_ONE = Range("a whole number from 1 on", 1)
_FROM_ZERO = Range("0 or more", 0)
_ABOVE_ZERO = Range("a number above 0", 0, math.inf, beyond=True)
_DECAY = Range("a number from 0 on and below 1", 0, 1 - sys.float_info.epsilon)
# Every keyword that is a number → which; null, where a keyword takes it, is none.
RANGES = {
    "per_device_train_batch_size": _FROM_ONE,
    "per_device_eval_batch_size": _FROM_ONE,
    "gradient_accumulation_steps": _FROM_ONE,
    "num_train_epochs": _ABOVE_ZERO,
    "max_steps": Range(
        "steps from 1 on, or -1, which leaves the end to trainer.num_train_epochs", 1, also=-1
    ),
    "learning_rate": _FROM_ZERO,
    "warmup_steps": Range("steps from 0 on, or a share of the run below 1", 0),
    "weight_decay": _FROM_ZERO,
    "adam_beta1": _DECAY,
    "adam_beta2": _DECAY,
    "adam_epsilon": _ABOVE_ZERO,
    "max_grad_norm": Range("a number above 0, or 0, which clips nothing", 0, math.inf),
    "torch_empty_cache_steps": _FROM_ONE,
    "logging_steps": Range("steps from 1 on, or a share of the run above 0", 0, math.inf, beyond=True),
    "eval_steps": Range("steps from 1 on, or a share of the run above 0", 0, math.inf, beyond=True),
    "eval_delay": _FROM_ZERO,
    "save_steps": Range(
        "steps from 1 on, or a share of the run above 0 (trainer.save_strategy=no saves none)",
        0,
        math.inf,
        beyond=True,
    ),
    "save_total_limit": Range("a number of checkpoints from 1 on, or null, which keeps all", 1),
    "dataloader_num_workers": Range("a whole number from 0 on", 0),
    "dataloader_prefetch_factor": _FROM_ONE,
    "ddp_bucket_cap_mb": _FROM_ONE,
    "ddp_timeout": Range("seconds from 1 on", 1),
}
# Keywords that take settings, or the path of a JSON file of them.
FILES = ("accelerator_config", "deepspeed", "fsdp_config")


def check_trainer_values(values: Mapping[str, Any]) -> None:
    """Refuses a value that the library does not know, a package that is missing and a file that is not there.

    Args:
        values: the group `trainer`, in plain values.

    Raises:
        UserError: names the key and what to do.
    """
    for name, known in VALUES.items():
        if name in values:
            check_choice(f"trainer.{name}", str(values[name]), known)
    if "optim" in values:
        _check_optimizer(str(values["optim"]))
    for name in _listed(values.get("report_to")):
        _check_reporter(name)
    for name in FILES:
        file = values.get(name)
        if isinstance(file, str) and not file.startswith("{") and not Path(file).is_file():
            raise UserError(f"trainer.{name}={file} is no file.")


def check_ranges(values: Mapping[str, Any]) -> None:
    """Refuses a number that no training can be done with, or that the library would take for something else.

    Args:
        values: the group `trainer`, in plain values of the right types.

    Raises:
        UserError: names the key and what it takes.
    """
    for name, numbers in RANGES.items():
        value = values.get(name)
        if value is not None and value not in numbers:
            raise UserError(f"trainer.{name}={value} cannot be used: give {numbers.words}.")


def _check_optimizer(name: str) -> None:
    """Refuses an optimizer whose package is missing."""
    package = next(package for package, names in OPTIMIZERS.items() if name in names)
    if not _installed(_MODULES.get(package, package.replace("-", "_"))):
        raise UserError(
            f"trainer.optim={name} needs the package {package}: `pip install {package}`, or take adamw_torch."
        )


def _check_reporter(name: str) -> None:
    """Refuses a place that figures cannot be reported to."""
    if name in ("none", "all"):
        return
    check_choice("trainer.report_to", name, ("none", "all", *REPORTERS))
    modules = REPORTERS[name]
    if modules and not any(_installed(module) for module in modules):
        raise UserError(
            f"trainer.report_to={name} needs the package {modules[0]}: `pip install {modules[0]}`, or report_to=none."
        )


def _listed(value: Any) -> list[str]:
    """A name, several or none as a list."""
    if value is None:
        return []
    return [str(each) for each in value] if isinstance(value, list | tuple) else [str(value)]


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
