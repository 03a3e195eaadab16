"""`make gpu`: what is said of results, and its numbers: errors, FLOPs, extrapolation, the longest prompt."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from align.longseq.kernels import kernel_named, register_kernel
from benchmarks.gpu import length, measuring, results, summary
from benchmarks.gpu.contestants import Task
from benchmarks.gpu.context import Context
from benchmarks.gpu.device import Device
from benchmarks.gpu.exactness import error_of
from benchmarks.gpu.kernel_cases import BOUNDS, SMALL_ROWS, Case
from benchmarks.gpu.kernels import measure
from benchmarks.gpu.measuring import step_flops
from benchmarks.gpu.plans import card_overrides
from benchmarks.gpu.shapes import SHAPES, pairs
from docs import gpu as documented

ROOT = Path(__file__).parents[2]


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


def test_the_documentation_shows_what_was_found(monkeypatch):
    """Rows of each job, a rival that could not be run with its reason; `not run` where nothing was."""
    monkeypatch.setattr(documented, "newest", lambda stage: None)
    assert documented.contestants() == "`speed`: not run.\n"
    step = {"seconds": 2.0, "tokens_per_s": 8704.0, "peak_gib": 9.0, "mfu": 0.41}
    found = {
        "speed": {
            "bf16_tflops": 787.0,
            "profile, dpo lora, 4096, shared": {"seconds": 0.3, "busy": 0.5, "milliseconds": {}},
            "dpo lora, 16384, shared": step,
            "dpo lora, 16384, trl": {"error": "no"},
        },
        "length": {
            "logo lora, 8B, tiles": {
                "longest": 131072,
                "planned": 140288,
                "over": 196608,
                "at": {"seconds": 84.6, "peak_gib": 60.1, "layers": 32},
            }
        },
        "planner": {
            "dpo lora, 8B": {
                "predicted": {"gib": 33.0, "seconds": 3.0},
                "measured": {"gib": 30.0, "seconds": 4.0},
                "error": {"memory": 0.1, "time": -0.25},
                "mfu": {"assumed": 0.4, "reached": 0.3},
            }
        },
    }
    made = {stage: entry("2026-12-01") | {"result": result} for stage, result in found.items()}
    newest = {stage: ("NVIDIA H200", one) for stage, one in made.items()}
    monkeypatch.setattr(documented, "newest", newest.get)
    assert documented.contestants().splitlines()[2:] == [
        "| dpo lora, 16384, shared | 2.00 s | 8,704 | 9.0 GiB | 41 % |",
        "| dpo lora, 16384, trl | no |  |  |  |",
    ]
    assert documented.lengths().endswith(
        "| logo lora, 8B, tiles | 131,072 | 140,288 | 84.6 s | 60.1 GiB | 32 |\n"
    )
    row = "| dpo lora, 8B | 33.0 / 30.0 GiB | +10.0 % | 3.00 / 4.00 s | -25.0 % | 0.30 |"
    assert documented.plans().splitlines()[-1] == row
    assert documented.proof() == (
        "`make gpu`: environment, kernels, step, miniature: not run yet; "
        "speed, length, planner: NVIDIA H200 (2026-12-01, `abc1234`)."
    )


def test_the_commit_is_carried_where_there_is_no_git(tmp_path, monkeypatch):
    """Of a bare copy what the wheels were collected at."""
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert results.commit() == "unknown"
    (tmp_path / ".whl" / "base.1").mkdir(parents=True)
    (tmp_path / ".whl" / "base.1" / "commit").write_text("abc1234\n")
    assert results.commit() == "abc1234"


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


def test_what_is_no_number_is_no_small_error():
    value = torch.tensor([1.0, float("nan")])
    assert error_of(value, torch.ones(2)) == error_of(torch.ones(2), torch.zeros(2)) == 1e9
    assert error_of(torch.tensor([3.0, 4.4]), torch.tensor([3.0, 4.0])) == pytest.approx(0.08)


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


@pytest.mark.parametrize(
    ("card", "cuda", "overrides"),
    [
        ("NVIDIA H100 80GB HBM3", True, ["gpus=h100_80gb"]),
        ("NVIDIA A100-SXM4-80GB", True, ["gpus=a100_80gb"]),
        ("NVIDIA B200", True, ["gpus=h100_80gb", "gpus.peak_tflops=1500.0"]),
        ("CPU", False, ["gpus=cpu", "gpus.peak_tflops=1500.0"]),
    ],
)
def test_a_plan_is_for_the_card_that_is_there(card, cuda, overrides):
    assert card_overrides(card, cuda=cuda, rate=1500.0) == overrides


def test_kernels_whose_long_names_begin_alike_are_summed():
    def event(key, milliseconds, kind=DeviceType.CUDA):
        return SimpleNamespace(
            key=key, device_type=kind, self_device_time_total=1e3 * milliseconds, self_cpu_time_total=9e9
        )

    events = [event("k" * 80 + "<fwd>", 2.0), event("k" * 80 + "<bwd>", 5.0), event("copy", 1.0)]
    found = measuring.operations([*events, event("host", 1.0, DeviceType.CPU)], cuda=True)
    assert found == {"k" * 80: 7.0, "copy": 1.0}


def test_a_search_that_time_ended_says_so():
    assert summary.longest({"longest": 65536, "over": None}) == "65,536 or more"
    assert summary.longest({"longest": 65536, "over": 131072}) == "65,536"
