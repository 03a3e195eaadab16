"""The cases of stage `kernels`: who attends what, in which form, and the bounds that errors are held to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, product

import numpy as np
import torch

from align.longseq import Layout, PackedPrompt
from align.longseq.cudnn import CudnnKernel
from align.longseq.flash_fit import HALVES, flash_problem, installed
from align.longseq.kernels import cuda_kernel, register_kernel
from align.longseq.settings import CUDNN, FLASH_MODULES
from align.patterns.pattern import FULL, Chunked, Pattern, Strided, Window
from benchmarks.gpu.device import Device

# ‖a − b‖ / ‖b‖ of an output or a gradient against fp64 on the same rounded states. A number of fp16 is known to 2⁻¹¹,
# of bf16 to 2⁻⁸; sums run in fp32, and outputs of several calls are rounded when they are merged.
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
WIDTHS = (64, 80, 96, 128, 256)
GROUPS = ((6, 6), (6, 2), (8, 2), (8, 1))  # 1, 3, 4 and 8 query heads a key-value head
# Tokens of prompts with their answers: squares and rectangles of many sizes; one square; one prompt, many answers.
ROWS = {
    "answers": ((300, (130, 70, 1)), (90, (200,))),
    "square": ((257, ()),),
    "siblings": ((64, (33, 33, 33, 33)),),
}
SMALL_ROWS = {
    "answers": ((40, (13, 7, 1)), (9, (20,))),
    "square": ((37, ()),),
    "siblings": ((16, (9, 9)),),
}
FORMS = ("plain", "strided", "autocast", "checkpointed", "kept")


@dataclass(frozen=True)
class Case:
    """One call of attention, forward and backward.

    Attributes:
        kernel: its name in align/longseq/kernels.py.
        dtype: in which it computes.
        width: of a query's and a key's head.
        value_width: of a value's; None is the same (in latent attention, MLA, it is narrower).
        heads: of queries, and of keys and values.
        rows: key of ROWS.
        shard: whether only some queries of the row attend, as on one of several processes.
        pattern: who sees whom.
        sinks: whether a logit of each head joins the softmax.
        softcap: cap on scores; None is none.
        form: `plain`; `strided`: views of one fused projection; `autocast`: float32 states under it; `checkpointed` and
            `kept`: inside torch's checkpointing, and with attention kept (`memory.checkpointing=keep_attention`).
    """

    kernel: str
    dtype: torch.dtype
    width: int = 64
    value_width: int | None = None
    heads: tuple[int, int] = (4, 2)
    rows: str = "answers"
    shard: bool = False
    pattern: Pattern = FULL
    sinks: bool = False
    softcap: float | None = None
    form: str = "plain"

    @property
    def name(self) -> str:
        """What is not usual about it: `cuda_flash bfloat16, 64 wide, 8/2 heads, Window(size=48)`."""
        value = "" if self.value_width is None else f" with values {self.value_width}"
        words = [
            f"{self.kernel} {str(self.dtype)[6:]}",
            f"{self.width} wide{value}",
            "{}/{} heads".format(*self.heads),
        ]
        usual = Case(self.kernel, self.dtype)
        for field in ("rows", "pattern", "form"):
            if getattr(self, field) != getattr(usual, field):
                words.append(str(getattr(self, field)))
        words += ["shard"] * self.shard + ["sinks"] * self.sinks
        return ", ".join([*words, *([f"capped at {self.softcap:g}"] if self.softcap else [])])


PATTERNS = (
    *(Window(48), Window(2), Chunked(64)),
    *(Window(48, sinks=4), Chunked(64, shift=32, sinks=4), Strided(32, recent=2, sinks=4, stride=3)),
)


def cases(kernel: str, dtype: torch.dtype) -> Iterator[Case]:
    """Every case of one kernel and type: one thing varies at a time."""
    usual = Case(kernel, dtype)
    yield usual
    yield from (replace(usual, width=width) for width in WIDTHS[1:])
    yield from (replace(usual, heads=heads) for heads in GROUPS)
    yield from (replace(usual, rows=rows) for rows in ("square", "siblings"))
    yield replace(usual, shard=True)
    yield from (replace(usual, pattern=pattern) for pattern in PATTERNS)
    yield replace(usual, sinks=True)
    yield replace(usual, sinks=True, pattern=Window(48), shard=True, heads=(8, 1))
    yield replace(usual, width=192, value_width=128)
    yield replace(usual, softcap=15.0)
    yield from (replace(usual, form=form) for form in FORMS[1:])


def kernels_here(device: Device) -> Iterator[tuple[str, torch.dtype]]:
    """Kernels that can run here, each with its types: torch's by the device, cuDNN's, flash-attn's."""
    if not device.cuda:
        yield from (("cpu", dtype) for dtype in BOUNDS)
        return
    capability = torch.cuda.get_device_capability()
    for dtype in BOUNDS:
        yield from (
            (name, dtype)
            for name in sorted({"cuda_efficient", cuda_kernel(dtype, 64, capability) or ""})
            if name
        )
    if flash_problem(CUDNN, torch.bfloat16, torch.bfloat16, (64, 64), capability) is None:
        register_kernel(f"{CUDNN} always", CudnnKernel(least=1))  # the rows here are short
        yield from ((f"{CUDNN} always", dtype) for dtype in HALVES)
    for name, dtype in product(FLASH_MODULES, HALVES):
        if installed(name) and flash_problem(name, dtype, dtype, (64, 64), capability) is None:
            yield name, dtype


def layout_of(rows: tuple[tuple[int, tuple[int, ...]], ...]) -> Layout:
    """Prompts with their answers, one after the other."""
    prompts, offset = [], 0
    for prompt, answers in rows:
        spans = list(pairwise(np.cumsum([offset, prompt, *answers]).tolist()))
        prompts.append(PackedPrompt(spans[0], tuple(spans[1:])))
        offset = prompts[-1].stop
    return Layout(tuple(prompts))
