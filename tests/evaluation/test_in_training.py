"""Suites while a policy trains: their scores join the held-out metrics, and training does not notice them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from align import cli
from align.core.errors import UserError
from align.evaluation.in_training import set_direction
from align.evaluation.intervals import Score
from align.runs import exit_codes
from tests.longseq.plain import assert_close
from tests.rows import make_rows
from tests.tiny import save_tiny

NEEDLES = ("+suite@suites.needles=retrieval", "suites.needles.lengths=[128]", "suites.needles.depths=[0.5]")
PAIRS = ("+suite@suites.pairs=preference", "+suite@suites.short=short")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny(folder)
    return folder


@pytest.fixture
def align(monkeypatch, capfd, tmp_path):
    """Runs a command in this process; returns (exit code, stdout, stderr)."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["align", *words])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def train(align, model_folder, tmp_path):
    """A run of two steps that holds rows out, evaluated before, between and after."""
    rows = make_rows(tmp_path / "rows.jsonl")
    (tmp_path / "hay.txt").write_text(" ".join(f"w{i % 100 + 8} w9 w10 w11 w12." for i in range(200)))

    def call(name: str, *more: str) -> tuple[int, str, str]:
        return align(
            "train",
            f"model.path={model_folder}",
            f"data.path={rows}",
            f"output={tmp_path / name}",
            "data.eval_size=2",
            "trainer.max_steps=2",
            "trainer.learning_rate=1e-2",
            "trainer.eval_strategy=steps",
            "trainer.eval_steps=1",
            "trainer.gradient_accumulation_steps=1",
            *more,
        )

    return call


def needles(tmp_path: Path) -> tuple[str, ...]:
    return (*NEEDLES, f"suites.needles.documents={tmp_path / 'hay.txt'}", "suites.needles.max_new_tokens=4")


@pytest.mark.parametrize("lora", [0, 4])
def test_scores_join_the_metrics_and_the_weights_do_not_notice(train, align, tmp_path, lora):
    short = make_rows(tmp_path / "short.jsonl", count=3)
    settings = (f"model.lora.r={lora}", "memory.mlp_chunk=16")
    code, _, err = train("with", *settings, *needles(tmp_path), *PAIRS, f"suites.short.pairs={short}")
    assert code == 0, err
    assert train("without", *settings)[0] == 0
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    weights = [load_file(tmp_path / run / "model" / name) for run in ("with", "without")]
    assert_close(weights[0], weights[1], tolerance=1e-7)

    results = json.loads((tmp_path / "with" / "results.json").read_text())
    for when in ("before", "after"):
        assert 0 <= results[when]["eval_needles/needles"] <= 1
        assert 0 <= results[when]["eval_short/pairs/rewards/accuracies"] <= 1
        assert results[when]["eval_pairs/rewards/accuracies"] == results[when]["eval_rewards/accuracies"]
    for step in (0, 1, 2):
        folder = tmp_path / "with" / "suites" / "needles" / f"step-{step}"
        assert len((folder / "samples.jsonl").read_text().splitlines()) == 2
        assert json.loads((folder / "summary.json").read_text())["scores"]["needles"]["n"] == 2
        assert (folder / "needles.png").is_file()
        assert f"needles at step {step}: needles" in err

    code, _, err = align("report", f"path={tmp_path}", "metric=eval_needles/needles")
    assert code == 0, err


def test_a_run_begun_anew_asks_again(train, tmp_path):
    assert train("run", *needles(tmp_path))[0] == 0
    ledger = tmp_path / "run" / "suites" / "needles" / "step-0" / "work" / "retrieval.jsonl"
    ledger.write_text("")
    assert train("run", *needles(tmp_path), "resume=never")[0] == 0
    assert len(ledger.read_text().splitlines()) == 2


