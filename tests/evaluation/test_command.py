"""`align evaluate` as a user meets it: suites on a tiny model, a second start that asks nothing, bad input."""

from __future__ import annotations

import io
import json
import math
import sys
from datetime import timedelta

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from align import cli
from align.core.errors import UserError
from align.evaluation.ask import join_processes
from align.evaluation.intervals import Measure, mean_interval
from align.evaluation.preference import Preference
from align.evaluation.suite import Result, ScoredPairs, show_result, write_result
from align.runs.exclusive import exclusive
from tests.rows import make_rows
from tests.tiny import save_tiny, tiny_model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_tiny(folder)
    return folder


@pytest.fixture
def run(monkeypatch, capfd, model_folder, tmp_path):
    def call(*overrides: str) -> tuple[int, str, str]:
        base = [f"model.path={model_folder}", f"output={tmp_path / 'out'}"]
        monkeypatch.setattr(sys, "argv", ["align", "evaluate", *base, *overrides])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        out, err = capfd.readouterr()
        return code, out, err

    return call


def test_retrieval(run, tmp_path):
    (tmp_path / "hay.txt").write_text(" ".join(f"w{i % 100 + 8} w9 w10 w11." for i in range(200)))
    settings = [
        f"suite.documents={tmp_path / 'hay.txt'}",
        "suite.lengths=[200]",
        "suite.depths=[0.5]",
        "suite.samples=1",
        "suite.max_new_tokens=4",
    ]
    code, out, err = run(*settings)
    assert (code, "Retrieval" in out) == (0, True), err
    first = (tmp_path / "out" / "samples.jsonl").read_text()
    assert json.loads(first)["found"] in (0.0, 1.0)
    assert run(*settings)[0] == 0
    assert (tmp_path / "out" / "samples.jsonl").read_text() == first
    code, _, err = run(*settings, "suite.samples=2")
    assert (code, "suite.samples (1 → 2)" in err) == (2, True), err


def test_preference(run, tmp_path):
    """Every row of the data is measured, with the training forward; here with SimPO's reward, no reference."""
    rows = make_rows(tmp_path / "rows.jsonl", count=7)
    code, _, err = run("suite=preference", "method=simpo", f"data.path={rows}", "trainer.use_cpu=true")
    assert code == 0, err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["scores"]["rewards/accuracies"]["n"] == 7
    records = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == [f"rows.jsonl:{i}" for i in range(1, 8)]
    margins = [record["rewards/margins"] for record in records]
    assert summary["scores"]["rewards/margins"]["mean"] == pytest.approx(np.mean(margins))


def test_preference_by_length():
    """Two rows of 100 and one of 600 tokens; the row that compares nothing takes no part."""
    metrics = np.full((4, 7), np.nan)
    metrics[:3, 3], metrics[:3, 4] = [1.0, 3.0, 5.0], [1.0, 0.0, 1.0]
    lengths = (100, 100, 600, 100)
    rows = [{"source": f"r:{i}", "longest_sequence": length} for i, length in enumerate(lengths, start=1)]
    result = Preference().result(ScoredPairs(metrics, rows))
    assert result.scores["rewards/margins"].mean == 3.0
    assert result.details["by_length"]["rewards/accuracies"]["0"]["mean"] == 0.5
    assert result.details["by_length"]["rewards/accuracies"]["512"]["n"] == 1
    assert result.notes == ["1 of 4 rows of data.path have no rejected answer and are in no score."]
    with pytest.raises(UserError, match="nothing to prefer"):
        Preference().result(ScoredPairs(metrics[3:], rows[3:]))


