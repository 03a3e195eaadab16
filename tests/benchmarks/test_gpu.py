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

from align.longseq.kernels import kernel_named, register_kernel
from benchmarks.gpu import length, parent, results, summary
from benchmarks.gpu.contestants import Task
from benchmarks.gpu.context import Context
from benchmarks.gpu.device import Device
from benchmarks.gpu.kernel_cases import BOUNDS, SMALL_ROWS, Case
from benchmarks.gpu.kernels import measure
from benchmarks.gpu.measuring import step_flops
from benchmarks.gpu.parent import Run
from benchmarks.gpu.shapes import SHAPES, pairs

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
    done = gpu("--miniature", "--minutes", "9", "--out", str(folder), "--stages", *STAGES, "miniature")
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
        assert cell["passed"] and cell["within"] == 23 and set(cell["worst"]) > {"output", "sinks"}
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
    assert "69 of 69 cases within their bounds" in done.stdout


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


# ---- what is said of results


def entry(date: str, **more) -> dict:
    return {"result": {"tflops": {"bf16": 787.0}}, "seconds": 1.0, "commit": "abc1234", "date": date} | {
        "versions": {},
        "scale": "full",
        **more,
    }


def test_the_newest_result_speaks(tmp_path):
    """Of all cards; not those at small scale, those that an error ended, and results of another kind."""
    assert summary.line("environment", tmp_path) == "not run"
    (tmp_path / "first_look-H100.json").write_text('{"card": "NVIDIA H100 80GB HBM3", "speed": {}}')
    for card, made in {
        "NVIDIA H100 80GB HBM3": entry("2026-12-01"),
        "NVIDIA H200": entry("2026-11-30"),
        "CPU": entry("2026-12-02", scale="miniature"),
        "NVIDIA A100": entry("2026-12-03", error="Traceback\nRuntimeError: no"),
    }.items():
        results.replace_stage(results.file_of(tmp_path, card), card, "environment", made)
    said = "NVIDIA H100 80GB HBM3, 2026-12-01, commit `abc1234`: bf16 787 TFLOP/s"
    assert summary.lines(tmp_path)["environment"] == said
    assert summary.lines(tmp_path)["speed"] == "not run"
    assert results.file_of(tmp_path, "NVIDIA H100 80GB HBM3").name == "nvidia-h100-80gb-hbm3.json"


def test_a_check_that_has_not_passed_is_named():
    made = entry("2026-12-01") | {
        "result": {
            "bounds": {"fp32": 2e-5},
            "llama, loss and gradients": {"fp32": {"gradient": 1e-3}, "passed": False},
            "levers, float32": {"passed": True},
            "killed and resumed": {"error": "RuntimeError: no"},
        }
    }
    names = ["llama, loss and gradients", "killed and resumed"]
    assert summary.failures("step", made) == names
    assert f"1 of 3 checks passed (not: {', '.join(names)})" in summary.sentence("step", made)


# ---- numbers


def test_a_wrong_kernel_does_not_pass():
    """A twentieth more on the output, and a gradient that belongs to it: both show."""

    class Wrong(type(kernel_named("cpu"))):
        def forward(self, *given):
            output, lse = super().forward(*given)
            return output * 1.05, lse

    register_kernel("wrong stand-in", Wrong())
    good, wrong = (
        measure(Case(name, torch.bfloat16), SMALL_ROWS, torch.device("cpu"))
        for name in ("cpu", "wrong stand-in")
    )
    assert max(good.values()) <= BOUNDS[torch.bfloat16] < min(wrong["output"], wrong["query"])


def test_parameters_and_flops_of_real_shapes():
    """Published sizes, which count biases and norms too; a shared prompt of 10 with answers of 2 and 1 by hand."""
    for name, billions in {
        "Qwen2.5-0.5B": 0.494,
        "Qwen2.5-1.5B": 1.544,
        "Qwen2.5-7B": 7.616,
        "Llama-3-8B": 8.03,
    }.items():
        assert SHAPES[name].parameters() / 1e9 == pytest.approx(billions, rel=2e-3)
    assert pairs(10, (2, 1), shared=True) == 55 + (11 + 12) + 11
    assert pairs(10, (2, 1), shared=False) == 78 + 66
    task = Task("tiny", "full", "simpo", 10, (2, 1), torch.device("cpu"))
    of_token, of_pair, of_scored = SHAPES["tiny"].flops()
    assert of_token == 2 * 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    assert step_flops(task, shared=True) == 3 * (13 * of_token + 89 * of_pair + 3 * of_scored)


def test_extrapolation_over_layers():
    """10 and 14 GiB at 4 and 8 layers: a GiB a layer, 38 at 32."""
    found = length.extrapolated(length.Step(1.0, 10.0), length.Step(1.5, 14.0), 4, 8, 32)
    assert found == {"seconds": 4.5, "peak_gib": 38.0}


class Card(Device):
    """A card of 80 GiB that measures nothing."""

    def room_gib(self) -> float:
        return 80.0


def context(card: Device, layers: int) -> Context:
    return Context(card, "full", time.monotonic() + 1000, lambda name, value: None, layers)


@pytest.mark.parametrize("layers", [0, 4])
def test_the_longest_prompt_is_found_by_doubling_and_once_between(layers, monkeypatch):
    """16 GiB and 1 GiB for each 4K tokens over all 32 layers: 77.6 GiB hold 252K tokens, of which 192K is tried."""
    measured = []

    def one_step(device, task):
        measured.append(task.prompt)
        return length.Step(0.1, 16 + (task.layers or 32) / 32 * task.prompt / 4096)

    monkeypatch.setattr(length, "one_step", one_step)
    task = Task("Llama-3-8B", "lora", "logo", 0, (512,) * 3, torch.device("cpu"), levers={"mode": "full"})
    found = length.longest(context(Card(), layers), task)
    assert (found["longest"], found["over"]) == (196608, 262144)
    assert list(found["tried"]) == ["65536", "131072", "262144", "196608"]
    assert found["at"]["peak_gib"] == pytest.approx(64.0)
    assert found["tried"]["262144"]["fits"] is False and 262144 in measured


def test_a_step_that_does_not_fit_ends_the_doubling(monkeypatch):
    def one_step(device, task):
        if task.prompt > 100_000:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
        return length.Step(0.1, 50.0)

    monkeypatch.setattr(length, "one_step", one_step)
    task = Task("Llama-3-8B", "lora", "dpo", 0, (512, 512), torch.device("cpu"), levers={"mode": "full"})
    found = length.longest(context(Card(), 0), task)
    assert (found["longest"], found["over"]) == (98304, 131072)
    assert found["tried"]["131072"] == {"fits": False, "said": "out of memory"}


def test_the_shell_scripts_can_be_read():
    for name in ("collect.sh", "run.sh"):
        subprocess.run(["bash", "-n", str(ROOT / "benchmarks" / "gpu" / name)], check=True)
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu" / "collect.sh"), "other"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stderr == "other is no group: base, liger, flash4, model.\n"
