"""The card's figures: one kind of margin in a histogram, and numbers that can be drawn."""

from __future__ import annotations

import json

import numpy as np
import pytest

from align.synthesis.card import CardFigures, _measure, _texts, draw_margins, write_card
from align.synthesis.pipeline import Summary
from tests.generation.helpers import local_generator, workspace


class Answer:
    def __init__(self, tokens):
        self.scored = np.ones(tokens, dtype=bool)


class Example:
    """Of the parts of a tokenised row those that the card measures."""

    prompt_ids = (1, 2, 3)
    pieces = 0

    def __init__(self, chosen, rejected):
        self.answers = [Answer(chosen), Answer(rejected)]


def figures(*margins):
    found = CardFigures()
    for i, margin in enumerate(margins):
        _measure({} if margin is None else {"margin": margin}, Example(10 + i, 7), found)
    return found


def test_scores_and_tokens_do_not_share_a_histogram():
    """Whichever comes first: where any row has a score, scores alone are shown; else tokens, 10 − 7 and 11 − 7."""
    assert (figures(None, 12.5).of, figures(None, 12.5).margins) == ("score", [12.5])
    assert figures(12.5, None).margins == [12.5]
    assert (figures(None, None).of, figures(None, None).margins) == ("length", [3, 4])


@pytest.mark.parametrize("margin", [float("inf"), float("nan"), 10**400, "12", True])
def test_a_margin_that_cannot_be_drawn_is_left_out(margin):
    assert figures(margin, 2).margins == [2.0]
    assert figures(margin, None).of == "length"


@pytest.mark.parametrize(
    "margins",
    [(1e17, 1e17), (1e17, 1e17 + 64), (1e308, -1e308), (1.0, 1.0 + 2e-16), (0.0, 0.0), (1e-300, 2e-300)],
)
def test_any_margins_can_be_drawn(margins, tmp_path):
    draw_margins(figures(*margins), tmp_path / "m.png")
    assert (tmp_path / "m.png").stat().st_size


@pytest.mark.parametrize("rejecteds", [None, [], ["w5"]])
def test_a_sample_is_shown_of_turns_without_rejected_answers(rejecteds):
    row = {"context": ["w1"], "questions": ["w2", "w3"], "chosens": ["w4", "w6"], "rejecteds": rejecteds}
    shown = dict(_texts(row))
    assert (shown["chosen 1"], shown["chosen 2"]) == ("w4", "w6")
    assert shown.get("rejected 1") == ("w5" if rejecteds else None) and "rejected 2" not in shown


def test_a_card_is_written_for_a_margin_beyond_all_numbers(tmp_path):
    rows = [
        {"prompt": "w9", "chosen": "w10 w11", "rejected": "w12"},
        {"prompt": "w9", "chosen": "w10", "rejected": "w13", "margin": 3},
    ]
    lines = [json.dumps(row) for row in rows]
    lines.append(lines[1].replace('"margin": 3', '"margin": 1e400'))
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    from omegaconf import OmegaConf

    summary = Summary(tmp_path / "train.jsonl", 3, {"rows read": 3})
    card = write_card(summary, OmegaConf.create({}), workspace(tmp_path, local_generator())).read_text()
    assert "| rows without a finite margin, not in the histogram | 2 |" in card
    assert (tmp_path / "margins.png").is_file()
