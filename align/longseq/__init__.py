"""The shared-prefix long-sequence forward. One door: `align.longseq.forward.pair_logps`."""

from align.longseq.forward import pair_logps
from align.longseq.settings import ATTENTION
from align.longseq.shared_prefix import Group, Layout, SharedPrefixBatch, SharedPrefixRow, pack

__all__ = ["ATTENTION", "Group", "Layout", "SharedPrefixBatch", "SharedPrefixRow", "pack", "pair_logps"]
