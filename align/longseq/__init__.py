"""The shared-prefix long-sequence forward. One door: `align.longseq.forward.pair_logps`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.core.lazy import lazy_names

if TYPE_CHECKING:
    from align.longseq.attention import ATTENTION
    from align.longseq.forward import pair_logps
    from align.longseq.shared_prefix import Layout, PackedPrompt, SharedPrefixBatch, SharedPrefixRow, pack

__all__ = [
    "ATTENTION",
    "Layout",
    "PackedPrompt",
    "SharedPrefixBatch",
    "SharedPrefixRow",
    "pack",
    "pair_logps",
]

_ROWS = ("PackedPrompt", "Layout", "SharedPrefixBatch", "SharedPrefixRow", "pack")
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "pair_logps": ("align.longseq.forward", "pair_logps"),
        "ATTENTION": ("align.longseq.attention", "ATTENTION"),  # where it is registered
        **{name: ("align.longseq.shared_prefix", name) for name in _ROWS},
    },
)
