"""GATEAU's rankings as numbers: what two models found in the rows, in; a score a row, out."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LARGEST_NLL = math.log(sys.float_info.max)  # of which the perplexity is a number still


def guidance_scores(short: np.ndarray, long: np.ndarray) -> np.ndarray:
    """Homologous models' guidance: softmax over the rows of norm(PPL_short) − norm(PPL_long), `[N]`.

    norm is (x − min) / (max − min) over the rows, as in the released code; all 0 where all are equal.
    """
    return softmax(_unit(short) - _unit(long))


def are_numbers(short: Mapping[str, Any], long: Mapping[str, Any]) -> bool:
    """Whether all that both models found in a row can be ranked: no NaN, and no perplexity beyond all numbers."""
    found = [short["nll"], long["nll"], *long["attention"], *long["segment_nll"]]
    return bool(np.isfinite(found).all() and max(short["nll"], long["nll"]) < LARGEST_NLL)


def misalignment(attention: Sequence[float], nlls: Sequence[float]) -> float:
    """1 − cos(a, s) of two distributions over segments: attention, and what helps; 0 … 1.

    a is the answer's mean attention to a token of each segment, divided by its sum; s is the softmax of the
    negative log-perplexity of the answer given that segment alone. The paper calls the first normalised scores
    and the second importance; the last step of its released code is missing, so that norms are ours.
    """
    given = np.asarray(attention, dtype=np.float64)
    if not given.any():
        return 1.0  # nothing of the context was looked at, as behind a sliding window
    given = given / given.sum()
    helps = softmax(-np.asarray(nlls, dtype=np.float64))
    return float(1 - given @ helps / (np.linalg.norm(given) * np.linalg.norm(helps)))


def softmax(values: np.ndarray) -> np.ndarray:
    """Over all entries, `[N]`."""
    raised = np.exp(values - values.max())
    return raised / raised.sum()


def _unit(values: np.ndarray) -> np.ndarray:
    """Scaled to 0 … 1."""
    spread = values.max() - values.min()
    return (values - values.min()) / spread if spread > 0 else np.zeros_like(values)
