"""Stage `kernels`: every attention kernel that can run here against fp64, forward and gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from align.longseq.attention import attend, attend_plain, prepare, shared_prefix_attention
from align.longseq.checkpointing import CHECKPOINTING, LayerCheckpoint
from align.longseq.kernels import with_softcap
from align.longseq.prepared import PreparedLayout
from benchmarks.gpu.context import Context
from benchmarks.gpu.exactness import error_of
from benchmarks.gpu.kernel_cases import BOUNDS, ROWS, SMALL_ROWS, Case, cases, kernels_here, layout_of
from benchmarks.gpu.large import large

CHECKPOINTED = {"checkpointed": "full", "kept": "keep_attention"}  # form → `memory.checkpointing`
OUTPUTS = ("output", "query", "key", "value", "sinks")


def run(context: Context) -> None:
    """A cell for each kernel and type: how many cases pass, the worst error of each result, and what fails."""
    torch.backends.cuda.matmul.allow_tf32 = False
    rows = context.of_scale(ROWS, SMALL_ROWS)
    context.keep("bounds", {str(dtype)[6:]: bound for dtype, bound in BOUNDS.items()})
    work: dict[str, Callable[[], Any]] = {}
    for kernel, dtype in kernels_here(context.device):  # packages last: some compile each shape first
        name = f"{kernel} {str(dtype)[6:]}"
        work[name] = partial(_all, context, kernel, dtype, rows)
        if dtype == torch.float32 or (dtype == torch.bfloat16 and kernel != "cuda_efficient"):
            work[f"{name}, large tensors"] = partial(large, context, kernel, dtype)
    context.cells(work)


def _all(context: Context, kernel: str, dtype: torch.dtype, rows: Any) -> dict[str, Any]:
    worst: dict[str, float] = {}
    failed: dict[str, Any] = {}
    refused: dict[str, str] = {}
    within = left_out = 0
    for case in cases(kernel, dtype):
        if context.left() <= 0:
            left_out += 1
            continue
        try:
            errors = measure(case, rows, context.device.torch)
        except Exception as error:
            context.device.check()
            refused[case.name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            continue
        worst |= {name: max(error, worst.get(name, 0.0)) for name, error in errors.items()}
        if max(errors.values()) <= BOUNDS[dtype]:
            within += 1
        else:
            failed[case.name] = errors
    return {
        "within": within,
        "failed": failed,
        "refused": refused,
        "left_out": left_out,
        "worst": worst,
        "bound": BOUNDS[dtype],
        "passed": not failed and not refused,
    }


def measure(case: Case, rows: Any, device: torch.device) -> dict[str, float]:
    """Relative errors of the output and of every gradient against fp64 on the same rounded states."""
    layout = layout_of(rows[case.rows])
    half = (layout.length // 3, layout.length // 3 + layout.length // 2)
    queries = (half,) if case.shard else ((0, layout.length),)
    prepared = prepare(layout, queries=queries)
    leaves, gradient = _states(case, queries[0][1] - queries[0][0], layout.length, device)
    exact = [one.detach().to(case.dtype).double().requires_grad_() for one in leaves]
    expected = _outcome(partial(_exactly, case, prepared), exact, gradient.to(case.dtype).double())
    actual = _outcome(partial(_by_kernel, case, prepared), leaves, gradient)
    return {
        name: error_of(found, wanted) for name, found, wanted in zip(OUTPUTS, actual, expected, strict=False)
    }


def _states(case: Case, queries: int, keys: int, device: torch.device) -> tuple[list[Tensor], Tensor]:
    """Query, key, value, sinks where there are some, and the output's gradient; they want gradients."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float32 if case.form == "autocast" else case.dtype

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    (h, k), wide, value = case.heads, case.width, case.value_width or case.width
    if case.form == "strided":  # views of one projection, as in models that fuse theirs
        fused = drawn(1, keys, (h + k) * wide + k * value)
        parts = fused.split([h * wide, k * wide, k * value], dim=2)
        leaves = [
            part.unflatten(2, (heads, -1)).transpose(1, 2)
            for part, heads in zip(parts, (h, k, k), strict=True)
        ]
        gradient = drawn(1, queries, h, value).transpose(1, 2)
    else:
        leaves = [drawn(1, h, queries, wide), drawn(1, k, keys, wide), drawn(1, k, keys, value)]
        gradient = drawn(1, h, queries, value)
    leaves += [drawn(h)] if case.sinks else []
    return [leaf.detach().requires_grad_() for leaf in leaves], gradient


def _outcome(way: Callable[..., Tensor], leaves: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """The output and the gradient of each leaf."""
    output = way(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient.to(output.dtype))]


def _by_kernel(
    case: Case, layout: PreparedLayout, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None = None
) -> Tensor:
    if case.form == "autocast" or case.value_width is not None:
        return _as_a_layer(case, layout, query, key, value)
    name = case.kernel if case.softcap is None else with_softcap(case.kernel, case.softcap)
    asked: dict[str, Any] = {"layout": layout, "kernel": name, "pattern": case.pattern, "sinks": sinks}
    if case.form not in CHECKPOINTED:
        return attend(query, key, value, **asked)
    as_a_layer = LayerCheckpoint(CHECKPOINTING[CHECKPOINTED[case.form]])  # type: ignore[arg-type]
    return as_a_layer(partial(attend, **asked), query, key, value)


def _as_a_layer(case: Case, layout: PreparedLayout, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Through the door that models use: it lowers states under autocast and widens narrow values."""
    with torch.autocast(query.device.type, dtype=case.dtype, enabled=_lowers(case)):
        output, _ = shared_prefix_attention(
            nn.Module(),
            query,
            key,
            value,
            None,
            layout=layout,
            sliding_window=None,
            chooser=lambda *asked: case.kernel,
        )
    return output.transpose(1, 2)


def _lowers(case: Case) -> bool:
    return case.form == "autocast" and case.dtype != torch.float32


def _exactly(
    case: Case, layout: PreparedLayout, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None = None
) -> Tensor:
    """The plain path in fp64; scores with a cap by hand, which it does not have."""
    if case.softcap is None:
        return attend_plain(query, key, value, layout=layout, pattern=case.pattern, sinks=sinks)
    outputs, shared = [], query.shape[1] // key.shape[1]
    for branch in layout.branches:
        keys, values = (
            torch.cat([states[:, :, start:stop] for start, stop in branch.keys], dim=2).repeat_interleave(
                shared, 1
            )
            for states in (key, value)
        )
        for piece in branch.pieces:
            start, stop = piece.queries
            places = torch.arange(piece.keys, device=query.device)
            seen = case.pattern.sees(places[piece.keys - (stop - start) :, None], places[None])
            scores = (
                query[:, :, start:stop] @ keys[:, :, : piece.keys].transpose(2, 3) * query.shape[3] ** -0.5
            )
            capped = (case.softcap * (scores / case.softcap).tanh()).masked_fill(~seen, -torch.inf)
            outputs.append(capped.softmax(3) @ values[:, :, : piece.keys])
    return torch.cat(outputs, dim=2)
