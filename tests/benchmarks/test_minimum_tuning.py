"""The miniature of Minimum Tuning: its rows, and what counts as shown."""

from __future__ import annotations

import pytest

from align.scores.length import count_words, length_score, required_length
from benchmarks.minimum_tuning import by_seed, difference, noisy_rows, shown


def test_about_a_ninth_of_the_rows_meets_its_length():
    """ln(1.4) / ln(20) = 11 % of factors in [0.05, 1] lie above 1/1.4, where S_l is 80."""
    rows = [row["messages"] for row in noisy_rows(1)]
    assert rows == [row["messages"] for row in noisy_rows(1)] and len(rows) == 600
    scores = []
    for request, answer in rows:
        required, written = required_length(request["content"]), count_words(answer["content"])
        assert required is not None and 4 <= written <= max(4, required)
        scores.append(length_score(required, written))
    assert sum(score >= 80 for score in scores) / 600 == pytest.approx(0.11, abs=0.04)


def arms(selected, everything):
    return {
        "selected": {"length_score": selected},
        "all": {"length_score": everything},
    }


def test_differences_are_paired_and_averaged_over_seeds():
    """Questions differ by 10, 20 with seed 1 and 20, 40 with seed 2: means 15 and 30, together 22.5."""
    seeds = {"1": arms([20.0, 40.0], [10.0, 20.0]), "2": arms([30.0, 50.0], [10.0, 10.0])}
    assert by_seed(seeds, "selected", "all") == {"1": [10.0, 20.0], "2": [20.0, 40.0]}
    found = difference(seeds, "selected", "all")
    assert (found.mean, found.n) == (22.5, 2)


def test_the_claim_needs_the_interval_and_every_seed():
    better, worse = [50.0 + i for i in range(9)], [10.0 + 2 * i for i in range(9)]
    assert shown({"1": arms(better, worse), "2": arms(better, worse)})
    assert not shown({"1": arms(worse, better), "2": arms(worse, better)})
    assert not shown(
        {"1": arms([90.0 + i for i in range(9)], worse), "2": arms(worse, [i + 1 for i in worse])}
    )
