"""Scores that rows bring for their answers, and what of them contradicts a pair."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_SCORE = r"(?:score|rating|reward|preference_score|quality)"
_CHOSEN_SCORE = re.compile(rf"(?:{_SCORE}[_-]chosen|chosen[_-](?:avg[_-])?{_SCORE})")


def upside_down(values: Mapping[str, Any]) -> str:
    """What says that the rejected answer is better: `score_chosen=1 < score_rejected=9`; empty where nothing does."""
    for name, value in values.items():
        if not _CHOSEN_SCORE.fullmatch(name):
            continue
        other = name.replace("chosen", "rejected")
        chosen, rejected = _number(value), _number(values.get(other))
        if chosen is not None and rejected is not None and chosen < rejected:
            return f"{name}={chosen:g} < {other}={rejected:g}"
    margin = _number(values.get("margin"))
    return f"margin={margin:g} < 0" if margin is not None and margin < 0 else ""


def is_score(name: str) -> bool:
    """Whether a column holds a score of an answer, which `upside_down` compares."""
    return name == "margin" or _CHOSEN_SCORE.fullmatch(name.replace("rejected", "chosen")) is not None


def _number(value: Any) -> float | None:
    """A number, also where a table holds it as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
