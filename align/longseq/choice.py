"""`model.attention=auto`: the best kernel that is installed, fits what a layer asks for, and is right on this GPU.

A layer's dtype, widths, grouping and cap decide, and the GPU, once for each kind of layer: where layers are unlike
(Gemma-4's global heads are 512 wide, its others 256), each kind gets a kernel of its own. A package that is installed
may still be built for another GPU or another torch, and FlashAttention 4 is compiled on the spot: so a candidate first
computes a small row, forward and gradients, and what fails there or is wrong is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from align.core.errors import first_line
from align.core.telling import tell
from align.longseq.capped import CappedKernel
from align.longseq.flash_fit import HALVES, flash_problem, installed
from align.longseq.kernel import Kernel
from align.longseq.kernels import cuda_kernel, kernel_named, sdpa_kernel, with_softcap
from align.longseq.merge import run_parts, run_parts_backward, without_autocast
from align.longseq.parts import Part
from align.longseq.settings import CUDNN, FLASH_MODULES

# By a GPU's generation (the first number of its compute capability), best first: as the packages' authors measured.
PREFERRED = {
    8: ("flash2",),
    9: ("flash3", "flash4", "flash2"),
    10: ("flash4", "flash2"),
    11: ("flash4", "flash2"),
}
OTHERWISE = ("flash2",)


@dataclass(frozen=True)
class Asked:
    """What a layer asks of a kernel.

    Attributes:
        dtype: of queries, keys and values.
        widths: D of a key, E of a value, no wider.
        group: query heads of a KV head.
        softcap: c of scores `c · tanh(s / c)`; None is none.
    """

    dtype: torch.dtype
    widths: tuple[int, int]
    group: int
    softcap: float | None = None

    def __str__(self) -> str:
        width, of_values = self.widths
        values = "" if of_values == width else f" (values {of_values})"
        cap = "" if self.softcap is None else ", capped scores"
        return f"heads {width} wide{values}, {self.group} to a KV head, {str(self.dtype)[6:]}{cap}"


@dataclass(frozen=True)
class Choice:
    """A kernel's name, None where only the plain way is left, and why better ones were passed over."""

    kernel: str | None
    passed: tuple[tuple[str, str], ...] = ()


# `(kernel's name, what is asked) ->` why it is passed over; None where it is right.
Trial = Callable[[str, Asked], str | None]


def choose(
    asked: Asked, capability: tuple[int, int], trial: Trial, *, there: Callable[[str], bool]
) -> Choice:
    """The first of the preferred packages that is there, fits and is right; else torch's kernel.

    Args:
        asked: by a layer.
        capability: of the GPU.
        trial: runs a candidate.
        there: whether a package is installed.
    """
    passed: list[tuple[str, str]] = []
    names = PREFERRED.get(capability[0], OTHERWISE) if asked.dtype in HALVES else ()
    for name in filter(there, names):
        problem = flash_problem(name, asked.dtype, asked.dtype, asked.widths, capability)
        named = name if asked.softcap is None else with_softcap(name, asked.softcap)
        problem = problem or trial(named, asked)
        if problem is None:
            return Choice(named, tuple(passed))
        passed.append((name, problem))
    own = cuda_kernel(asked.dtype, max(asked.widths), capability)
    return Choice(own if asked.softcap is None else with_softcap(own, asked.softcap), tuple(passed))


# `(query [1, h, Q, D], value [1, k, T, E], softcap) ->` a kernel's name, None for the plain way; E is at most D.
Chooser = Callable[[Tensor, Tensor, float | None], str | None]


