"""LongWriter's data: long answers by plan and by trial, scored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.core.lazy import lazy_names

if TYPE_CHECKING:
    from align.synthesis.longwriter.pipeline import LongWriterPipeline

__all__ = ["LongWriterPipeline"]

__getattr__, __dir__ = lazy_names(
    __name__, {"LongWriterPipeline": ("align.synthesis.longwriter.pipeline", "LongWriterPipeline")}
)
