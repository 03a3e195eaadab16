"""The miniature's analysis on made-up cells whose differences are known, and its tables with cells missing."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from align.core.errors import UserError
from benchmarks.miniature.analysis import (
    Comparison,
    compare,
    comparisons,
    mean_of,
    read_results,
    verdict,
)
from benchmarks.miniature.report import draw, show
from tests.miniature.helpers import cell, results

HALF = [1.0, 0.0] * 50
MOST = [1.0, 1.0, 1.0, 0.0] * 25


def qa(name: str, seed: int | None, long: list[float], alone: list[float] = HALF) -> dict:
    return cell("qa", name, seed, {"alone": alone, "trained": long, "beyond": long})


def outcomes(found: dict, claim: str, part: str) -> list:
    return [compare(found, one) for one in comparisons() if (one.claim, one.part) == (claim, part)]


def test_a_difference_of_a_quarter():
    """75 % against 50 % on the same 100 questions: every fourth question is gained, none lost.

    The differences are 0 or 1 with mean 1/4, so the standard error is sqrt(3/16 / 100) = 0.0433.
    """
    found = results(qa("base", None, HALF), qa("sft", 1, MOST), qa("sft", 2, MOST))
    outcome = compare(found, Comparison("a", "qa", "sft", "base", ("beyond",)))
    assert outcome is not None
    assert outcome.interval.mean == pytest.approx(0.25)
    assert outcome.interval.low == pytest.approx(0.25 - 1.96 * 0.0433, abs=0.015)
    assert outcome.by_seed == {1: 0.25, 2: 0.25}


def test_seeds_are_averaged_by_question():
    """One seed right everywhere, one nowhere: each question scores 1/2, without spread."""
    found = results(qa("sft", 1, [1.0] * 9, [1.0] * 9), qa("sft", 2, [0.0] * 9, [0.0] * 9))
    interval = mean_of(found, "qa", "sft", "beyond")
    assert interval is not None
    assert (interval.low, interval.mean, interval.high, interval.n) == (0.5, 0.5, 0.5, 9)


def test_only_seeds_that_both_have_count():
    found = results(qa("sft", 1, HALF), qa("sft", 2, MOST), qa("dpo", 2, HALF))
    outcome = compare(found, Comparison("b", "qa", "sft", "dpo", ("trained", "beyond")))
    assert outcome is not None and outcome.by_seed == {2: 0.25}
    assert compare(found, Comparison("b", "qa", "sft", "longpo", ("beyond",))) is None


def test_conditions_with_questions_of_their_own_stand_side_by_side():
    """40 questions at 256, 10 at 1024: all 50 count alike, as the mean of 40 ones and 10 zeros says."""
    scores = {"alone": HALF, "trained": HALF, "beyond_256": [1.0] * 40, "beyond_1024": [0.0] * 10}
    nothing = scores | {"beyond_256": [0.0] * 40}
    found = results(cell("find", "logo", 1, scores), cell("find", "base", 1, nothing))
    outcome = compare(found, Comparison("a", "find", "logo", "base", ("beyond_256", "beyond_1024")))
    assert outcome is not None
    assert (outcome.interval.mean, outcome.interval.n) == (0.8, 50)


def test_a_difference_between_two_conditions():
    """The same questions under other conditions: 75 % when diluted, 50 % at the trained length."""
    found = results(qa("base", None, HALF), cell("qa", "base_diluted", None, {"diluted": MOST}))
    comparison = Comparison("length", "qa", "base_diluted", "base", ("diluted",), against=("trained",))
    outcome = compare(found, comparison)
    assert outcome is not None and outcome.interval.mean == 0.25
    assert comparison.at == "diluted − trained"


def test_two_methods_together():
    """One gains a quarter, one nothing: an eighth in the mean; open where one of the cells is missing."""
    names = (("logo_positions", MOST), ("sft_positions", HALF), ("logo", HALF), ("sft", HALF))
    cells = [qa(name, 1, values) for name, values in names]
    comparison = Comparison("positions", "qa", "logo_positions+sft_positions", "logo+sft", ("beyond",))
    outcome = compare(results(*cells), comparison)
    assert outcome is not None and outcome.interval.mean == 0.125
    assert compare(results(*cells[1:]), comparison) is None


@pytest.mark.parametrize(
    ("longpo", "alone", "expected"),
    [
        (MOST, HALF, "replicated"),
        (HALF, HALF, "not shown"),
        ([0.0] * 100, HALF, "contradicted"),
        (MOST, [0.0, *HALF[1:]], "replicated, but the sample is too small"),  # −1 point: one of 100 questions
        (MOST, [0.0, 0.0, 0.0, *HALF[3:]], "not shown"),  # −2 points
        (MOST, [0.0] * 100, "contradicted"),
    ],
)
def test_verdicts(longpo, alone, expected):
    others = [qa(name, seed, HALF) for name in ("sft", "dpo") for seed in (1, 2)]
    own = [qa("longpo", seed, longpo, alone) for seed in (1, 2)]
    found = results(qa("base", None, HALF), *others, *own)
    assert verdict(outcomes(found, "b", "qa")).startswith(expected)


def test_one_seed_against_the_mean_shows_nothing():
    """A large gain in one seed and a loss in the other: the mean is clear, the seeds are not."""
    writing = [cell("write", "base", seed, {"length_score": [10.0] * 50}) for seed in (1, 2)]
    writing += [cell("write", "sft", seed, {"length_score": [s] * 50}) for seed, s in ((1, 90.0), (2, 9.0))]
    writing += [cell("write", "dpo", seed, {"length_score": [95.0] * 50}) for seed in (1, 2)]
    assert verdict(outcomes(results(*writing), "c", "write")) == "not shown"
    assert verdict(outcomes(results(*writing[:3]), "c", "write")) == "open: cells are missing"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_tables_and_pictures_with_missing_cells(tmp_path, count):
    cells = [
        qa("base", None, HALF),
        cell("write", "sft", 1, {"length_score": [80.0, 90.0], "written_words": [40, 50]}),
        qa("logo", 2, MOST),
    ][:count]
    console = Console(width=160, record=True, quiet=False, file=(tmp_path / "out").open("w"))
    show(results(*cells), console)
    text = console.export_text()
    assert text.count("open: cells are missing") == 5
    assert ("50.0 [40.0, 60.0]" in text) == (count > 0)
    assert ("85.0 [80.0, 90.0]" in text) == (count > 1)
    assert [path.name for path in draw(results(*cells), tmp_path)] == [
        [],
        ["qa.png"],
        ["qa.png", "write.png"],
    ][min(count, 2)]


def test_cells_that_were_asked_different_questions_are_refused(tmp_path):
    for place, one in enumerate((qa("base", None, HALF), qa("sft", 1, HALF) | {"asked_sha256": "other"})):
        (tmp_path / f"{place}.json").write_text(json.dumps(one))
    with pytest.raises(UserError, match="qa/base and qa/sft/seed1 were asked different questions"):
        read_results(tmp_path)
    (tmp_path / "1.json").write_text(json.dumps(cell("qa", "base_diluted", None, {"diluted": HALF})))
    assert set(read_results(tmp_path)) == {"qa/base", "qa/base_diluted"}  # other conditions, other questions
