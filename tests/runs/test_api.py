"""Commands from Python: the same configuration, the same run, a typed result."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset
from hydra import compose as hydra_compose
from hydra import initialize_config_module

import align
from align.core.errors import UserError
from align.runs.api import compose, store
from align.training.finish import TrainResult
from tests.test_cli import make_rows
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    save_tiny(folder / "model")
    make_rows(folder / "rows.jsonl", 8)
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def own_cache(folder, monkeypatch):
    monkeypatch.setenv("ALIGN_CACHE", str(folder / "cache"))


def overrides(folder, output):
    return [
        *(f"model.path={folder / 'model'}", f"output={folder / output}", "method=dpo", "model.dtype=float32"),
        *("trainer.max_steps=2", "trainer.gradient_accumulation_steps=1", "trainer.learning_rate=1e-3"),
    ]


def test_the_configuration_is_the_command_lines():
    words = ["method=longpo", "trainer.max_steps=7", "positions=logo"]
    with initialize_config_module("hydra_conf", version_base="1.3"):
        assert compose("train", words) == hydra_compose("train", words)


@pytest.mark.parametrize("kind", ["list", "dataset", "path"])
def test_training_on_rows_in_memory_is_training_on_their_file(folder, rows, kind):
    given = {"list": {"data": rows}, "dataset": {"data": Dataset.from_list(rows)}, "path": {}}[kind]
    path = [f"data.path={folder / 'rows.jsonl'}"] if kind == "path" else []
    result = align.train(*overrides(folder, kind), *path, **given)
    assert isinstance(result, TrainResult)
    assert result.before["eval_loss"] == pytest.approx(0.693147, abs=1e-6)
    assert result.objective == result.after["eval_rewards/accuracies"]
    written = json.loads((result.output / "results.json").read_text())
    assert (result.after, result.training, result.data) == tuple(
        written[k] for k in ("after", "training", "data")
    )
    assert result.model is not None
    assert (result.model / "config.json").is_file()
    # The loss of the trained policy is the same to the last digit, wherever the rows came from.
    losses = folder / "losses.json"
    known = json.loads(losses.read_text()) if losses.is_file() else []
    losses.write_text(json.dumps([*known, result.after["eval_loss"]]))
    assert len({*known, result.after["eval_loss"]}) == 1


def test_the_same_rows_are_one_file_and_a_run_goes_on(folder, rows):
    first, again, other = store(rows), store([dict(row) for row in rows]), store(rows[1:])
    assert first == again != other
    assert [json.loads(line) for line in first.read_text().splitlines()] == rows
    once = store(Dataset.from_list(rows))
    written = once.stat().st_mtime_ns
    assert once == store(Dataset.from_list(rows))
    assert once.stat().st_mtime_ns == written  # by which tokenised rows are found again


def test_inspect_and_evaluate_take_rows(folder, rows):
    found = align.inspect(f"model.path={folder / 'model'}", "rows=0", data=rows)
    assert found.counts["rows"] == 8
    assert {finding.kind for finding in found.findings} <= {"leak"}
    scored = align.evaluate(
        *("suite=preference", "method=simpo", f"model.path={folder / 'model'}", "model.dtype=float32"),
        f"output={folder / 'evaluated'}",
        data=rows,
    )
    assert len(scored.records) == 8
    assert all(interval.n == 8 for interval in scored.scores.values())


def test_plan_and_report_are_typed(folder):
    planned = align.plan("model=qwen2_5_7b", "method=dpo", "rows.prompt=30000")
    assert planned.best is not None
    assert planned.given.memory.total > 0
    reported = align.report(f"path={folder}")
    assert {run.name for run in reported.ranked} >= {"list", "dataset", "path"}
    assert reported.page.is_file()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: align.train("method=nothing"), "method=nothing is not known"),
        (lambda: align.train("nokey=1"), "nokey is no key of this command"),
        (lambda: align.train(), "data.path is not set"),
        (lambda: align.train(data=[1, 2]), "data: entry 1 is a int, and has to be a dictionary"),
        (lambda: align.train(data=[{"prompt": {1, 2}}]), "data: entry 1 cannot be written as JSON"),
        (lambda: align.train(row=[]), "takes overrides and data, eval_data, config_dir, not row"),
        (lambda: align.report("path=.", data=[]), "takes overrides and config_dir, not data"),
        (lambda: align.inspect("data.path=a.jsonl", data=[]), "data= and data.path= are both given"),
        (
            lambda: align.evaluate(eval_data=[{"prompt": "a"}]),
            "measures the rows of data.path: name these there",
        ),
        (lambda: align.evaluate(data=[{"prompt": "a"}]), "Retrieval measures no rows of data.path"),
        (lambda: align.train("data.pth=a"), r"did you mean data\.path"),
        (lambda: align.verify("tolerance=0"), "tolerance=0 must be a positive number"),
    ],
)
def test_a_mistake_is_one_sentence(call, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_command_is_a_module_too():
    """`import align.train` and `python -m align.train` go on working."""
    import importlib

    module = importlib.import_module("align.train")
    assert module is align.train
    assert callable(module)
    assert callable(module.main)
    assert align.UserError is UserError


def test_a_method_by_its_name():
    method = align.method("logo", beta=3.0)
    assert method.name == "logo"
    assert method.loss.keywords["beta"] == 3.0
    assert method.needs.reference == "none"
    with pytest.raises(UserError, match="method=lgoo is not known"):
        align.method("lgoo")
    with pytest.raises(UserError, match=r"method\.loss\.temper is unknown"):
        align.method("logo", temper=1.0)
