"""A long row's attention goes a few heads at a time, so that what a kernel takes beside its results stays bounded.

FlashAttention's backward pass sums the gradient of the queries in fp32 and, where query heads share keys, makes the
gradients of keys and values for each query head first: in bf16 up to 6 bytes for each number of queries and of keys. A
row of 512K tokens with 32 heads of 128 would have 26 GB of it. Heads do not know of each other, so one call for all of
them and a call for each few are the same.
"""

from __future__ import annotations

import math
from itertools import pairwise

from align.longseq.layout import Span

SCRATCH = 2**31  # bytes, at most, but for a KV head that alone takes more
BYTES = 6  # of a kernel's own, for each number of queries and keys


def head_slices(heads: int, kv_heads: int, numbers: float) -> tuple[tuple[Span, Span], ...]:
    """Query heads and KV heads that go together, in order; one pair where all of them may.

    32 heads over 8 KV heads with 2²⁹ numbers are 3 GB, so two slices: `((0, 16), (0, 4)), ((16, 32), (4, 8))`.

    Args:
        heads: of the queries, a multiple of `kv_heads`.
        kv_heads: of keys and values.
        numbers: of a call: (queries + keys) · heads · width.
    """
    count = min(kv_heads, max(1, math.ceil(numbers * BYTES / SCRATCH)))
    bounds, group = [kv_heads * i // count for i in range(count + 1)], heads // kv_heads
    return tuple(((first * group, last * group), (first, last)) for first, last in pairwise(bounds))
