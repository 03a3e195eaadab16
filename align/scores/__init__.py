"""Scores of long answers that data pipelines and evaluation share."""
