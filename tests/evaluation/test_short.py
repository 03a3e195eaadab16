"""suite=short: what has been measured is known by its rows and by the weights."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from align.core.errors import UserError
from align.evaluation.short import Short
from align.evaluation.suite import ScoredPairs
from tests.evaluation.helpers import Answers, evaluation
from tests.rows import make_rows


def test_other_rows_are_measured_and_other_weights_refused(tmp_path):
    """Two rows, the margins 1 and 3: measured once, and again when their file has changed."""
    path = make_rows(tmp_path / "rows.jsonl", count=2)
    asked = []

    def score(pairs: str | None) -> ScoredPairs:
        asked.append(pairs)
        metrics = np.zeros((2, 7))
        metrics[:, 3], metrics[:, 4] = [1.0, 3.0], 1.0
        return ScoredPairs(metrics, [{"source": f"r:{i}", "longest_sequence": 9} for i in range(2)])

    def measured(**more):
        given = evaluation(tmp_path / "out", Answers(str), score_pairs=score, **more)
        return Short(pairs=str(path)).run(given).scores

    first = measured()
    assert (first["pairs/rewards/margins"].mean, first["pairs/rewards/margins"].better) == (2.0, "higher")
    assert first["pairs/rewards/accuracies"].low == pytest.approx(0.342, abs=1e-3)  # Wilson's 2 of 2
    assert measured() == first
    assert len(asked) == 1
    path.write_text(path.read_text() + json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    measured()
    assert len(asked) == 2
    with pytest.raises(UserError, match="with other weights than the model has now"):
        measured(weights="others")


def test_rows_that_compare_nothing_are_said(tmp_path):
    path = make_rows(tmp_path / "rows.jsonl", count=2)
    metrics = np.zeros((2, 7))
    metrics[1, 4] = np.nan
    pairs = ScoredPairs(metrics, [{"source": f"r:{i}", "longest_sequence": 9} for i in range(2)])
    for _ in range(2):  # the second time from the disk
        given = evaluation(tmp_path / "out", Answers(str), score_pairs=lambda _: pairs)
        result = Short(pairs=str(path)).run(given)
        assert result.notes == ["1 of 2 rows of suite.pairs have no rejected answer and are in no score."]


def test_lm_eval_is_given_the_folder_that_was_checked(tmp_path, monkeypatch):
    """`~` is the home, for lm-eval as for the check."""
    given = []

    def manager(include_path):
        given.append(include_path)
        return SimpleNamespace(all_tasks=[])

    parts = {
        "lm_eval": ModuleType("lm_eval"),
        "lm_eval.models": ModuleType("lm_eval.models"),
        "lm_eval.models.huggingface": SimpleNamespace(HFLM=None),
        "lm_eval.tasks": SimpleNamespace(TaskManager=manager),
    }
    for name, module in parts.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tasks").mkdir()
    with pytest.raises(UserError, match="knows no task mine"):
        Short(tasks=["mine"], include_path="~/tasks").run(evaluation(tmp_path / "out", Answers(str)))
    assert given == [str(tmp_path / "tasks")]
