"""What a run ends with: table, JSON, picture."""

from __future__ import annotations

import io
import json

from rich.console import Console

from align.core.files import write_json
from align.training import results
from align.training.progress import ProgressDisplay, describe

HISTORY = [
    {"step": 1, "loss": 2.0, "rewards/margins": 0.1, "rewards/accuracies": 0.5, "tokens_per_second": 90.0,
     "memory/peak_gb": 1.5, "num_tokens": 100.0},
    {"step": 1, "eval_loss": 1.9, "eval_rewards/margins": 0.2, "eval_rewards/accuracies": 0.5},
    {"step": 2, "loss": 1.0, "rewards/margins": 0.4, "rewards/accuracies": 1.0, "tokens_per_second": 110.0,
     "memory/peak_gb": 1.75, "num_tokens": 220.0},
    {"step": 2, "train_runtime": 3.0, "train_loss": 1.5},
]  # fmt: skip
BEFORE = {"eval_loss": 2.0, "eval_rewards/margins": 0.0, "eval_rewards/accuracies": 0.5}
AFTER = {"eval_loss": 1.5, "eval_rewards/margins": 0.25, "eval_rewards/accuracies": 0.75}


def test_costs():
    """Median of 90 and 110 tokens/s; the larger peak; the last count; the Trainer's seconds."""
    assert results.training_costs(HISTORY) == {
        "tokens_per_second": 100.0,
        "memory/peak_gb": 1.75,
        "num_tokens": 220.0,
        "train_runtime": 3.0,
    }
    assert results.training_costs([]) == {}


def test_table_shows_before_after_and_change():
    console = Console(file=io.StringIO(), width=100)
    summary = {"before": BEFORE, "after": AFTER, "training": results.training_costs(HISTORY)}
    console.print(results.summary_table(summary, rows=7, kind="logo"))
    text = console.file.getvalue()
    assert "logo: 7 held-out rows" in text
    assert "50.0%" in text
    assert "+25.0%" in text
    assert "−0.5000" in text
    assert "1.75 GB" in text


def test_what_is_not_finite_is_shown_and_written_as_such(tmp_path):
    """A mean that is no number is neither left out of the table nor written as `NaN`, which is no JSON."""
    write_json(tmp_path / "results.json", {"after": {"eval_loss": float("nan")}, "all": [float("inf"), 1.0]})
    read = json.loads((tmp_path / "results.json").read_text())
    assert read == {"after": {"eval_loss": None}, "all": [None, 1.0]}
    console = Console(file=io.StringIO(), width=100)
    summary = {"before": BEFORE, "after": AFTER | read["after"], "training": {}}
    console.print(results.summary_table(summary, rows=7, kind="logo"))
    assert "not finite" in console.file.getvalue()


def test_picture_and_json(tmp_path):
    results.draw_training(HISTORY, BEFORE, AFTER, tmp_path / "training.png")
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    results.draw_training([], {}, {}, tmp_path / "empty.png")
    write_json(tmp_path / "results.json", {"b": 1, "a": 2})
    assert json.loads((tmp_path / "results.json").read_text()) == {"a": 2, "b": 1}
    assert not list(tmp_path.glob(".*"))


def test_lines_where_there_is_no_terminal():
    class State:
        is_world_process_zero, global_step, max_steps = True, 3, 9

    console = Console(file=io.StringIO(), width=200)
    display = ProgressDisplay(console)
    display.on_log(None, State(), None, logs=HISTORY[0])
    display.on_log(None, State(), None, logs={"train_runtime": 1.0})
    display.on_evaluate(None, State(), None, metrics=AFTER)
    assert console.file.getvalue().splitlines() == [
        f"step 3/9  {describe(HISTORY[0])}",
        "held-out at step 3:  loss 1.5000  accuracy 75%  margin 0.250",
    ]
