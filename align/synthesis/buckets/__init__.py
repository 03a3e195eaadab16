"""Dataset Decomposition (arXiv 2405.13226): documents cut into powers of two, rows of `method=lm`."""

from align.synthesis.buckets.pipeline import BucketsPipeline

__all__ = ["BucketsPipeline"]
