"""Untie the Knots (arXiv 2409.04774): pieces of many documents tied into one long row of `method=lm`."""

from align.synthesis.utk.marks import Marks
from align.synthesis.utk.pipeline import UtkPipeline

__all__ = ["Marks", "UtkPipeline"]
