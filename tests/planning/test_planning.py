"""What `align plan` predicts: exact counts, live memory as torch counts it, published runs, the command."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Gemma3Config

from align import cli
from align.adapters.adapter import add_adapter
from align.adapters.lora import Lora
from align.core.errors import UserError
from align.data.examples import Answer, TokenizedExample
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.checkpointing import apply_checkpointing
from align.models.settings import ModelSettings
from align.planning.architecture import measure, read_config
from align.planning.gpu_memory import Reading
from align.planning.here import choose_levers, machine_here, warning
from align.planning.job import Job, Levers, Machine, Precision, Rows, Strategy
from align.planning.memory import predict
from align.planning.planner import Plan
from align.planning.search import cheapest_levers, lever_sets
from tests.planning.plans import plan
from tests.rows import make_rows
from tests.tiny import save_tiny, tiny_model

ROOT = Path(__file__).parents[2]
CPU = Machine("cpu", 1, 1, 1e12, 5e10, 0.8, 1e9, 1e8, 0.0, 1e10, 1e9, runtime=0.0)


# ---- counts


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8_030_261_248),
        ("mistralai/Mistral-7B-Instruct-v0.2", 7_241_732_096),
        ("Qwen/Qwen2-7B", 7_615_616_512),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen3-8B", 8_190_735_360),
    ],
)
def test_parameters_are_the_checkpoints(path, parameters):
    """As the repositories state them (the sums of their safetensors files)."""
    settings = ModelSettings(path=path)
    assert measure(read_config(settings)[0], settings).parameters == parameters


def test_what_trains_under_lora():
    """Llama-3-8B, rank 16 on q, k, v, o: 32 · 16 · ((4096 + 4096) · 2 + (4096 + 1024) · 2)."""
    settings = ModelSettings(path="meta-llama/Meta-Llama-3-8B-Instruct", adapter=Lora(r=16))
    sizes = measure(read_config(settings)[0], settings)
    assert sizes.trainable == 32 * 16 * ((4096 + 4096) * 2 + (4096 + 1024) * 2)


def test_a_model_with_an_image_part_is_measured_by_its_text_part():
    """As Gemma-3 is released from 4B on: widths stand in `text_config`; the tower's weights are counted too."""
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 128}
    image = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    image |= {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=image, mm_tokens_per_image=4)
    sizes = measure(config, ModelSettings())
    assert (sizes.layers, sizes.hidden, sizes.intermediate, sizes.heads, sizes.kv_heads) == (3, 64, 96, 4, 2)
    assert sizes.head_parameters == 128 * 64
    assert sizes.parameters > 128 * 64 + sum(each * 3 for each in (64 * 64, 64 * 96 * 3))


# ---- live memory


MODES = [
    ("full", None, "none"),
    ("keep_attention", None, "none"),
    ("none", None, "none"),
    ("full", 128, "none"),
    ("keep_attention", 256, "none"),
    ("full", None, "disk"),
]
ROWS = Rows(prompt=1400, answers=(60, 60))


def live_peak(model: torch.nn.Module, rows: Rows) -> int:
    """Bytes that torch had allocated at the peak of a step, beside what was there before."""
    rng = np.random.default_rng(0)
    answers = tuple(Answer(rng.integers(0, 128, n), np.ones(n, dtype=bool)) for n in rows.answers)
    example = TokenizedExample("made up", rng.integers(0, 128, rows.prompt), np.arange(rows.prompt), answers)
    batch = pack([example])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        logps = pair_logps(model, batch)
        (logps.chosen - logps.rejected.sum(1)).sum().backward()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize(("mode", "chunk", "offload"), MODES)
def test_live_memory(rank, mode, chunk, offload):
    """Checkpoints, gradients and transients of a step against torch's own count, within 15 %."""
    sizes = {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6, "head_dim": 32}
    base = tiny_model("llama", num_hidden_layers=6, **sizes)
    base.set_attn_implementation(ATTENTION)
    settings = ModelSettings(adapter=Lora(r=rank) if rank else None)
    architecture = measure(base.config, settings)
    model = add_adapter(base, settings.adapter).train()
    apply_checkpointing(model, mode, mlp_chunk=chunk, offload=offload, offload_folder=None)
    strategy = Strategy(levers=Levers(mode, 1024, offload, chunk))
    job = Job(ROWS, Precision(), optimizer_slots=0)
    memory = predict(architecture, job, strategy, CPU)
    predicted = memory.gradients + memory.checkpoints + memory.transient
    assert predicted == pytest.approx(live_peak(model, ROWS), rel=0.15)


