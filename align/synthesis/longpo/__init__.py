"""LongPO's preference data: questions to a chunk, answered from the chunk and from the whole document."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.core.lazy import lazy_names

if TYPE_CHECKING:
    from align.synthesis.longpo.pipeline import LongPOPipeline

__all__ = ["LongPOPipeline"]

__getattr__, __dir__ = lazy_names(
    __name__, {"LongPOPipeline": ("align.synthesis.longpo.pipeline", "LongPOPipeline")}
)
