"""LOGO's preference data: questions to chunks, answers with and without what they need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.core.lazy import lazy_names

if TYPE_CHECKING:
    from align.synthesis.logo.pipeline import LogoPipeline

__all__ = ["LogoPipeline"]

__getattr__, __dir__ = lazy_names(
    __name__, {"LogoPipeline": ("align.synthesis.logo.pipeline", "LogoPipeline")}
)