# ---- published runs


def with_cache(made: Plan) -> float:
    """Bytes a GPU here when `reference.cache` is full: no reference is in memory."""
    job = replace(made.job, reference="none")
    return predict(made.sizes, job, made.given.strategy, made.machine).total


def whole_reference(made: Plan) -> float:
    """Bytes a GPU here with `reference.sharding=none`."""
    job = replace(made.job, reference_sharding="none")
    return predict(made.sizes, job, made.given.strategy, made.machine).total


def test_longpo_at_128k_fits_with_room():
    """LongPO, Mistral-7B, 128K on 8 × 80 GB at degree 8 (arXiv 2502.13922): a quarter of the memory is enough.

    20 GB, of which an eighth of the frozen reference in bfloat16 takes 1.8 (whole 14), 18 GB with its log-probs
    cached; against the 27 GB of one row an answer.
    """
    made = plan("experiment=longpo_mistral_7b_128k", "rows.short_prompt=4096", "wrapper=zero3_offload")
    assert made.given.strategy.degree == 8
    assert made.given.fits(made.machine)
    assert made.given.memory.total == pytest.approx(19.8e9, rel=0.02)
    assert whole_reference(made) == pytest.approx(32.5e9, rel=0.02)
    assert made.best is not None
    assert made.plain.memory.total == pytest.approx(27.3e9, rel=0.02)
    assert with_cache(made) == pytest.approx(18.0e9, rel=0.02)


def test_qwen_dpo_at_84k_fits_with_room():
    """360-LLaMA-Factory: Qwen2.5-7B, all parameters, DPO at 84K tokens on 8 × 80 GB at degree 8.

    31 GB at the reference's forward (44 with a whole one); 29 GB with its log-probs cached, against 60 GB of one row
    an answer.
    """
    made = plan(
        *("method=dpo", "model=qwen2_5_7b", "model.dtype=float32", "trainer.bf16=true"),
        *("parallel=gather", "parallel.degree=8", "wrapper=zero3", "rows.prompt=84000", "rows.answer=512"),
    )
    assert made.given.fits(made.machine)
    assert made.given.memory.total == pytest.approx(31.0e9, rel=0.02)
    assert whole_reference(made) == pytest.approx(43.9e9, rel=0.02)
    assert made.best is not None
    assert made.plain.memory.total == pytest.approx(60.0e9, rel=0.02)
    assert with_cache(made) == pytest.approx(28.6e9, rel=0.02)


def test_padded_rows_have_as_many_prompts():
    """LOGO on 8 GPUs, 2 prompts a micro-batch: 6 rows of it are still 16 prompts a step, and take longer for each."""
    words = ("model=llama3_8b", "method=logo", "rows.prompt=3000", "rows.rejected=2", "model.lora.r=16")
    made = plan(*words, "trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=1")
    assert made.plain.job.rows.rows == 3 * 2
    assert made.given.time.prompts == made.plain.time.prompts == made.fused.time.prompts == 16
    assert made.plain.time.per_prompt > 2 * made.given.time.per_prompt


def test_a_fused_head_makes_the_answers_logits_alone():
    """As TRL has it: the same rows, less memory and less work than with the logits of every position."""
    made = plan("model=llama3_8b", "method=dpo", "rows.prompt=30000", "model.lora.r=16")
    assert made.fused.job.rows == made.plain.job.rows
    assert made.fused.job.rows.scored == 2 * 512
    assert made.fused.memory.total < made.plain.memory.total
    assert made.fused.time.compute < made.plain.time.compute


def test_a_row_an_answer_has_the_prompt_once_for_each():
    """LOGO on 30,000 tokens: three rows of 30,512 in the place of 31,536, and all their positions in the head."""
    made = plan("model=llama3_8b", "method=logo", "rows.prompt=30000", "rows.rejected=2", "model.lora.r=16")
    rows, strategy = made.plain.job.rows, made.plain.strategy
    assert made.job.rows.tokens == 30000 + 3 * 512
    assert rows.tokens == 3 * (30000 + 512)
    assert strategy.levers == Levers("full", logits_chunk=rows.tokens)
    assert made.plain.memory.total > made.given.memory.total
    assert made.plain.time.total > 2 * made.given.time.total


