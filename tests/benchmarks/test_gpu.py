"""`make gpu` on a CPU: every stage with tiny shapes, and what becomes of stages that fail, die or hang."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import parent, results, summary
from benchmarks.gpu.parent import Run

ROOT = Path(__file__).parents[2]
STAGES = ("environment", "kernels", "step", "speed", "length", "planner")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")


def gpu(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)


# ---- the whole


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """One run of every stage: what it printed, and its file."""
    folder = tmp_path_factory.mktemp("gpu")
    done = gpu("--miniature", "--minutes", "60", "--out", str(folder), "--stages", *STAGES, "miniature")
    (path,) = folder.glob("*.json")
    return done, json.loads(path.read_text()), path


@without_gpu
def test_every_stage_runs_and_every_check_passes(miniature):
    done, written, path = miniature
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout
    assert path.stem == results.slug(written["card"])
    assert list(written["stages"]) == sorted([*STAGES, "miniature"])
    for stage, entry in written["stages"].items():
        keys = {"result", "seconds", "commit", "date", "versions", "scale"}
        assert entry.keys() - {"skipped"} == keys, stage
        assert entry["scale"] == "miniature" and entry["versions"]["torch"] == torch.__version__
        assert "no time left" not in str(entry), stage
    assert "skipped" in written["stages"]["miniature"]


@without_gpu
def test_what_the_stages_find(miniature):
    found = {stage: entry["result"] for stage, entry in miniature[1]["stages"].items()}
    assert set(found["environment"]["tflops"]) == {"bf16", "fp32", "tf32"}
    assert {"device", "pageable, to device", "pageable, to host"} == set(found["environment"]["gb_per_s"])
    for dtype in ("float32", "bfloat16", "float16"):
        cell = found["kernels"][f"cpu {dtype}"]
        assert cell["passed"] and cell["within"] == 26 and set(cell["worst"]) > {"output", "sinks"}
    assert found["kernels"]["cpu bfloat16, large tensors"]["passed"]
    architectures = [name for name in found["step"] if name.endswith("loss and gradients")]
    checks = [*architectures, "levers, float32", "margins before the first step", "killed and resumed"]
    assert len(architectures) == 5 and all(found["step"][name]["passed"] for name in checks)
    assert found["step"]["synchronisations"] == {"skipped": "needs a GPU"}
    assert all(cell["longest"] == 128 for cell in found["length"].values())
    for cell in found["planner"].values():
        assert cell["predicted"]["gib"] > 0 and cell["error"]["memory"] is None and cell["mfu"]["reached"] > 0


@without_gpu
def test_contestants_do_the_same_work(miniature):
    """fp32, other sums: the losses of one job agree to 1e-5, and none is that of equal models (ln 2)."""
    found = miniature[1]["stages"]["speed"]["result"]
    assert "liger-kernel is not installed" in found["dpo lora, 48 + 8 + 8, trl_fastest"]["error"]
    assert "error" in found["logo full, 48 + 8 + 8 + 8, shared_liger"]
    assert found["profile, dpo lora, 48 + 8 + 8, shared"]["milliseconds"]
    for job, rivals in (
        ("dpo lora, 48 + 8 + 8", ("padded", "trl")),
        ("dpo full, 48 + 8 + 8", ("padded", "trl")),
        ("logo lora, 48 + 8 + 8 + 8", ("padded",)),
        ("logo full, 48 + 8 + 8 + 8", ("padded",)),
    ):
        ours = found[f"{job}, shared"]
        assert abs(ours["loss"] - 0.693147) > 1e-5
        for rival in rivals:
            assert found[f"{job}, {rival}"]["loss"] == pytest.approx(ours["loss"], rel=1e-5)
            ratio = found[f"{job}, {rival}"]["seconds"] / ours["seconds"]
            assert found["ratios"][f"{job}, {rival}"]["speed"] == pytest.approx(ratio)
        assert ours["tokens_per_s"] == pytest.approx(
            (48 + 8 * (2 + job.startswith("logo"))) / ours["seconds"]
        )


@without_gpu
def test_progress_and_table(miniature):
    """On stderr what is done and the time left, on stdout the table alone."""
    done, written, path = miniature
    assert re.search(r"^\[\d+:\d\d left\] kernels: has \d+ s$", done.stderr, flags=re.MULTILINE)
    assert f"written: {path}" in done.stderr
    assert done.stdout.startswith(written["card"])
    for stage in STAGES:
        assert re.search(rf"│ {stage} +│ done", done.stdout), stage
    assert "78 of 78 cases within their bounds" in done.stdout


@without_gpu
def test_without_a_gpu_it_is_one_sentence(tmp_path):
    done = gpu("--out", str(tmp_path))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.strip() == (
        "There is no GPU here: --miniature runs every stage on the CPU, with tiny shapes."
    )
    assert list(tmp_path.iterdir()) == []


# ---- stages that do not end well


def run(folder: Path, *, minutes: float = 2, said: list[str] | None = None, **targets: str) -> dict:
    """One call with stand-ins in the place of stages."""
    own = {stage: f"tests.benchmarks.gpu_stages:{name}" for stage, name in targets.items()}
    tell = (lambda line: None) if said is None else said.append
    call = Run(own, scale="miniature", minutes=minutes, folder=folder, layers=4, tell=tell)
    try:
        return call.stages()
    finally:
        call.close()


def test_an_error_ends_a_stage_and_not_the_run(tmp_path, monkeypatch):
    """An exception, a process that dies and one that hangs: each keeps what it had found, and says how it ended."""
    monkeypatch.setattr(parent, "GRACE", 0.5)
    monkeypatch.setattr(parent, "SHARES", {"length": 0.02, "planner": 1.0})
    call = partial(run, tmp_path, minutes=1)
    entries = call(kernels="raises", step="dies", length="hangs", planner="good")
    assert [entry["result"].get("before") for entry in entries.values()] == [1, 2, 3, None]
    assert entries["kernels"]["error"].splitlines()[-1] == "RuntimeError: this stage ends here"
    assert "in raises" in entries["kernels"]["error"]
    assert re.match(r"the process died with code 3\n[\s\S]*last words", entries["step"]["error"])
    assert entries["length"]["error"].startswith("ended after 0 s beyond its time")
    assert entries["planner"]["result"] | {"wrong": None} == {
        "layers": 4,
        "one": 1.0,
        "wrong": None,
        "nan": None,
    }
    assert entries["planner"]["result"]["wrong"] == {"error": "ZeroDivisionError: division by zero"}
    (path,) = tmp_path.glob("*.json")
    assert results.read(path) == json.loads(json.dumps(entries))
    assert summary.failures("kernels", entries["kernels"]) == ["kernels"]
    assert summary.failures("planner", entries["planner"]) == []


def test_what_has_no_time_left_says_so(tmp_path):
    entries = run(tmp_path, minutes=0, kernels="good")
    assert entries["kernels"]["skipped"] == "no time left" and entries["kernels"]["result"] == {}
    entries = run(tmp_path, kernels="late")
    assert entries["kernels"]["result"] == {"first": "no time left"}


def alive(process: int) -> bool:
    """Whether a process still runs; one that nobody has asked for its end does not."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(") ")[2][0] != "Z"


