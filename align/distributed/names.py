"""Wrappers by the names of `launchers/accelerate/`: how a policy is spread over processes."""

from __future__ import annotations

from align.core.config import check_choice
from align.core.errors import UserError

DEEPSPEED = {"zero1", "zero2", "zero3", "zero3_offload"}
SHARDED = {"fsdp2", "zero3", "zero3_offload"}
# Those with a configuration in launchers/accelerate/, simplest first.
WRAPPERS = ("none", "ddp", "fsdp2", "zero1", "zero2", "zero3", "zero3_offload")
# Accelerate leaves FSDP out where there is no GPU, and offloading moves nothing where host and device are one.
ON_CPU = ("none", "ddp", "zero1", "zero2", "zero3")


def wrappers_on(device: str) -> tuple[str, ...]:
    """Those that run on a `cuda` or `cpu` device."""
    return ON_CPU if device == "cpu" else WRAPPERS


def launch_file(wrapper: str, device: str) -> str:
    """The file of launchers/accelerate/ for a wrapper, without its ending: `single`, `zero3`, `cpu/zero3`."""
    if wrapper == "none":
        return "single"
    return f"cpu/{wrapper}" if device == "cpu" else wrapper


def check_quantised(quantization: str, wrapper: str) -> None:
    """Refuses four-bit weights in a wrapper that splits weights.

    They are loaded onto a GPU by `device_map`, which transformers refuses under ZeRO-3, and packed in whole bytes,
    where FSDP splits floating-point types alone (bitsandbytes' guide to FSDP-QLoRA).

    Raises:
        UserError: says which wrappers keep them whole.
    """
    if quantization != "none" and wrapper in SHARDED:
        raise UserError(
            f"model.quantization={quantization} does not train under {wrapper}, which splits weights: four-bit ones "
            "stay whole on each GPU, so launch with ddp, zero1 or zero2, or set model.quantization=none."
        )


def check_wrapper_name(wrapper: str, device: str) -> None:
    """Refuses a wrapper that there is not, or that does not run on the device.

    Raises:
        UserError: says which do.
    """
    check_choice("wrapper", wrapper, WRAPPERS)
    if wrapper not in wrappers_on(device):
        raise UserError(
            f"wrapper={wrapper} needs GPUs, and gpus.device={device}: take one of {', '.join(wrappers_on(device))}."
        )
