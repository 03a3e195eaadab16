"""`align plan goal=length`: the longest prompt that fits, and what it says of it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import hydra
import pytest

import align
from align import cli
from align.adapters.lora import Lora
from align.core.errors import UserError
from align.models.settings import ModelSettings
from align.plan import check
from align.planning import length_plan
from align.planning.architecture import Architecture, measure, read_config
from align.planning.job import Job, Levers, Machine, Precision, Rows, Strategy
from align.planning.length import GRANULE, longest, longest_prompt, longest_prompts, with_prompt
from align.planning.length_plan import LengthPlan, make_length_plan
from align.planning.memory import predict
from align.planning.search import fits, price
from align.planning.tables import overrides
from tests.rows import make_rows
from tests.tiny import save_tiny

GPU = Machine("cuda", 1, 1, 80e9, 989e12, 0.4, 3.7e11, 5e10, 1e12, 4e10, 3e9, 1.5e9)
LOGO = Job(Rows(1, (512,) * 3), Precision(2))


@pytest.fixture(scope="module")
def llama() -> Architecture:
    settings = ModelSettings(path="meta-llama/Meta-Llama-3-8B-Instruct", adapter=Lora(r=16))
    return measure(read_config(settings)[0], settings)


def plan_length(*words: str) -> LengthPlan:
    """What `align plan goal=length WORDS` shows."""
    with hydra.initialize_config_module("hydra_conf", version_base="1.3"):
        return make_length_plan(hydra.compose("plan", ["goal=length", *words]))


def command(monkeypatch, *words: str) -> int:
    """The exit code of `align plan WORDS`."""
    monkeypatch.setattr("sys.argv", ["align", "plan", *words])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_longest_fits_and_a_little_more_does_not(llama):
    """Every set of levers on eight GPUs, at whichever wrapper, exchange and degree is its best."""
    machine = replace(GPU, count=8)
    ways = longest_prompts(llama, LOGO, machine, prompts=64)
    assert len({one.levers for one in ways}) == len(ways) > 40
    assert {one.priced.strategy.degree for one in ways} == {8}
    for one in ways:
        strategy, its = one.priced.strategy, one.priced.job
        assert one.priced.fits(machine)
        assert not price(llama, with_prompt(its, one.prompt + GRANULE), strategy, machine).fits(machine)
    assert all(a.prompt >= b.prompt for a, b in pairwise(ways))


def test_memory_grows_with_the_prompt_and_length_with_the_memory(llama):
    """The search is by halving, which is right where neither ever falls."""
    for levers in (Levers(), Levers("full", offload="host", mlp_chunk=2048), Levers("none", 256)):
        strategy = Strategy(levers=levers)
        totals = [
            predict(llama, with_prompt(LOGO, 1000 * n), strategy, GPU).total for n in (1, 2, 5, 40, 500)
        ]
        assert all(a <= b for a, b in pairwise(totals))
        lengths = [
            longest_prompt(llama, LOGO, strategy, replace(GPU, memory=room)) for room in (18e9, 40e9, 85e9)
        ]
        assert lengths == sorted(lengths)
        assert lengths[-1] > 0


def test_more_levers_hold_more(llama):
    """Tiles and host memory each hold more than without; what the longest asks for is named."""
    found = {
        levers: longest_prompt(llama, replace(LOGO, accumulation=8), Strategy(levers=levers), GPU)
        for levers in (Levers("full"), Levers("full", mlp_chunk=2048), Levers("full", 1024, "host", 2048))
    }
    lengths = list(found.values())
    assert lengths == sorted(lengths)
    ways = longest_prompts(llama, LOGO, GPU, prompts=1)  # no gradients of earlier micro-batches
    # Slices of heads come one by one, so that memory falls a little where one more begins.
    assert ways[0].prompt == pytest.approx(lengths[-1], rel=0.01)
    assert (ways[0].levers.checkpointing, ways[0].levers.offload) == ("full", "host")
    assert ways[0].bound.startswith("transient in the phase attention: ")


def test_the_hosts_memory_may_be_the_bound(llama):
    """8 kB a token and layer but two: 64 GB hold some 200,000 tokens of 30 layers."""
    small = replace(GPU, host_memory=64e9)
    strategy = Strategy(levers=Levers("full", 1024, "host", 2048))
    prompt = longest_prompt(llama, LOGO, strategy, small)
    assert prompt == pytest.approx(0.8 * 64e9 / (30 * 8192), rel=0.02)
    assert longest(llama, LOGO, strategy, small, prompt).bound.startswith("host memory: 5")


def test_a_disk_may_be_the_bound(llama):
    """Where `gpus.disk_gb` says what is free; else it is not looked at, and a line says how much is needed."""
    strategy = Strategy(levers=Levers("full", 1024, "disk", 2048))
    small = replace(GPU, disk_memory=64e9)
    prompt = longest_prompt(llama, LOGO, strategy, small)
    assert prompt == longest_prompt(
        llama, LOGO, Strategy(levers=Levers("full", 1024, "host", 2048)), replace(GPU, host_memory=64e9)
    )
    assert longest(llama, LOGO, strategy, small, prompt).bound.startswith("disk: 5")
    words = ["model=llama3_8b", "model.lora.r=16", "gpus=h100_80gb", "gpus.count=1", "gpus.host_gb=137"]
    said = list(length_plan.sentences(plan_length(*words)))
    needed = next(line for line in said if line.startswith("the disk needs "))
    # 30 of 32 layers' inputs of 4,096 numbers in bf16: the last one stays, and one is on its way back.
    expected = 30 * 4096 * 2 * plan_length(*words).ways[0].priced.job.rows.tokens
    assert float(needed.split()[3]) == pytest.approx(expected / 1e9, abs=0.05)
    told = plan_length(*words, "gpus.disk_gb=64")
    assert not any("the disk needs" in line for line in length_plan.sentences(told))
    # The host is full to four fifths of 137 GB, and what it does not take stays on the GPU.
    assert told.best is not None and told.best.bound.startswith("transient in the phase attention")
    assert told.best.levers.prefetch > 1 and 105e9 < told.best.priced.memory.host < 0.8 * 137e9


def test_what_holds_nothing_is_left_out(llama):
    assert longest_prompts(llama, LOGO, replace(GPU, memory=10e9), prompts=8) == []
    assert longest_prompt(llama, LOGO, Strategy(), replace(GPU, memory=10e9)) == 0


@pytest.mark.parametrize("gpus", [["gpus=h100_80gb", "gpus.count=1"], ["gpus=cpu", "gpus.memory_gb=64"]])
def test_the_overrides_compose(gpus):
    """On a GPU and on a CPU: what is to be pasted sets the levers of the longest way."""
    made = plan_length("model=llama3_8b", "model.lora.r=16", *gpus)
    assert made.best is not None
    assert made.least == 0
    with hydra.initialize_config_module("hydra_conf", version_base="1.3"):
        config = hydra.compose("train", overrides(made.best.priced))
    levers = made.best.levers
    assert (config.memory.checkpointing, config.memory.mlp_chunk) == (levers.checkpointing, levers.mlp_chunk)
    assert (config.memory.offload, config.memory.logits_chunk) == (levers.offload, levers.logits_chunk)
    assert made.cut is not None and "model's window of 8192" in made.cut.sentence


def test_rows_are_a_least_length(tmp_path, capsys):
    """The data's longest row does not decide what is sought, and is held against it."""
    save_tiny(tmp_path / "model", max_position_embeddings=64)
    rows = make_rows(tmp_path / "rows.jsonl")
    words = [f"model.path={tmp_path / 'model'}", f"data.path={rows}", "data.eval_size=0"]
    made = plan_length(*words, "gpus=cpu", "gpus.memory_gb=8", "model.dtype=float32")
    assert made.best is not None
    assert 0 < made.least < 64 < made.best.prompt
    length_plan.show(made, [])
    shown = capsys.readouterr().out
    assert f"has {made.least} tokens: here it is a least length, and fits" in shown
    assert f"longest: {made.best.prompt} tokens, bounded by" in shown


