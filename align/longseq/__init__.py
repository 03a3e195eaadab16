"""The shared-prefix long-sequence forward. One door: `align.longseq.forward.pair_logps`."""

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