def best_kernel(query: Tensor, value: Tensor, softcap: float | None) -> str | None:
    """A `Chooser`: the first layer of a kind chooses for all that are like it, and it is said."""
    if query.device.type != "cuda" or not torch.cuda.is_available():
        return torchs_kernel(query, value, softcap)
    asked = Asked(query.dtype, (query.shape[3], value.shape[3]), query.shape[1] // value.shape[1], softcap)
    return _chosen(asked, query.device)


def torchs_kernel(query: Tensor, value: Tensor, softcap: float | None) -> str | None:
    """A `Chooser` of what torch brings; values narrower than keys will be padded for it."""
    name = sdpa_kernel(query, query)
    return name if softcap is None else with_softcap(name, softcap)


def _cudnn(query: Tensor, value: Tensor, softcap: float | None) -> str | None:
    """cuDNN's, where torch's would be FlashAttention."""
    name = torchs_kernel(query, value, softcap)
    return CUDNN if name == "cuda_flash" else name


def _package(name: str, query: Tensor, value: Tensor, softcap: float | None) -> str:
    return name if softcap is None else with_softcap(name, softcap)


# `model.attention` → how its kernel is chosen.
CHOOSERS: dict[str, Chooser] = {
    "auto": best_kernel,
    "sdpa": torchs_kernel,
    CUDNN: _cudnn,
    **{name: partial(_package, name) for name in FLASH_MODULES},
}


@lru_cache(maxsize=64)
def _chosen(asked: Asked, device: torch.device) -> str | None:
    capability = torch.cuda.get_device_capability(device)
    choice = choose(asked, capability, lambda name, asked: problem_on(device, name, asked), there=installed)
    passed = "".join(f"; {name} is passed over: {why}" for name, why in choice.passed)
    tell(f"model.attention=auto: {choice.kernel or 'plain'} for {asked}{passed}.")
    return choice.kernel


# ---- the trial

_QUERIES = 40
# Two causal squares, and the second one's rectangle over the first, as a prompt with one answer has them.
_ROW = (Part((0, _QUERIES), (0, _QUERIES), (23, 17)), Part((23, _QUERIES), (0, 23)))
_ROUNDING = {torch.bfloat16: 2e-2, torch.float16: 5e-3}
_NO_CAP = 1e4  # a cap that changes a score of 5 by less than 1e-6


def problem_on(device: torch.device, name: str, asked: Asked) -> str | None:
    """Why a kernel does not do what it should on a small row there; None where output and gradients are right.

    Args:
        device: of the GPU, or the CPU.
        name: of the kernel.
        asked: by a layer.
    """
    try:
        kernel = kernel_named(name)
        with without_autocast(device):
            worst = max(_errors(kernel, asked, device))
    except torch.OutOfMemoryError:
        raise
    except (
        Exception
    ) as error:  # whatever a package raises that was built for another GPU: it is passed over, and said
        return f"{type(error).__name__}: {first_line(error)}"
    most = _ROUNDING.get(asked.dtype, 1e-4)
    return (
        None
        if worst <= most
        else f"it is wrong here (off by {worst:.2g} of the true values, {most} is rounding)"
    )


@torch.no_grad()
def _errors(kernel: Kernel, asked: Asked, device: torch.device) -> Iterator[float]:
    """Relative errors of output and gradients against torch's products in fp32."""
    source = torch.Generator().manual_seed(0)
    width, of_values = asked.widths

    def drawn(heads: int, numbers: int) -> Tensor:
        made = torch.randn(1, _QUERIES, heads, numbers, generator=source)
        return made.to(device, asked.dtype).transpose(1, 2)

    states = [drawn(asked.group, width), drawn(1, width), drawn(1, of_values)]
    gradient, exact = drawn(asked.group, of_values), CappedKernel(asked.softcap or _NO_CAP)
    ways = []
    for way, precision in ((kernel, asked.dtype), (exact, torch.float32)):
        query, key, value, outer = (one.to(precision) for one in (*states, gradient))
        if not way.unlike and of_values < width:
            value, outer = (torch.nn.functional.pad(one, (0, width - of_values)) for one in (value, outer))
        output, lse = run_parts(query, key, value, _ROW, width**-0.5, way)
        found = run_parts_backward(outer, query, key, value, output, lse, _ROW, width**-0.5, way)
        ways.append([output[..., :of_values], *found[:2], found[2][..., :of_values]])
    for actual, expected in zip(*ways, strict=True):
        yield ((actual.float() - expected).norm() / expected.norm()).item()
