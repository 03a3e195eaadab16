"""Which wrapper holds the policy, against the one that was asked for: a silent substitute is refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainerCallback, TrainingArguments

from align.core.errors import UserError

if TYPE_CHECKING:
    from torch import nn


def actual_wrapper(model: nn.Module) -> str:
    """`DeepSpeed`, `FSDP`, `DDP` or `none`, by what the module is and what its parameters are."""
    # By name: the extra `deepspeed` may be absent.
    if type(model).__name__ == "DeepSpeedEngine":
        return "DeepSpeed"
    if isinstance(model, FullyShardedDataParallel) or any(isinstance(p, DTensor) for p in model.parameters()):
        return "FSDP"
    return "DDP" if isinstance(model, DistributedDataParallel) else "none"


def expected_wrapper(args: TrainingArguments, environment: Mapping[str, str] = os.environ) -> str:
    """The wrapper that the launcher's environment and the trainer's arguments ask for."""
    if args.deepspeed or environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        return "DeepSpeed"
    if args.fsdp or environment.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return "FSDP"
    return "DDP" if args.world_size > 1 else "none"


def launched_wrapper(arguments: TrainingArguments, environment: Mapping[str, str] = os.environ) -> str:
    """The wrapper that the launch configuration asks for, by its name in `align plan`."""
    if arguments.deepspeed or environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        plugin = getattr(arguments, "deepspeed_plugin", None)
        config = {} if plugin is None else plugin.deepspeed_config.get("zero_optimization", {})
        stage = int(config.get("stage", environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 0)))
        offload = config.get("offload_param", {}).get("device", "none")
        return {0: "ddp", 3: "zero3_offload" if offload == "cpu" else "zero3"}.get(stage, f"zero{stage}")
    if arguments.fsdp or environment.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return "fsdp2"
    return "ddp" if arguments.world_size > 1 else "none"


def check_launch(args: TrainingArguments, environment: Mapping[str, str] = os.environ) -> None:
    """Refuses a launch that accelerate would quietly turn into another one, before anything is loaded.

    `WrapperCheck` looks at what the policy was wrapped in; this knows the cases of accelerate 1.15 on CPU.

    Raises:
        UserError: FSDP on CPU, DeepSpeed under ACCELERATE_USE_CPU (both end in DDP), or processes that each
            believe they are alone; FSDP whose checkpoints could not be gone on from.
    """
    expected = expected_wrapper(args, environment)
    forced = environment.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if expected == "FSDP" and args.device.type == "cpu":
        raise UserError(
            "FSDP was asked for, which accelerate leaves out on CPU without a word and wraps in DDP: "
            "choose the launch configuration ddp, or one of DeepSpeed."
        )
    if expected == "FSDP" and not _saves_whole(args, environment):
        raise UserError(
            "FSDP would save a part of the weights from each process, whose index only unpickling reads, which can run "
            "code: set fsdp_state_dict_type: FULL_STATE_DICT in the launch configuration."
        )
    if expected == "DeepSpeed" and forced:
        raise UserError(
            "DeepSpeed was asked for, which accelerate leaves out without a word where ACCELERATE_USE_CPU is set: "
            "unset it; trainer.use_cpu=true is enough, and set by itself where there is no GPU."
        )
    started = int(environment.get("WORLD_SIZE", "1"))
    if started != args.world_size:
        raise UserError(
            f"The launcher started {started} processes, but accelerate counts {args.world_size}, so that each would "
            "train by itself: check the launch configuration (without a GPU trainer.use_cpu=true)."
        )


def _saves_whole(args: TrainingArguments, environment: Mapping[str, str]) -> bool:
    """Whether FSDP's checkpoints hold whole weights: not with accelerate's default for FSDP2."""
    config = args.fsdp_config if isinstance(args.fsdp_config, dict) else {}
    named = config.get("state_dict_type") or config.get("fsdp_state_dict_type")
    chosen = str(named or environment.get("FSDP_STATE_DICT_TYPE") or "")
    if not chosen:
        return environment.get("FSDP_VERSION") == "1"
    return chosen.upper() in ("FULL_STATE_DICT", "1", "STATEDICTTYPE.FULL_STATE_DICT")


def check_wrapper(model: nn.Module, args: TrainingArguments) -> None:
    """Refuses to train in another wrapper than the one asked for (accelerate on CPU ignores FSDP silently).

    DDP around the one process of a launcher is none: accelerate goes by the launcher's variables, not by the number.

    Raises:
        UserError: names both.
    """
    expected, actual = expected_wrapper(args), actual_wrapper(model)
    alone = args.world_size == 1 and {expected, actual} == {"none", "DDP"}
    if expected != actual and not alone:
        raise UserError(
            f"{expected} was asked for, but the policy is wrapped in {actual}: this machine or library version "
            f"does not support {expected} here; choose another launch configuration."
        )


def check_hooks(model: nn.Module, args: TrainingArguments) -> None:
    """Refuses FSDP where parameters change their gradients by hooks: it exchanges them for parameters without.

    Raises:
        UserError: names one of them.
    """
    if expected_wrapper(args) != "FSDP":
        return
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter._backward_hooks:
            raise UserError(
                f"{name} changes its gradient by a hook, which FSDP would lose without a word: launch with ddp or "
                "DeepSpeed."
            )


class WrapperCheck(TrainerCallback):
    """Holds the wrapped policy against the wrapper that was asked for, before the first step."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, *unused: Any, **kwargs: Any) -> None:
        """Raises UserError where they differ."""
        check_wrapper(self.trainer.model_wrapped, args)
