"""Rates of a card: from both forms of results, and what the YAML says of an H100 against what was measured there."""

from __future__ import annotations

import json

import pytest

from align.planning.job import Job, Levers, Precision, Rows, Strategy
from align.planning.time import work
from benchmarks import gpu_rates
from benchmarks.gpu_rates import Rates, TimedStep, fit, given_settings, large, rates_of, timed_steps
from benchmarks.plan_scale import assumptions, cluster, fastest

CARD = "NVIDIA H100 80GB HBM3"


def seconds(step: TimedStep, products: float, attention: float) -> float:
    """What a step takes at these rates."""
    job = Job(Rows(step.prompt, (512,) * 3), Precision(2))
    matrices, scores = work(large(), job, Strategy(levers=step.levers), job.rows)
    return matrices / products + scores / attention


def test_a_fit_finds_the_rates_that_made_the_seconds():
    steps = [
        TimedStep(levers, prompt, 0.0) for levers in (Levers(), Levers("full")) for prompt in (8192, 65536)
    ]
    timed = [TimedStep(step.levers, step.prompt, seconds(step, 400e12, 200e12)) for step in steps]
    assert fit(timed) == pytest.approx((400e12, 200e12))
    assert fit(timed[:1]) is None, "one length says nothing of two rates"
    assert fit([]) is None


def test_the_first_look_is_read():
    """Five steps without offloading; what ended in an error is left out."""
    content = json.loads((gpu_rates.FOLDER / "first_look-H100.json").read_text())
    steps = list(timed_steps(content))
    assert len(steps) == 5
    assert {step.levers for step in steps} == {Levers(), Levers("full", mlp_chunk=4096)}


def test_the_yaml_has_what_was_measured():
    """`mfu` and `attention_mfu` of h100_80gb.yaml are the fit's, and every step is within a tenth by them."""
    given, rates = given_settings("h100_80gb"), rates_of("h100_80gb")
    assert rates.card == CARD
    measured = rates.settings(given)
    assert given.mfu == pytest.approx(measured["mfu"], abs=0.01)
    assert given.attention_mfu == pytest.approx(measured["attention_mfu"], abs=0.01)
    assert rates.matrix is not None and rates.attention is not None and rates.peak is not None
    assert rates.matrix < rates.peak < given.peak_tflops * 1e12
    content = json.loads((gpu_rates.FOLDER / "first_look-H100.json").read_text())
    for step in timed_steps(content):
        assert seconds(step, rates.matrix, rates.attention) == pytest.approx(step.seconds, rel=0.1)


def test_stages_replace_what_is_assumed(tmp_path):
    """As `python -m benchmarks.gpu` writes them; the slower way between host and card counts."""
    environment = {
        "card": {"memory_gib": 80.0},
        "tflops": {"bf16": 800.0},
        "gb_per_s": {"pinned, to device": 50.0, "pinned, to host": 45.0},
    }
    stage = {"result": environment, "date": "2026-12-01", "scale": "full"}
    path = tmp_path / "nvidia-h100-80gb-hbm3.json"
    path.write_text(json.dumps({"card": CARD, "stages": {"environment": stage}}))
    found = rates_of("h100_80gb", tmp_path)
    assert found == Rates(CARD, peak=800e12, to_host=45e9, memory=80 * 2**30)
    assert found.settings(given_settings("h100_80gb")) == {
        "host_gb_per_s": 45.0,
        "memory_gb": pytest.approx(85.9, abs=0.01),
    }
    path.write_text(
        json.dumps({"card": CARD, "stages": {"environment": {"error": "lost", "date": "2026-12-01"}}})
    )
    assert rates_of("h100_80gb", tmp_path) == Rates(CARD)


def test_a_small_scale_measures_nothing(tmp_path):
    stage = {"result": {"tflops": {"bf16": 0.1}}, "scale": "miniature", "date": "2026-12-01"}
    (tmp_path / "x.json").write_text(json.dumps({"card": CARD, "stages": {"environment": stage}}))
    assert rates_of("h100_80gb", tmp_path).peak is None


@pytest.mark.parametrize("kind", ["a100_80gb", "rtx4090", "cpu"])
def test_other_cards_are_assumed(kind):
    assert rates_of(kind) == Rates()
    assert rates_of(kind).settings(given_settings(kind)) == {}


def test_what_seconds_rest_on_is_named():
    """One H100 rests on nothing that is assumed; with offloading on the way to the host; several on the network."""
    sizes, job = large(), Job(Rows(64 * 1024, (512,) * 3), Precision(2))
    alone = fastest(sizes, job, cluster(1), "gather")
    several = fastest(sizes, job, cluster(8), "gather", wrappers=("ddp",))
    long = fastest(sizes, Job(Rows(300 * 1024, (512,) * 3), Precision(2)), cluster(1), "gather")
    assert alone is not None and several is not None and long is not None
    assert assumptions(alone) == []
    assert assumptions(several) == ["network"]
    assert assumptions(long) == ["host bandwidth"]
    assert assumptions(alone, "a100_80gb") == ["matrix rate", "attention rate"]


def test_the_table_shows_both(capsys):
    gpu_rates.main()
    shown = capsys.readouterr().out
    assert "0.369 (0.37)" in shown
    assert "not measured (312)" in shown
