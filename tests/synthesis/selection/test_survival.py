"""`select=survival`: the released code's chances, and draws that hang on seed and place alone."""

from __future__ import annotations

import dataclasses
import json

import pytest

from align import synthesize
from align.core.errors import UserError
from align.synthesis.selection.survival import Survival, survival_chances
from tests.synthesis.scripted import save_model, workspace


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def write(path, lengths):
    rows = [{"prompt": "Why", "chosen": "x" * length} for length in lengths]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_chances_of_ten_answers_and_of_many():
    """1 − 2r³: golden values; the mean goes to ∫ max(0, 1 − 2r³) dr = 0.59527539."""
    chances = survival_chances(10, factor=2.0)
    expected = [0, 0, 0, 0.314, 0.568, 0.75, 0.872, 0.946, 0.984, 0.998]
    assert chances == pytest.approx(expected, abs=1e-12)
    assert sum(chances) / 10 == pytest.approx(0.5432, abs=1e-12)
    many = survival_chances(1_000_000, factor=2.0)
    assert sum(many) / len(many) == pytest.approx(0.59527539, abs=1e-6)


def test_draws_follow_the_chances_and_do_not_move(model, tmp_path):
    """Of 2,000 rows the share that stays is the mean chance; the shortest fifth is gone; other seeds draw otherwise."""
    lengths = [1 + (7 * i) % 2000 for i in range(2000)]
    source, here = write(tmp_path / "rows.jsonl", lengths), workspace(tmp_path, model)
    found = Survival().scores(source, here)
    assert found == Survival().scores(source, here)
    stay = [length for length, score in zip(lengths, found, strict=True) if score.value is not None]
    assert len(stay) / 2000 == pytest.approx(0.595, abs=0.03)
    assert min(stay) > 400
    for length, score in zip(lengths, found, strict=True):
        assert score.value in (None, float(length))
        assert (score.details["drawn"] < score.details["chance"]) == (score.value is not None)
    assert found != Survival().scores(source, dataclasses.replace(here, seed=2))
    assert all(score.value is not None for score in Survival(factor=0.0).scores(source, here))


def test_the_command_drops_the_shortest(model, tmp_path):
    source = write(tmp_path / "rows.jsonl", [5, 400, 30, 200])
    words = ["pipeline=rows", f"pipeline.path={source}", f"model.path={model}", f"output={tmp_path / 'out'}"]
    summary = synthesize(*words, "select=survival", "select.factor=1")
    kept = [json.loads(line) for line in summary.path.read_text().splitlines()]
    assert 5 not in [len(row["chosen"]) for row in kept]
    assert all("which stay with a chance of" in row["selection"]["why"] for row in kept)


@pytest.mark.parametrize("factor", [-1.0, float("inf"), float("nan")])
def test_a_factor_that_is_none_is_refused(factor):
    with pytest.raises(UserError, match=r"select\.factor="):
        Survival(factor=factor).check()