def test_the_command_ends_as_others_do(tmp_path, monkeypatch, capfd):
    """0 with a way, in JSON too, which may be written over; 1 where rows are too long, 2 for an unknown goal."""
    path = tmp_path / "plan.json"
    words = ["model=llama3_8b", "model.lora.r=16", "gpus=h100_80gb", "gpus.count=1", "goal=length"]
    for _ in range(2):
        assert command(monkeypatch, *words, f"json={path}") == 0
    written = json.loads(path.read_text())
    assert written["longest"]["prompt"] == written["ways"][0]["prompt"]
    assert written["longest"]["fits"]
    assert written["longest"]["overrides"] == written["ways"][0]["overrides"]
    out = capfd.readouterr().out
    assert "the longest prompt that fits 95% of 85.0 GB per GPU" in out
    assert " -m align.train model=llama3_8b model.lora.r=16 data.path=ROWS.jsonl data.max_length=" in out
    assert command(monkeypatch, *words, "rows.prompt=90000000") == 1
    assert "Nothing holds prompts of 90000000 tokens on 1 × 85.0 GB" in capfd.readouterr().out
    assert command(monkeypatch, *words, "gpus.memory_gb=9") == 1
    assert "Nothing fits 1 × 9.0 GB, not even a prompt of 1024 tokens" in capfd.readouterr().out
    assert command(monkeypatch, "model=llama3_8b", "goal=longest") == 2
    assert "goal=longest is not known: use fastest, length" in capfd.readouterr().err


def test_goal_is_checked_without_torch():
    with hydra.initialize_config_module("hydra_conf", version_base="1.3"):
        config = hydra.compose("plan", ["model=llama3_8b", "goal=speed"])
    with pytest.raises(UserError, match="goal=speed is not known"):
        check(config)


def test_a_call_returns_it_typed(capsys):
    made = align.plan("model=llama3_8b", "model.lora.r=16", "gpus=rtx4090", "goal=length")
    assert isinstance(made, LengthPlan)
    assert made.best is not None and made.best.prompt % GRANULE == 0
    assert str(made).startswith("LengthPlan")
    assert "bounded by" in capsys.readouterr().out


def test_where_the_host_is_short_inputs_stay_on_the_gpu(llama):
    """137 GB of host memory for 32 layers' inputs: more of them on the device, and a longer prompt, pasted so."""
    job, machine = replace(LOGO, accumulation=8), replace(GPU, host_memory=137e9, disk_memory=64e9)
    ways = longest_prompts(llama, job, machine, prompts=8)
    first = ways[0]
    assert first.levers.offload == "host" and first.levers.prefetch > 1
    alone = replace(first.priced.strategy, levers=replace(first.levers, prefetch=1))
    assert first.prompt > longest_prompt(llama, job, alone, machine) > 2**18
    assert not fits(
        predict(llama, with_prompt(job, first.prompt + GRANULE), first.priced.strategy, machine), machine
    )
    assert f"memory.prefetch={first.levers.prefetch}" in overrides(first.priced)
    assert longest_prompts(llama, job, GPU, prompts=8)[0].levers.prefetch == 1