def test_short_pairs(run, tmp_path):
    """As the suite preference measures them, under the names of the short suite; a second start measures nothing."""
    rows = make_rows(tmp_path / "short.jsonl", count=5)
    settings = ("method=simpo", "trainer.use_cpu=true")
    code, _, err = run("suite=short", f"suite.pairs={rows}", *settings)
    assert code == 0, err
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["scores"]
    assert {name: score["n"] for name, score in found.items()} == {
        "pairs/rewards/accuracies": 5,
        "pairs/rewards/margins": 5,
    }
    code, _, err = run("suite=short", f"suite.pairs={rows}", *settings)
    assert (code, "Loading weights" in err) == (0, False), err
    again = f"output={tmp_path / 'again'}"
    assert run("suite=preference", f"data.path={rows}", again, *settings)[0] == 0
    same = json.loads((tmp_path / "again" / "summary.json").read_text())["scores"]
    for name in ("rewards/accuracies", "rewards/margins"):
        assert found[f"pairs/{name}"]["mean"] == pytest.approx(same[name]["mean"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["suite=novel"], "suite=novel is not known: use"),
        (["suite.samples=0"], "suite.samples=0 is too small"),
        (["suite.samples=two"], "suite.samples=two has to be a number"),
        (["suite=longwrite"], "suite.path is not set"),
        (["suite=longbench"], "has to name .jsonl files"),
        (["suite=preference", "data.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["suite=short"], "suite.tasks is empty"),
        (["suite=short", "suite.pairs=nowhere.jsonl"], "suite.pairs=nowhere.jsonl"),
        (["suite.documents=nowhere"], "nowhere does not exist"),
        (["model.path=nowhere/at/all"], "is no model folder"),
    ],
)
def test_bad_input_is_one_sentence(run, overrides, message):
    code, _, err = run(*overrides)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_short_tasks_of_ones_own(run, tmp_path):
    """lm-eval reads a local task: the continuation with the higher log-prob is the answer."""
    pytest.importorskip("lm_eval", reason="needs the extra `lm-eval`")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = [{"question": f"w{i} w9", "choices": ["w20", "w30"], "answer": i % 2} for i in range(8, 14)]
    (tasks / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tasks / "mine.yaml").write_text(
        "task: mine\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tasks / 'rows.jsonl'}}}}}\n"
        "output_type: multiple_choice\n"
        "test_split: test\n"
        "doc_to_text: '{{question}}'\n"
        "doc_to_choice: '{{choices}}'\n"
        "doc_to_target: answer\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    code, _, err = run("suite=short", "suite.tasks=[mine]", f"suite.include_path={tasks}")
    assert code == 0, err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["scores"]["mine/acc"]["n"] == 6
    assert summary["scores"]["mine/acc"]["mean"] == pytest.approx(
        summary["lm_eval"]["mine"]["mine"]["acc,none"]
    )


# ---- answers belong to the weights, files and documents that gave them


def test_other_weights_are_not_given_the_old_ones_answers(run, tmp_path):
    """A model folder that was written over: refused, and asked again with resume=never; perplexity alike."""
    model = tmp_path / "mine"
    save_tiny(model)
    (tmp_path / "q.jsonl").write_text(json.dumps({"prompt": "w8 w9 w10", "answers": ["w20"]}) + "\n")
    (tmp_path / "d.txt").write_text(" ".join(f"w{i % 90 + 8}" for i in range(40)))
    asked = ("suite=questions", f"suite.path={tmp_path / 'q.jsonl'}", "suite.max_new_tokens=4")
    read = ("suite=perplexity", f"suite.documents={tmp_path / 'd.txt'}", f"output={tmp_path / 'read'}")
    found = {}
    for seed in (0, 1):
        tiny_model(seed=seed).save_pretrained(model)
        for settings, key in ((asked, "prediction"), (read, "nll")):
            place = tmp_path / ("read" if settings is read else "out") / "samples.jsonl"
            code, _, err = run(*settings, f"model.path={model}")
            if seed:
                assert (code, "other weights than the model has now" in err) == (2, True), err
                assert json.loads(place.read_text())[key] == found[key]
                code, _, err = run(*settings, f"model.path={model}", "resume=never")
            assert code == 0, err
            assert json.loads(place.read_text())[key] != found.get(key)
            found[key] = json.loads(place.read_text())[key]


def test_a_folder_in_use_loses_nothing(run, tmp_path):
    """`resume=never` empties no folder that another run works in."""
    (tmp_path / "q.jsonl").write_text(json.dumps({"prompt": "w8 w9 w10", "answers": ["w20"]}) + "\n")
    asked = ("suite=questions", f"suite.path={tmp_path / 'q.jsonl'}", "suite.max_new_tokens=2")
    assert run(*asked)[0] == 0
    ledger = tmp_path / "out" / "work" / "questions.jsonl"
    before = ledger.read_text()
    with exclusive(tmp_path / "out"):
        code, _, err = run(*asked, "resume=never")
    assert (code, "is in use by another run" in err) == (2, True), err
    assert ledger.read_text() == before


def test_how_a_server_is_asked_may_change(run, tmp_path):
    """A limit of time that was too short, of the model's server or the judge's: the folder goes on."""
    (tmp_path / "p.jsonl").write_text(
        json.dumps({"prompt": "Write", "length": 5, "response": "one two"}) + "\n"
    )
    written = ("suite=longwrite", f"suite.predictions={tmp_path / 'p.jsonl'}")
    served = ("generator=openai", "generator.model=m", "generator.base_url=http://localhost:9/v1")
    code, _, err = run(*written, *served)
    assert code == 0, err
    code, _, err = run(
        *written, *served, "generator.timeout=1200", "generator.base_url=http://localhost:8/v1"
    )
    assert code == 0, err
    code, _, err = run(*written, *served, "trainer.per_device_eval_batch_size=3")
    assert code == 0, err
    code, _, err = run(*written, *served, "trainer.bf16=true")
    assert (code, "trainer.bf16" in err) == (2, True), err
    code, _, err = run(*written, *served, "generator.model=other")
    assert (code, "generator.model (m → other)" in err) == (2, True), err


def test_processes_wait_longer_than_torch_would(monkeypatch):
    asked = []
    monkeypatch.setattr("accelerate.PartialState", lambda **given: asked.append(given))
    join_processes(cpu=True)
    assert asked == [{"cpu": True, "timeout": timedelta(days=7)}]


def test_no_markup_and_no_lost_answers(run, tmp_path):
    """Groups and folders are named as anybody likes; what was asked is not lost to a bracket."""
    rows = [
        {"prompt": f"w{i}", "answers": ["w20"], "group": group}
        for i, group in ((8, "[/b] long"), (9, "[en] s"))
    ]
    (tmp_path / "[q].jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    output = tmp_path / "o_[run]1"
    settings = ("suite=questions", f"suite.path='{tmp_path / '[q].jsonl'}'", f"output='{output}'")
    code, out, err = run(*settings, "suite.max_new_tokens=2")
    assert code == 0, err
    assert "found, [/b] long" in out
    assert "found, [en] s" in out
    assert f"samples   {output / 'samples.jsonl'}" in out


def test_what_is_no_number_is_null(tmp_path):
    """JSON has no NaN: null, counted and said; a picture is whole or absent."""
    figure = Figure()
    records = [{"id": "a", "nll": math.nan}, {"id": "b", "nll": 1.0}, {"id": "c", "nll": [math.inf]}]
    score = Measure(mean_interval, "lower").of([math.nan, 1.0])
    result = Result(records, {"nll": score}, {"by": {"a": -math.inf}}, {"p.png": figure}, ["Read this."])
    write_result(result, tmp_path)

    def strict(text: str) -> dict:
        return json.loads(text, parse_constant=lambda name: pytest.fail(name))

    assert [strict(line)["nll"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()] == [
        None,
        1.0,
        [None],
    ]
    summary = strict((tmp_path / "summary.json").read_text())
    assert (summary["scores"]["nll"]["mean"], summary["scores"]["nll"]["better"]) == (None, "lower")
    assert (summary["by"], summary["not_numbers"], summary["notes"]) == ({"a": None}, 2, ["Read this."])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.png", "samples.jsonl", "summary.json"]
    said = Console(file=io.StringIO(), width=120)
    show_result(result, tmp_path, said, title="[b]Perplexity: x")
    for text in (
        "[b]Perplexity",
        "none: some values are no numbers",
        "Read this.",
        "2 values are no numbers",
    ):
        assert text in said.file.getvalue()


def test_a_diverged_row_is_counted_and_a_row_alone_is_not():
    """Accuracy is NaN where nothing is compared; a margin that is NaN beside an accuracy is what the model gave."""
    metrics = np.full((3, 7), np.nan)
    metrics[0, 3:5], metrics[1, 4] = [1.0, 1.0], 0.0
    rows = [{"source": f"r:{i}", "longest_sequence": 9} for i in range(3)]
    result = Preference().result(ScoredPairs(metrics, rows))
    assert result.scores["rewards/accuracies"].mean == 0.5
    assert math.isnan(result.scores["rewards/margins"].mean)
    assert [record["rewards/margins"] is None for record in result.records] == [False, False, True]
