"""`align report`: which run is better, whichever metric; what is a run and what is not; values that are no markup."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from align.core.errors import UserError
from align.report import notes, report
from align.runs.ranking import RunResult, differing, rank, read_runs
from tests.evaluation.helpers import top


def run(name: str, metric: str, value: float, **more) -> RunResult:
    return RunResult(name, {"seed": 1}, "finished", after={metric: value}, **more)


def order(metric: str, values: list[float], *, way: str = "auto", **more) -> list[float]:
    runs = [run(str(i), metric, value, **more) for i, value in enumerate(values)]
    return [found.after[metric] for found in rank(runs, metric, order=way)]


@pytest.mark.parametrize(
    "metric",
    [
        "eval_loss",
        "eval_wiki/nll",
        "perplexity/nll_sliding",
        "longwrite/repetition",
        "eval_w/word_perplexity",
    ],
)
def test_lower_is_better_by_name(metric):
    assert order(metric, [3.0, 2.0, 4.0]) == [2.0, 3.0, 4.0]


@pytest.mark.parametrize("metric", ["eval_rewards/accuracies", "retrieval/needles", "eval_logps/chosen"])
def test_higher_is_better_by_name(metric):
    assert order(metric, [3.0, 2.0, 4.0]) == [4.0, 3.0, 2.0]


def test_a_score_says_itself_what_is_better():
    """A suite of one's own counts errors; words written are neither better nor worse."""
    assert order("mine/errors", [3.0, 2.0], better={"mine/errors": "lower"}) == [2.0, 3.0]
    with pytest.raises(UserError, match="order=ascending or order=descending"):
        order("longwrite/written_words", [3.0, 2.0], better={"longwrite/written_words": None})
    words = order(
        "longwrite/written_words", [3.0, 2.0], way="ascending", better={"longwrite/written_words": None}
    )
    assert words == [2.0, 3.0]


@pytest.mark.parametrize("metric", ["eval_loss", "eval_rewards/accuracies"])
def test_no_number_comes_last(metric):
    found = order(metric, [0.6, math.nan, 0.9, 0.7, math.nan, 0.8])
    assert found[:4] == sorted([0.6, 0.7, 0.8, 0.9], reverse="loss" not in metric)
    assert all(map(math.isnan, found[4:]))


# ---- folders


def write(folder: Path, config: dict, **files) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def trained(folder: Path, value: float | None, **config) -> Path:
    own = {"method": {"name": "dpo"}, "objective": "eval_rewards/accuracies", **config}
    results = {"after": {"eval_rewards/accuracies": value}, "training": {"train_runtime": 1.0}}
    return write(folder, own, results=results)


def evaluated(
    folder: Path, mean: float, suite: str = "align.evaluation.retrieval.Retrieval", **config
) -> Path:
    scores = {"needles": {"mean": mean, "low": None, "high": None, "n": 1, "better": "higher"}}
    return write(folder, {"suite": {"_target_": suite}, **config}, summary={"scores": scores})


def test_what_other_commands_and_hydra_leave_is_no_run(tmp_path):
    trained(tmp_path / "a", 0.5)
    evaluated(tmp_path / "b", 0.5)
    write(tmp_path / "b" / ".hydra", {"suite": {"_target_": "x.Y"}})
    write(tmp_path / "rows", {"pipeline": {"_target_": "align.synthesis.logo.pipeline.Logo"}})
    assert [(found.name, found.kind, found.state) for found in read_runs(tmp_path)] == [
        ("a", "training", "finished"),
        ("b", "retrieval", "finished"),
    ]


def test_settings_are_compared_within_a_kind(tmp_path, capsys):
    """Two trainings beside an evaluation: only what tells the trainings apart has a column; null comes last."""
    trained(tmp_path / "a", None, seed=1)
    trained(tmp_path / "b", 0.25, seed=2)
    evaluated(tmp_path / "c", 0.5, seed=3, model={"path": "m"})
    found = report(top(path=str(tmp_path), metric=None, order="auto"))
    assert [one.name for one in found.ranked] == ["b", "a"]
    assert differing([one for one in read_runs(tmp_path) if one.kind == "training"]) == ["seed"]
    said = capsys.readouterr().out
    assert "model" not in said
    assert "1 run of the kind retrieval beside these: metric=retrieval/needles ranks them" in said


