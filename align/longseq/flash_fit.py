"""Whether a kernel that not every GPU has is there, and fits a GPU, a precision and heads; nothing is imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from align.core.errors import UserError
from align.longseq.aligned import NUMBERS
from align.longseq.settings import CUDNN, FLASH_MODULES

HALVES = (torch.bfloat16, torch.float16)
# The oldest GPU whose instructions each has: Ampere, Hopper; of some the newest generation, too.
_OLDEST = {"flash2": (8, 0), "flash3": (9, 0), "flash4": (9, 0), CUDNN: (9, 0)}
_NEWEST = {"flash3": 9, "flash4": 11, CUDNN: 10}
WIDEST = 256


def check_flash(
    name: str,
    *,
    dtype: torch.dtype,
    weights: torch.dtype | None = None,
    widths: tuple[int, int] | None = None,
    capability: tuple[int, int] | None = None,
) -> None:
    """Refuses `flash2`, `flash3`, `flash4` and `cudnn` where they cannot run, before any weights are read.

    Args:
        name: `model.attention`.
        dtype: in which the model computes.
        weights: in which it is stored; None is `dtype`.
        widths: of a head's keys and values, the widest of the model's; None is not looked at.
        capability: of the GPU; None asks it.

    Raises:
        UserError: the package, the GPU or the precision is missing, or a head is too wide.
    """
    if not installed(name):
        raise UserError(
            f"model.attention={name} needs {FLASH_MODULES[name][1]}, or set model.attention=sdpa."
        )
    if not torch.cuda.is_available():
        raise UserError(f"model.attention={name} needs a CUDA GPU: set model.attention=sdpa.")
    if dtype not in HALVES:
        raise UserError(
            f"model.attention={name} computes in bfloat16 or float16 only: set model.dtype=bfloat16 or "
            "trainer.bf16=true, or model.attention=sdpa."
        )
    problem = flash_problem(
        name, dtype, weights or dtype, widths, capability or torch.cuda.get_device_capability()
    )
    if problem is not None:
        raise UserError(f"model.attention={name} {problem}")


def installed(name: str) -> bool:
    """Whether the package's module is there (cuDNN is torch's); nothing is imported, as that alone takes seconds.

    flash-attn and flash-attn-4 share the folder `flash_attn`, so the module's own file is looked for.
    """
    if name == CUDNN:
        return True
    top, *below = FLASH_MODULES[name][0].split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not below:
        return spec is not None
    places = spec.submodule_search_locations or ()
    return any(Path(place, *below).with_suffix(".py").is_file() for place in places)


def flash_problem(
    name: str,
    dtype: torch.dtype,
    weights: torch.dtype,
    widths: tuple[int, int] | None,
    capability: tuple[int, int],
) -> str | None:
    """Why a kernel cannot run on such a GPU for such a model, in words; None where it can. See `check_flash`."""
    if capability < _OLDEST[name] or capability[0] > _NEWEST.get(name, capability[0]):
        needed, found = (".".join(map(str, each)) for each in (_OLDEST[name], capability))
        needed = f"{needed} to {_NEWEST[name]}.x" if name in _NEWEST else needed
        other = "flash2 or sdpa" if name != "flash2" and capability >= _OLDEST["flash2"] else "sdpa"
        return f"needs a GPU of compute capability {needed}, and this one has {found}: set model.attention={other}."
    if widths is not None and not _takes(name, widths, capability[0]):
        found = str(widths[0]) if widths[0] == widths[1] else f"{widths[0]} (keys) and {widths[1]} (values)"
        most = (
            "128, or of 256, or of 192 with values of 128,"
            if _blackwell(name, capability[0])
            else str(WIDEST)
        )
        return f"takes heads up to {most} wide, and this model's have {found}: set model.attention=sdpa."
    if dtype == torch.float16 and weights == torch.bfloat16:
        return (
            "gets queries and values of two types from bfloat16 weights under trainer.fp16: set trainer.bf16=true "
            "in its place, or model.dtype=float32."
        )
    return None


def _takes(name: str, widths: tuple[int, int], generation: int) -> bool:
    """Whether a kernel has heads of such widths, once they are padded (`aligned`); keys are no narrower than values."""
    if not _blackwell(name, generation):
        return max(widths) <= WIDEST
    key, value = (-(-width // NUMBERS) * NUMBERS for width in widths)
    return max(key, value) <= 128 or (key, value) in ((192, 128), (256, 256))


def _blackwell(name: str, generation: int) -> bool:
    """FlashAttention 4 has kernels of their own there, for fewer widths."""
    return name == "flash4" and generation >= 10
