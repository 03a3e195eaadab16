"""`align synthesize` in a process of its own, killed at random moments, selected, and inspected."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time

import pytest

from align import inspect
from tests.forked import forked, run
from tests.synthesis.scripted import save_model, write_documents

SMALL = {
    "longpo": (
        "target_length=600",
        "context_min_tokens=40",
        "chunk_min_tokens=20",
        "chunk_max_tokens=36",
        "turns=3",
        "max_question_tokens=32",
        "max_new_tokens=12",
        "answer_temperature=1.0",
        "block_rows=4",
    ),
    "longwriter": (
        "sampled=2",
        "agent_written=1",
        "self_lengthened=1",
        "max_new_tokens=16",
        "temperature=1.0",
        "block_rows=4",
        "agent_write.min_step_words=3",
        "agent_write.max_step_words=12",
        "agent_write.max_step_tokens=12",
        "agent_write.max_plan_tokens=8",
        "agent_write.step_tries=2",
        "self_lengthen.rounds=1",
        "self_lengthen.max_new_tokens=16",
    ),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    save_model(folder / "model")
    write_documents(folder / "documents.jsonl", 6)
    rows = [{"prompt": f"bardel fingor {i} in {10 + i} words"} for i in range(6)]
    (folder / "instructions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def words(inputs, output, name, *overrides):
    source = "documents" if name == "longpo" else "instructions"
    return [
        *(f"pipeline={name}", f"output={output}"),
        *("allow_targets=[tests]", "generator._target_=tests.synthesis.scripted.ScriptedSettings"),
        *("+generator.pause=0.02", "generator.batch_size=3", f"model.path={inputs / 'model'}"),
        f"pipeline.{source}={inputs / source}.jsonl",
        *(f"pipeline.{setting}" for setting in SMALL[name]),
        *overrides,
    ]


def synthesize(*words):
    """The command as a user types it; what it shows."""
    command = [sys.executable, "-m", "align.synthesize", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "random"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def calls(output):
    """Finished calls on the disk."""
    return sum(path.read_bytes().count(b"\n") for path in (output / "work").glob("*.jsonl"))


def kill_and_compare(inputs, tmp_path, name, *, kills):
    """As many kills of one run, each when a random number of calls is done; then the rows of an unbroken run.

    The unbroken run hashes words otherwise than the others, which are forked.
    """
    synthesize(*words(inputs, tmp_path / "whole", name))
    expected = (tmp_path / "whole" / "train.jsonl").read_bytes()
    total = calls(tmp_path / "whole")
    assert len(expected.splitlines()) >= 4 and total > 20
    broken = tmp_path / "broken"
    argv = ["align", "synthesize", *words(inputs, broken, name)]
    rng = random.Random(kills)
    for moment in sorted(rng.sample(range(total - 2), kills)):
        process = forked(argv)
        while process.is_alive() and calls(broken) < moment:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.02)
        process.kill()
        process.join()
        assert not (broken / "train.jsonl").exists()
    assert run(argv) == [0], (tmp_path / "broken.log").read_text()
    assert (broken / "train.jsonl").read_bytes() == expected
    assert calls(broken) == total
    return tmp_path / "whole"


def test_a_killed_run_ends_with_the_same_rows_and_a_card_and_passes_inspection(
    inputs, tmp_path, monkeypatch, capsys
):
    folder = kill_and_compare(inputs, tmp_path, "longpo", kills=1)
    card = (folder / "README.md").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert f"# {summary['rows']} rows" in card and "## Samples" in card and "target_length: 600" in card
    for reason, number in summary["dropped"].items():
        assert f"| dropped: {reason} | {number} |" in card
    for picture in ("lengths.png", "margins.png"):
        assert f"({picture})" in card and (folder / picture).read_bytes().startswith(b"\x89PNG")
    row = json.loads((folder / "train.jsonl").read_text().splitlines()[0])
    assert row["questions"][0] in card and row["chosens"][0] in card and row["rejecteds"][0] in card

    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    assert look(monkeypatch, inputs, folder / "train.jsonl") == 0, capsys.readouterr().out
    row["short_prompts"][0] = "a secret"
    (tmp_path / "leak.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    assert look(monkeypatch, inputs, tmp_path / "leak.jsonl", "data.eval_size=0") == 1
    shown = capsys.readouterr().out
    assert "leak.jsonl:1: 1 of 1 paragraphs of short context 1 are not in the context." in shown
    assert "leak.jsonl:2: the same prompt and answers as leak.jsonl:1." in shown


def look(monkeypatch, inputs, path, *overrides):
    monkeypatch.setattr(
        "sys.argv",
        ["align inspect", f"data.path={path}", f"model.path={inputs / 'model'}", "rows=0", *overrides],
    )
    try:
        inspect.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SMALL))
def test_ten_random_kills_change_no_row(inputs, tmp_path, name):
    kill_and_compare(inputs, tmp_path, name, kills=10)


@pytest.mark.slow
def test_selection_behind_a_pipeline_and_on_rows_that_exist(inputs, tmp_path):
    """Three of LongWriter's pairs by margin; then two of these by length, without any call."""
    folder = tmp_path / "margins"
    shown = synthesize(*words(inputs, folder, "longwriter", "select=margin", "select.keep=3"))
    assert "not selected by margin" in shown
    kept = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    made = [json.loads(line) for line in (folder / "unselected" / "train.jsonl").read_text().splitlines()]
    best = sorted(made, key=lambda row: -row["margin"])[:3]
    assert {row["id"] for row in kept} == {row["id"] for row in best}
    assert all(
        row["selection"]["by"] == "margin(least=0)" and "rank" in row["selection"]["why"] for row in kept
    )
    synthesize(
        *("pipeline=rows", f"pipeline.path={folder / 'train.jsonl'}", f"output={tmp_path / 'again'}"),
        *("select=length", "select.keep=2", f"model.path={inputs / 'model'}"),
    )
    rows = (tmp_path / "again" / "train.jsonl").read_text().splitlines()
    assert len(rows) == 2 and "length(of=row" in json.loads(rows[0])["selection"]["by"]
    assert "Kept: row of" in (tmp_path / "again" / "README.md").read_text()
