"""Made-up cells and questions for the miniature's tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def cell(part: str, method: str, seed: int | None, scores: dict[str, Sequence[float]]) -> dict[str, Any]:
    """A finished cell's JSON."""
    name = "/".join((part, method, *([] if seed is None else [f"seed{seed}"])))
    return {
        "cell": name,
        "part": part,
        "method": method,
        "seed": seed,
        "scores": {condition: list(values) for condition, values in scores.items()},
        "asked_sha256": part,
        "costs": [{"step": "train", "finished": True, "seconds": 2.0, "processor_seconds": 1.0}],
        "machine": "a machine",
        "training": {"num_tokens": 100.0},
    }


def results(*cells: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["cell"]: one for one in cells}


def question(number: int, *, answer: str | None = None, text: str | None = None) -> dict[str, Any]:
    """A question whose passage holds its answer and nobody else's."""
    answer = answer or f"answer{number}x"
    return {
        "question": f"what is thing{number}x",
        "answers": [answer],
        "ctxs": [{"title": f"Thing {number}", "text": text or f"The thing{number}x is {answer} in truth."}],
    }