# ---- the command itself


def test_more_tokens_need_more_memory_and_time():
    short, long = (plan("model=llama3_8b", f"rows.prompt={n}").given for n in (8192, 16384))
    assert long.memory.total > short.memory.total
    assert long.time.total > 2 * short.time.total


def test_command_says_what_is_missing_when_nothing_fits(monkeypatch, capfd):
    words = ["model=llama3_8b", "rows.prompt=1000000", "gpus=rtx4090", "json=null"]
    monkeypatch.setattr("sys.argv", ["align", "plan", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert "Nothing fits 1 × 24.0 GB: the least is" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "rows.prompt is not set"),
        (["rows.prompt=0"], "rows.prompt=0 is too small"),
        (
            ["rows.prompt=9", "rows.mean_prompt=-100000"],
            r"rows.mean_prompt=-100000 has to lie between 1 and the 9",
        ),
        (["rows.prompt=9", "rows.mean_prompt=10"], "rows.mean_prompt=10 has to lie between"),
        (["rows.prompt=9", "gpus.mfu=nan"], "gpus.mfu=nan is too small"),
        (["rows.prompt=9", "gpus.host_gb=nan"], "gpus.host_gb=nan is too small"),
        (["rows.prompt=9", "gpus.peak_tflops=inf"], "gpus.peak_tflops=inf has no end"),
        (["rows.prompt=9", "trainer.per_device_train_batch_size=0"], "batch_size=0 has to be a whole number"),
        (["rows.prompt=9", "trainer.gradient_accumulation_steps=0"], "steps=0 has to be a whole number"),
        (["rows.prompt=9", "trainer.gradient_accumulation_steps=two"], "steps=two has to be a whole number"),
        (["rows.prompt=9", "parallel=auto", "parallel.degree=3"], "parallel.degree=3 does not divide"),
        (["rows.prompt=9", "gpus.count=3", "gpus.nodes=2"], "gpus.count=3 is not divisible"),
        (["rows.prompt=9", "wrapper=zero"], "wrapper=zero is not known"),
        (["rows.prompt=9", "gpus=cpu", "wrapper=fsdp2"], "wrapper=fsdp2 needs GPUs, and gpus.device=cpu"),
        (
            ["rows.prompt=9", "trainer.optim=lomo"],
            "trainer.optim=lomo: what it keeps of each weight is not known",
        ),
    ],
)
def test_bad_requests_end_in_one_sentence(words, sentence):
    with pytest.raises(UserError, match=sentence):
        plan("model=llama3_8b", *words)


def test_json_holds_every_part(tmp_path, monkeypatch, capfd):
    path = tmp_path / "plan.json"
    monkeypatch.setattr("sys.argv", ["align", "plan", "model=llama3_8b", "rows.prompt=4096", f"json={path}"])
    cli.main()
    written = json.loads(path.read_text())
    parts = written["given"]["memory_bytes"]
    named = (
        "weights",
        "gradients",
        "optimizer",
        "reference",
        "checkpoints",
        "transient",
        "buffers",
        "runtime",
    )
    assert parts["total"] == pytest.approx(sum(parts[name] for name in named))
    assert written["cheapest"]["fits"]
    out, err = capfd.readouterr()
    assert "accelerate launch" in out
    assert err == "", "libraries keep silent"


# ---- levers


def test_less_memory_pulls_more_levers():
    """From plenty to little room the chosen set needs less each time, and is never faster than the one before."""
    settings = ModelSettings(path="meta-llama/Meta-Llama-3-8B-Instruct", adapter=Lora(r=16))
    sizes = measure(read_config(settings)[0], settings)
    job, machine = Job(Rows(32768, (512, 512)), Precision(2)), replace(CPU, device="cuda", host_memory=1e12)
    seen = []
    for room in (1e12, 80e9, 50e9, 30e9):
        priced = cheapest_levers(sizes, job, Strategy(), replace(machine, memory=room))
        assert priced is not None
        assert priced.memory.total <= room
        seen.append(priced)
    assert seen[0].strategy.levers == Levers("none")
    assert all(a.memory.total >= b.memory.total for a, b in pairwise(seen))
    assert cheapest_levers(sizes, job, Strategy(), replace(machine, memory=1e9)) is None


