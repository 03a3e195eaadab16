"""Plans of models whose layers are not Llama's: experts, latent attention, mixers that keep a state."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from align.adapters.lora import Lora
from align.core.errors import UserError
from align.longseq import ATTENTION
from align.longseq.checkpointing import apply_checkpointing
from align.models.settings import ModelSettings
from align.planning.architecture import Architecture, measure
from align.planning.job import Job, Levers, Machine, Precision, Rows, Strategy
from align.planning.memory import predict
from align.planning.request import notes
from align.planning.search import cheapest, strategies
from align.planning.time import exchange_bytes, step_time
from tests.planning.plans import plan
from tests.planning.test_planning import CPU, live_peak

ROWS = Rows(prompt=1400, answers=(60, 60))
GPUS = Machine("cuda", 4, 1, 80e9, 1e15, 0.5, 1e11, 1e10, 1e12, 1e10, 1e9, 0.0)
_COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 3,
    "max_position_embeddings": 4096,
}
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
_ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": _EXPERTS,
    "qwen3_next": _EXPERTS
    | {
        "shared_expert_intermediate_size": 96,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
    },
    "nemotron_h": _ROUTED
    | {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 32,
        "ssm_state_size": 16,
        "n_groups": 1,
        "chunk_size": 64,
        "moe_shared_expert_intermediate_size": 96,
    },
    "deepseek_v3": _ROUTED
    | {
        "head_dim": 16,
        "num_key_value_heads": 4,
        "first_k_dense_replace": 1,
        "n_group": 2,
        "topk_group": 1,
        "kv_lora_rank": 32,
        "q_lora_rank": 48,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
    },
}


def config_of(family: str) -> PreTrainedConfig:
    """Four layers of the family, hidden size 128."""
    config: PreTrainedConfig = CONFIG_MAPPING[family](**(_COMMON | FAMILIES[family]))
    return config


def sizes_of(family: str) -> Architecture:
    """The same, measured."""
    return measure(config_of(family), ModelSettings())


@pytest.mark.parametrize(
    ("family", "mode", "chunk"),
    [
        ("mixtral", "full", None),
        ("mixtral", "none", None),
        ("qwen3_moe", "keep_attention", 256),
        ("qwen3_next", "keep_attention", None),
        ("nemotron_h", "none", None),
        ("deepseek_v3", "full", None),
    ],
)
def test_live_memory(family, mode, chunk):
    """Checkpoints, gradients and transients of a step against torch's own count, within 10 %."""
    config = config_of(family)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).train()
    apply_checkpointing(model, mode, mlp_chunk=chunk)
    job = Job(ROWS, Precision(), optimizer_slots=0)
    memory = predict(sizes_of(family), job, Strategy(levers=Levers(mode, mlp_chunk=chunk)), CPU)
    predicted = memory.gradients + memory.checkpoints + memory.transient
    assert predicted == pytest.approx(live_peak(model, ROWS), rel=0.10)


def test_a_token_goes_through_two_of_eight_experts():
    """Mixtral: attention, two norms and the router whole, of the experts' 3 · H · I each two."""
    sizes = sizes_of("mixtral")
    rest = 128 * 32 * (4 + 2 + 2 + 4) + 2 * 128 + 128 * 8
    assert sizes.all_layers == 4 * (rest + 8 * 3 * 128 * 320)
    assert sizes.active == 4 * (rest + 2 * 3 * 128 * 320)
    assert sizes.parameters == sizes.all_layers + 2 * 128 * 128 + 128


def test_adapters_of_experts():
    """DeepSeek-V3, `all-linear`: of the experts' adapters two of eight; ZeRO-3 gathers a layer's experts at once."""
    lora = ModelSettings(adapter=Lora(r=16, target_modules=["all-linear"]))
    sizes, plain = measure(config_of("deepseek_v3"), lora), sizes_of("deepseek_v3")
    assert sizes.layer_experts > plain.layer_experts == sizes.adapted_experts == 8 * 3 * 128 * 96
    assert plain.active < sizes.active < plain.active + sizes.trainable / 2
    assert predict(sizes, Job(ROWS, Precision(2)), Strategy("zero3"), GPUS).buffers > 0


def test_work_is_that_of_the_experts_taken():
    """A longer row of Mixtral: four passes over the active parameters, with whole layers checkpointed."""
    sizes, levers = sizes_of("mixtral"), Levers("full")
    steps = [
        step_time(sizes, Job(Rows(prompt, (8, 8)), Precision(2)), Strategy(levers=levers), CPU).flops
        for prompt in (1000, 1001)
    ]
    pairs = Rows(1001, (8, 8)).pairs() - Rows(1000, (8, 8)).pairs()
    assert steps[1] - steps[0] == pytest.approx(4 * 2 * sizes.active + 4.5 * 4 * 128 * 4 * pairs)


def test_layers_that_keep_a_state_do_not_attend():
    """Qwen3-Next: one layer of four; work grows with its pairs alone, and rows stay on one process."""
    sizes = sizes_of("qwen3_next")
    assert sizes.query_widths == (0, 0, 0, 128)
    assert [pattern is None for pattern in sizes.patterns] == [True, True, True, False]
    assert sizes.attending == 1
    job = Job(ROWS, Precision(2))
    found = list(strategies(sizes, job, GPUS, prompts=64))
    assert {strategy.degree for strategy, _ in found} == {1}
    assert max(strategy.degree for strategy, _ in strategies(sizes_of("mixtral"), job, GPUS, prompts=64)) == 4


def test_latent_attention_is_as_wide_as_its_keys():
    """DeepSeek-V3: keys of 16 + 32 numbers, values of 32 that are padded to them before the exchange."""
    sizes = sizes_of("deepseek_v3")
    assert (sizes.heads, sizes.kv_heads, sizes.head_dim) == (4, 4, 48)
    job, spread = Job(ROWS, Precision(2)), Strategy("ddp", "ulysses", 4)
    sent, _ = exchange_bytes(sizes, job, spread, GPUS, ROWS)
    assert sent == pytest.approx(3 * 4 * (381) * 2 * 4 * 4 * 48 * 3 / 4)
    alone = predict(sizes, job, Strategy("ddp", levers=Levers("full")), GPUS)
    shared = predict(sizes, job, Strategy("ddp", "ulysses", 4, Levers("full")), GPUS)
    assert shared.transient > alone.transient / 4


@pytest.mark.parametrize("family", ["qwen3_next", "deepseek_v3"])
def test_a_folder_with_a_configuration_is_enough(family, tmp_path):
    """`align plan` says how layers are estimated, and finds settings that fit."""
    config_of(family).save_pretrained(tmp_path)
    made = plan(f"model.path={tmp_path}", "method=simpo", "rows.prompt=3000", "gpus=cpu", "gpus.memory_gb=90")
    assert made.given.memory.phase == "layer"
    assert made.best is not None
    (line,) = notes(made.sizes)
    assert "estimated from one layer of each kind" in line
    assert ("states by the library's own code" in line) == (family == "qwen3_next")


def test_llama_has_no_such_line_and_a_state_no_degree(tmp_path):
    config_of("qwen3_next").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"set parallel.degree=1 in place of 2"):
        plan(
            f"model.path={tmp_path}",
            "rows.prompt=300",
            "parallel=gather",
            "parallel.degree=2",
            "gpus.count=2",
        )
    sizes = measure(CONFIG_MAPPING["llama"](**_COMMON), ModelSettings())
    assert notes(sizes) == []
    assert sizes.counter is None
    assert cheapest(sizes, Job(ROWS, Precision(2)), GPUS, prompts=4) is not None
