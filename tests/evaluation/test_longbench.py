"""LongBench files: asked, cut in the middle, scored; predictions made elsewhere scored."""

from __future__ import annotations

import json

import pytest
from hydra import compose, initialize_config_module

from align.core.errors import UserError
from align.core.instantiate import build
from align.evaluation.longbench import LongBench, cut_middle
from tests.evaluation.helpers import Answers, evaluation
from tests.tiny import tiny_tokenizer


def configured(*overrides: str) -> LongBench:
    with initialize_config_module("hydra_conf", version_base="1.3"):
        return build(compose("evaluate", ["suite=longbench", *overrides]), "suite")


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def test_asks_and_scores(tmp_path):
    rows = [
        {"context": "w8 " * 30, "input": "which", "answers": ["red fox"], "length": 100, "all_classes": None},
        {"context": "w9 " * 30, "input": "which", "answers": ["owl"], "length": 9000, "all_classes": None},
    ]
    path = write(tmp_path / "qasper_e.jsonl", rows)
    result = configured(f"suite.paths=[{path}]").run(
        evaluation(tmp_path / "out", Answers(lambda _: "A red fox"))
    )
    assert result.details["longbench"] == {"qasper_e": 50.0}
    assert result.details["longbench_e"] == {"qasper_e": {"0-4k": 100.0, "8k+": 0.0}}
    assert result.scores["qasper_e"].n == 2


def test_scores_predictions(tmp_path):
    rows = [
        {"pred": "Date and City\nmore", "answers": ["City"], "all_classes": ["Date", "City"], "length": 10},
        {"pred": "Date", "answers": ["Date"], "all_classes": ["Date", "City"], "length": 10},
    ]
    path = write(tmp_path / "trec.jsonl", rows)
    model = Answers(str)
    result = configured(f"suite.predictions=[{path}]").run(evaluation(tmp_path / "out", model))
    assert result.details["longbench"] == {"trec": 75.0}
    assert model.asked == 0


def test_the_middle_is_cut():
    text = " ".join(f"w{i}" for i in range(8, 28))
    cut = cut_middle(text, tiny_tokenizer(), 6)
    assert cut.split() == ["w8", "w9", "w10w25", "w26", "w27"]
    assert cut_middle(text, tiny_tokenizer(), 20) == text


@pytest.mark.parametrize(
    ("names", "override", "message"),
    [
        (["qasper.jsonl"], "suite.paths=[]", "has to name"),
        (["novel.jsonl"], "suite.paths=[{0}]", "no task of LongBench"),
        ([], "suite.paths=[nowhere/qasper.jsonl]", "does not exist"),
        (["qasper.jsonl"], "suite.predictions=[{0}]", "qasper.jsonl:1 has no `pred`"),
    ],
)
def test_refusals(tmp_path, names, override, message):
    paths = [write(tmp_path / name, [{"context": "c", "input": "i", "answers": ["a"]}]) for name in names]
    with pytest.raises(UserError, match=message):
        configured(override.format(*paths)).run(evaluation(tmp_path / "out", Answers(str)))


def test_broken_json_is_named(tmp_path):
    path = tmp_path / "qasper.jsonl"
    path.write_text('{"context": "c"\n')
    with pytest.raises(UserError, match=r"qasper.jsonl:1 is no JSON"):
        configured(f"suite.paths=[{path}]").run(evaluation(tmp_path / "out", Answers(str)))