def test_a_cpu_has_no_host_to_offload_to():
    assert {levers.offload for levers in lever_sets("cpu")} == {"none", "disk"}


# ---- before training


def tiny_job() -> tuple:
    settings = ModelSettings(path="Qwen/Qwen2.5-7B-Instruct", adapter=Lora(r=16))
    sizes = measure(read_config(settings)[0], settings)
    return sizes, Job(Rows(16384, (512, 512)), Precision(2))


def test_warning_names_what_makes_it_fit():
    """Too little for the defaults, enough with levers: the sentence has them; with room there is none."""
    sizes, job = tiny_job()
    strategy = Strategy()
    need = predict(sizes, job, strategy, CPU).total
    assert warning(sizes, job, strategy, replace(CPU, memory=1.01 * need)) is None
    said = warning(sizes, job, strategy, replace(CPU, memory=0.85 * need))
    assert said is not None
    assert "it fits with" in said
    assert re.search(r"memory.(mlp_chunk=\d|checkpointing=full|offload=disk)", said)
    assert "no levers make it fit" in str(warning(sizes, job, strategy, replace(CPU, memory=1e9)))


@pytest.mark.parametrize(
    ("environment", "processes", "nodes", "each"),
    [
        ({}, 4, 1, 4),
        ({"LOCAL_WORLD_SIZE": "2"}, 4, 2, 2),
        ({"LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2"}, 5, 2, 3),
        ({"LOCAL_WORLD_SIZE": "3", "GROUP_WORLD_SIZE": "2"}, 5, 2, 3),
        ({"LOCAL_WORLD_SIZE": "3"}, 5, 2, 3),
    ],
)
def test_machines_may_have_different_numbers_of_gpus(monkeypatch, environment, processes, nodes, each):
    """Five GPUs as 3 + 2: nobody has set `gpus.nodes`, and the largest machine decides."""
    for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    nothing = Reading(info=lambda _: (0, 2), reserved=lambda _: 0, allocated=lambda _: 0)
    machine = machine_here(torch.device("cuda"), processes, products=2, reading=nothing)
    assert (machine.nodes, machine.per_node, machine.memory) == (nodes, each, 0.0)


def test_auto_says_why_and_when_nothing_fits():
    sizes, job = tiny_job()
    levers, reason = choose_levers(sizes, job, Strategy(), replace(CPU, memory=60e9))
    assert predict(sizes, job, Strategy(levers=levers), CPU).total <= 60e9
    assert reason.startswith("memory=auto: memory.checkpointing=")
    assert "because it is the fastest set that fits" in reason
    assert "no set of levers fits" in choose_levers(sizes, job, Strategy(), replace(CPU, memory=1e9))[1]


def test_rows_are_read_as_training_reads_them(tmp_path):
    """Cut to the model's window, and refused where an answer alone is longer."""
    save_tiny(tmp_path / "model", max_position_embeddings=64)
    rows = [
        {"context": "w9 " * n, "question": "w8", "chosen": "w10 w11", "rejected": "w12"} for n in (90, 80)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [f"model.path={tmp_path / 'model'}", f"data.path={path}", "data.eval_size=0"]
    made = plan(*words)
    assert made.job.rows.prompt + max(made.job.rows.answers) == 64
    rows[1]["chosen"] = "w10 " * 70
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"rows.jsonl:2: the longest answer has 7\d tokens"):
        plan(*words)


@pytest.mark.parametrize("command", ["train", "verify"])
def test_memory_auto_runs(command, tmp_path, monkeypatch, capfd):
    """`memory=auto` in both commands, with a tiny model: plenty of room, so nothing is kept out of memory."""
    save_tiny(tmp_path / "model")
    words = [f"model.path={tmp_path / 'model'}", "memory=auto", "model.dtype=float32"]
    if command == "train":
        words += [f"data.path={make_rows(tmp_path / 'rows.jsonl')}", f"output={tmp_path / 'out'}"]
        words += ["trainer.max_steps=1", "trainer.use_cpu=true", "data.eval_size=2"]
    monkeypatch.setattr("sys.argv", ["align", command, *words])
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    _, err = capfd.readouterr()
    assert code == 0, err
    assert "memory=auto: memory.checkpointing=none" in err