def test_answers_of_other_weights_are_asked_again(train, tmp_path):
    """As after going back to an older checkpoint: what lies at a step is taken for the weights that gave it alone."""
    settings = (*needles(tmp_path), "trainer.save_steps=1")
    assert train("run", *settings)[0] == 0
    folder = tmp_path / "run" / "suites" / "needles"
    ledger = folder / "step-2" / "work" / "retrieval.jsonl"
    kept = (folder / "step-2" / "samples.jsonl").read_text()
    ledger.write_text("".join(line.replace('"text": "', '"text": "x ') for line in ledger.open()))
    (folder / "step-2" / "weights.txt").write_text("others")
    shutil.rmtree(tmp_path / "run" / "model")
    code, _, err = train("run", *settings, f"resume={tmp_path / 'run' / 'checkpoint-1'}")
    assert code == 0, err
    assert "answers of other weights: asked again" in " ".join(err.split())
    assert (folder / "step-2" / "samples.jsonl").read_text() == kept


@pytest.mark.parametrize(
    ("overrides", "environment", "sentence"),
    [
        (["suites.needles.samples=0"], {}, "suite.samples=0 is too small"),
        (["suites.needles.sampels=1"], {}, "sampels"),
        (["data.eval_size=0"], {}, "measures held-out rows, and there are none"),
        ([], {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "suites.needles: under FSDP and ZeRO-3"),
    ],
    ids=["range", "unknown key", "nothing held out", "ZeRO-3"],
)
def test_what_cannot_be_asked_is_refused(train, tmp_path, monkeypatch, overrides, environment, sentence):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    code, _, err = train("run", *needles(tmp_path), *overrides)
    assert code == exit_codes.USAGE
    assert sentence in err
    assert not (tmp_path / "run" / "model").exists()


TEXTS = (
    "+suite@suites.text=perplexity",
    "suites.text.length=64",
    "suites.text.window=32",
    "suites.text.stride=16",
    "trainer.metric_for_best_model=eval_text/nll",
)


@pytest.mark.parametrize(("word", "greater"), [(None, False), ("true", True)])
def test_the_best_model_has_the_better_values_of_a_suites_score(train, tmp_path, word, greater):
    """Of a negative log-prob low values are the better ones; transformers takes the highest unless it is told."""
    own = () if word is None else (f"trainer.greater_is_better={word}",)
    code, _, err = train(
        "run",
        *TEXTS,
        f"suites.text.documents={tmp_path / 'hay.txt'}",
        "trainer.load_best_model_at_end=true",
        "trainer.save_strategy=steps",
        "trainer.save_steps=1",
        *own,
    )
    assert code == 0, err
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())
    values = {each["step"]: each["eval_text/nll"] for each in state["log_history"] if "eval_text/nll" in each}
    best = (max if greater else min)((1, 2), key=lambda step: values[step])
    assert values[1] != values[2]
    assert state["best_global_step"] == best


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["objective=eval_text/nil"], "objective=eval_text/nil is no held-out metric: use eval_"),
        (
            ["trainer.metric_for_best_model=txt"],
            "trainer.metric_for_best_model=eval_txt is no held-out metric",
        ),
    ],
)
def test_metrics_that_nothing_measures_end_the_run_before_its_first_step(
    train, tmp_path, overrides, sentence
):
    code, _, err = train("run", *TEXTS, f"suites.text.documents={tmp_path / 'hay.txt'}", *overrides)
    assert code == exit_codes.USAGE
    assert sentence in err
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_rows_without_rejected_answers_are_judged_by_their_loss(train, align, tmp_path):
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    plain = [{key: row[key] for key in ("context", "question", "chosen")} for row in rows]
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    code, out, err = train("run", "method=sft", f"data.path={tmp_path / 'plain.jsonl'}")
    assert code == 0, err
    assert (
        "eval_rewards/accuracies" not in json.loads((tmp_path / "run" / "results.json").read_text())["after"]
    )
    code, out, err = align("report", f"path={tmp_path / 'run'}")
    assert code == 0, err
    assert "eval_loss" in out


def test_a_score_without_a_direction_needs_the_users_word():
    arguments = SimpleNamespace(metric_for_best_model="writing/words", greater_is_better=True)
    score = Score(mean=200.0, low=None, high=None, n=2, better=None)
    with pytest.raises(UserError, match=r"set trainer\.greater_is_better"):
        set_direction(arguments, {"eval_writing/words": score})
    set_direction(arguments, {"eval_other/words": score})
    assert arguments.greater_is_better