def test_adapters_have_one_column_and_each_its_own_settings(tmp_path):
    """Of seven runs one key names the adapter; ranks are compared among LoRAs, and places of other classes are not."""
    lora, library = "align.adapters.lora.Lora", "align.adapters.library.Library"
    adapters = [
        {"_target_": lora, "r": 8},
        {"_target_": lora, "r": 16},
        {"_target_": library, "type": "OFT", "options": {"oft_block_size": 32}},
        {"_target_": "align.adapters.half.Half", "scope": "layer"},
        {},
    ]
    for i, adapter in enumerate(adapters):
        trained(tmp_path / str(i), 0.5, adapter=adapter)
    trained(tmp_path / "5", 0.5, model={"lora": {"r": 8}})
    trained(tmp_path / "6", 0.5)
    runs = read_runs(tmp_path)
    assert [one.settings["adapter"] for one in runs] == [
        "lora",
        "lora",
        "oft",
        "half",
        "none",
        "lora",
        "none",
    ]
    assert differing(runs[:5]) == ["adapter", "adapter.r"]


def test_values_are_no_markup_and_no_formula(tmp_path, capsys):
    """What stands in brackets or between dollar signs stays as it is, in the table and the picture."""
    for i, name in enumerate(("[/b] x", "$a$ [red]y", "$\\frac$")):
        trained(tmp_path / f"run [{i}]", 0.1 * i, note=name, data={"path": f"[b]rows{i}.jsonl"})
    found = report(top(path=str(tmp_path), metric=None, order="auto"))
    assert found.picture.read_bytes().startswith(b"\x89PNG")
    said = "".join(capsys.readouterr().out.split())
    for text in ("[/b]x", "$a$[red]y", "[b]rows1.jsonl", "run[0]"):
        assert text in said


def test_many_settings_stay_readable(tmp_path, capsys, recwarn):
    """Ten settings that differ, one of them a list of sixty files."""
    for i in range(2):
        files = [f"/a/long/folder/of/predictions/{i}/task{j}.jsonl" for j in range(60)]
        evaluated(tmp_path / str(i), 0.5 + i, files=files, **{f"key{j}": i for j in range(9)})
    found = report(top(path=str(tmp_path), metric=None, order="auto"))
    said = capsys.readouterr().out
    assert len(said.splitlines()) < 40
    assert "4 more settings differ: the page has them all." in said
    assert "key8" in found.page.read_text()
    assert not [one for one in recwarn if "layout" in str(one.message)]


def test_what_a_suite_in_training_says_is_read(tmp_path):
    folder = trained(tmp_path / "a", 0.5, suites={"mine": {"_target_": "x.Mine", "key": 1}})
    scores = {"errors": {"mean": 2.0, "low": 1.0, "high": 3.0, "n": 4, "better": "lower"}}
    (folder / "suites" / "mine" / "step-2").mkdir(parents=True)
    (folder / "suites" / "mine" / "step-2" / "summary.json").write_text(json.dumps({"scores": scores}))
    (found,) = read_runs(tmp_path)
    assert found.better == {"eval_mine/errors": "lower"}


def test_folders_of_before_are_still_read(tmp_path):
    """Without directions, and with intervals always."""
    folder = evaluated(tmp_path / "a", 0.5)
    (folder / "summary.json").write_text(
        json.dumps({"scores": {"needles": {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 9}}})
    )
    (found,) = read_runs(tmp_path)
    assert (found.after, found.intervals) == (
        {"retrieval/needles": 0.5},
        {"retrieval/needles": (0.4, 0.6)},
    )


def test_a_finished_run_without_the_metric_is_said_to_lack_it():
    """`b12: finished` explained nothing."""
    runs = [
        RunResult("a", {}, "finished", after={"eval_loss": 1.0}),
        RunResult("b", {}, "finished", after={}),
        RunResult("c", {}, "failed", "no memory"),
        RunResult("d", {}, "unfinished"),
    ]
    lines = list(notes(runs, runs[1:], {"training"}, [], "eval_loss"))
    assert lines == ["b: has no eval_loss", "c: failed: no memory", "d: unfinished"]
