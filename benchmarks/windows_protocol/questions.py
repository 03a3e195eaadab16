"""The protocol's questions: which arms are held against which, at which lengths, and by which rule it is answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.miniature.analysis import Comparison, Difference, compare
from benchmarks.windows_protocol.arms import ARMS, SETTINGS, frequencies
from benchmarks.windows_protocol.data import conditions

Rule = Literal["gain", "keeps"]
MARGIN = 0.05  # what may be lost where something has to be kept: five points
SEEDS = 2
Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Question:
    """One question, answered pair by pair.

    Attributes:
        key: one letter, as in PROTOCOL.md.
        text: the question.
        rule: `gain`: the first is better; `keeps`: the first loses at most `MARGIN`.
        pairs: of arms, the first and what it is held against.
        at: lengths, of which one is compared after the other.
    """

    key: str
    text: str
    rule: Rule
    pairs: tuple[tuple[str, str], ...]
    at: tuple[int, ...]


def questions(part: str) -> list[Question]:
    """All questions of a setting, with the pairs of which it has both arms."""
    setting = SETTINGS[part]
    target, longest = setting.target, setting.lengths[-1]
    far = (target, longest) if longest > target else (target,)
    names = tuple(frequencies(setting))
    trained = tuple(name for name, arm in ARMS[part].items() if arm.rows is not None)
    asked = [
        ("A", "other frequencies, nothing trained", "gain", [(name, "base") for name in names], far),
        ("B", "other frequencies, long rows", "gain", [(f"{name}_long", "long") for name in names], far),
        (
            "C",
            "a query scale beside a larger base",
            "gain",
            [("abf_scale", "abf"), ("abf_scale_long", "abf_long")],
            far,
        ),
        (
            "D",
            "synthesised positions on short rows",
            "gain",
            [("logo", "short"), ("random", "short"), ("skip", "linear_short"), ("e2", "linear_short")],
            far,
        ),
        (
            "E",
            "short rows with positions in the place of long rows",
            "keeps",
            [("logo", "long"), ("random", "long"), ("skip", "linear_long"), ("e2", "linear_long")],
            far,
        ),
        (
            "F",
            "read beyond the target with a larger factor",
            "gain",
            [("linear_over", "linear_long"), ("e2_over", "e2")],
            (longest,),
        ),
        (
            "G",
            "trained with a pattern as well as with full attention",
            "keeps",
            [
                (name, other)
                for name in ("s2", "s2_sinks", "hybrid")
                for other in ("linear_long", "linear_short")
            ],
            (target,),
        ),
        ("H", "sinks for S²", "gain", [("s2_sinks", "s2")], (target,)),
        ("I", "a pattern alone, nothing trained", "gain", [("sink_window", "base")], far),
        ("J", "knots against plain packing", "gain", [("knots", "plain")], far),
        ("K", "the window it had", "keeps", [(name, "base") for name in trained], (setting.lengths[0],)),
    ]
    found = []
    for key, text, rule, pairs, at in asked:
        own = tuple(pair for pair in pairs if set(pair) <= ARMS[part].keys() and comparable(part, *pair))
        if own:
            found.append(Question(key, text, "gain" if rule == "gain" else "keeps", own, at))
    return found


def comparable(part: str, first: str, second: str) -> bool:
    """Patterns are held against full attention on the same rows; all other pairs are as they are written."""
    pattern = first in ("s2", "s2_sinks", "hybrid") and second in ("linear_long", "linear_short")
    return not pattern or ARMS[part][first].rows == ARMS[part][second].rows


@dataclass(frozen=True)
class Answer:
    """What a pair at a length comes to.

    Attributes:
        difference: over the questions; None while cells are missing.
        verdict: `gain`, `loss`, `kept`, `lost`, `not shown` or `open`.
    """

    question: Question
    first: str
    second: str
    length: int
    difference: Difference | None
    verdict: str


def answers(results: Results, part: str) -> Iterator[Answer]:
    """Every pair of every question at every length, in the protocol's order."""
    for question in questions(part):
        for first, second in question.pairs:
            for length in question.at:
                compared = Comparison(question.key, part, first, second, conditions((length,)))
                difference = compare(results, compared)
                yield Answer(question, first, second, length, difference, verdict(difference, question.rule))


def verdict(difference: Difference | None, rule: Rule) -> str:
    """By the rule of PROTOCOL.md; `open` while a seed is missing.

    gain: `gain` where the interval and every seed's difference lie above 0, `loss` where below, else `not shown`.
    keeps: `kept` where the interval lies above −`MARGIN`, `lost` where below it, else `not shown`.
    """
    if difference is None or missing_seeds(difference.by_seed):
        return "open"
    low, high = difference.interval.low, difference.interval.high
    if low is None or high is None:
        return "not shown"
    seeds = difference.by_seed.values()
    if rule == "gain":
        if low > 0 and min(seeds) > 0:
            return "gain"
        return "loss" if high < 0 and max(seeds) < 0 else "not shown"
    if low >= -MARGIN:
        return "kept"
    return "lost" if high < -MARGIN else "not shown"


def missing_seeds(by_seed: Mapping[int, float]) -> bool:
    """Whether a seed is still to come; −1 stands for cells in which nothing is drawn."""
    return len(by_seed) < SEEDS and set(by_seed) != {-1}


def shown(results: Results, part: str, name: str) -> Sequence[int | None]:
    """The seeds of an arm's finished cells, in their order."""
    found = [
        result["seed"] for result in results.values() if (result["part"], result["method"]) == (part, name)
    ]
    return sorted(found, key=lambda seed: -1 if seed is None else seed)
