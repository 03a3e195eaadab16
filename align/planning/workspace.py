"""Bytes that kernels and adapters take beside what the layer's formulas count (activations.py).

**Kernels on a GPU**, while a layer's attention goes backward, for queries of Q = heads · D numbers a token:

- FlashAttention (bf16, fp16) sums the gradient of the queries in fp32, 4·Q bytes; where query heads share keys it makes
  the gradients of keys and values for each query head, 2·Q·2 bytes, and adds them up afterwards;
- torch's memory-efficient kernel (fp32) has keys and values expanded for each query head where they are shared, and
  their gradients too: 4·Q·4 bytes.

Llama-3-8B in bf16, with Q = 4,096 and 8 KV heads for 32 heads: 32,768 bytes a token, 17 GB for 512K tokens. Read in the
kernels' sources: no run on a GPU has had this as its peak yet; the CPU's kernel has no such part. Long rows go a few
heads at a time (align/longseq/head_slices.py): at 512K tokens an eighth of it is there at once, and of the gradient of
the queries, 2·Q bytes, only an eighth lies beside the whole that it is written to.

**Adapters**: PEFT keeps LoRA's weights in fp32. Over bf16 weights each adapted layer casts its input to fp32 and keeps
that copy for its backward pass: 4 bytes for each number of the inputs of q, k, v and o, but for one of them, whose copy
takes the place of what else is kept of the norm's output; of the MLP all.
"""

from __future__ import annotations

from align.longseq.head_slices import head_slices
from align.longseq.ulysses import share_heads
from align.planning.architecture import Architecture
from align.planning.job import Job, Precision, Strategy


def kernel_workspace(model: Architecture, precision: Precision, strategy: Strategy, tokens: int) -> float:
    """Bytes of a GPU's kernel in attention's backward pass.

    Args:
        model: its heads.
        precision: of the products.
        strategy: its exchange and degree.
        tokens: of the process that are read at once.

    Returns:
        Less than 0 where few heads at a time save more than they take: all gradients of the queries are counted in the
        layer.
    """
    width = float(model.query_width)
    heads, kv_heads = model.heads, model.kv_heads
    if strategy.ulysses > 1:
        shares = share_heads(model.heads, model.kv_heads, strategy.ulysses)
        heads, kv_heads = max((s.query[1] - s.query[0], s.kv[1] - s.kv[0]) for s in shares)
        width = float(heads * model.head_dim * strategy.ulysses)
    # Keys and values of the whole row are there for each rank's own queries.
    expanded = width * strategy.gather if heads > kv_heads else 0.0
    share = _largest_share(heads, kv_heads, width * (1 + strategy.gather) * tokens)
    taken = 4 * 4 * expanded if precision.products == 4 else 4 * width + 2 * precision.products * expanded
    return (taken * share - precision.products * width * (1 - share)) * tokens


def _largest_share(heads: int, kv_heads: int, numbers: float) -> float:
    """The part of all heads that a kernel goes over at once: 1 in short rows, an eighth with 8 slices."""
    return max(last - first for _, (first, last) in head_slices(heads, kv_heads, numbers)) / kv_heads


def casts(model: Architecture, job: Job) -> tuple[float, float]:
    """Bytes per token that adapters over bf16 weights keep of a layer's attention, and of its MLP; else 0."""
    if not model.lora or job.precision.weights != 2:
        return 0.0, 0.0
    attention = 4.0 * max(0, model.adapted_attention - model.hidden)
    return attention, 4.0 * model.adapted_mlp