def test_a_run_that_is_ended_keeps_what_it_had_found(tmp_path):
    """Killed with no word, as by a job's time limit: the finding is in the file, and the worker ends too."""
    words = f"from tests.benchmarks.test_gpu import *; run(Path({str(tmp_path)!r}), kernels='told')"
    process = subprocess.Popen([sys.executable, "-c", words], cwd=ROOT)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    (path,) = tmp_path.glob("*.json")
    found = results.read(path)["kernels"]
    assert found["unfinished"] is True and "error" not in found
    while alive(found["result"]["process"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_stage_without_time_leaves_what_was_found_before(tmp_path):
    run(tmp_path, kernels="good")
    (path,) = tmp_path.glob("*.json")
    before = results.read(path)
    assert run(tmp_path, minutes=0, kernels="good")["kernels"]["skipped"] == "no time left"
    assert results.read(path) == before


def test_a_later_run_replaces_only_its_stage(tmp_path):
    said: list[str] = []
    run(tmp_path, kernels="good", step="good", said=said)
    (path,) = tmp_path.glob("*.json")
    before = results.read(path)
    run(tmp_path, step="late")
    after = results.read(path)
    assert after["kernels"] == before["kernels"] and after["step"]["result"] == {"first": "no time left"}
    assert re.match(r"\[1:\d\d left\] kernels: has \d\d s", said[0])
    assert said[1].endswith("]   layers")
    assert said[-1] == f"written: {path}"
