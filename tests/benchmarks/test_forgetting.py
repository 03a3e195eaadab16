"""The forgetting protocol's tasks, its measure and its verdicts."""

from __future__ import annotations

import random

import pytest

from benchmarks.forgetting.arms import ARMS, SETTINGS, adapter_of
from benchmarks.forgetting.report import SEEDS, claim, outcomes
from benchmarks.forgetting.tasks import MOVED, draw, held_out, rows
from benchmarks.miniature import find


@pytest.mark.parametrize("task", ["old", "new"])
def test_questions_have_their_words_in_the_context(task):
    rng = random.Random(0)
    for _ in range(50):
        question = draw(rng, task)
        following = (question.kind + 1) % find.KINDS
        assert (question.kind < MOVED) == (task == "new")
        own, other = f"f{question.kind:02}", f"f{following:02}"
        assert question.right.startswith(other if task == "new" else own)
        assert question.wrong.startswith(own if task == "new" else other)
        assert {question.right, question.wrong} <= set(question.words)
        assert question.tokens[-1] == "\n" and question.tokens[-2] == "assistant"


def test_rows_are_the_new_task_and_the_held_out_questions_are_always_the_same():
    row = next(rows(3))
    assert row["chosen"] != row["rejected"]
    assert held_out("old") == held_out("old")
    assert not {question.words for question in held_out("new")} & {
        question.words for question in held_out("old")
    }


def test_every_arm_is_an_adapter():
    assert adapter_of("full") is None
    assert all(adapter_of(arm) is not None for arm in ARMS if arm != "full")


def cell(old, new):
    return {
        "curve": [(10, sum(old) / len(old), new)],
        "reached": {"old": old, "new": [True]} if new >= 0.8 else None,
    }


def test_verdicts():
    """Keeping 8 of 10 questions against 2 of 10 is more, the reverse less; an arm without the gain has no score."""
    high, low = [True] * 8 + [False] * 2, [False] * 8 + [True] * 2
    known = {"cells": {}}
    for seed in SEEDS:
        full = cell(low, 0.9) | {"interpolated": cell(low, 0.9)}
        known["cells"][f"sft/full/seed{seed}"] = full
        known["cells"][f"sft/half_a/seed{seed}"] = cell([True] * 10, 0.9)
        known["cells"][f"sft/half_b/seed{seed}"] = cell([True] * 10, 0.9)
        known["cells"][f"sft/lora/seed{seed}"] = cell(high, 0.1)
        known["cells"][f"sft/sparse/seed{seed}"] = cell([False] * 10, 0.9)
    found = outcomes(known, "sft")
    assert found["half_a"].verdict == found["half_b"].verdict == "more"
    assert found["lora"].verdict == "no gain" and found["lora"].kept is None
    assert found["interpolated"].verdict == "not shown"
    assert found["sparse"].difference is not None and found["sparse"].difference.mean == pytest.approx(-0.2)
    assert claim(found) == "replicated"
    assert set(SETTINGS) == {"sft", "dpo"}
