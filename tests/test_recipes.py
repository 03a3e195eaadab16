"""Every recipe composes, passes the checks, and computes the same on a two-layer copy of its model as the plain way.

The copies have random weights and small sizes, and keep what the architecture decides: the ratio of heads to KV
heads, biases, normalised queries and keys, tied or untied head, rotary share of a head, RoPE and window.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import hydra_conf
from align.adapters.adapter import add_adapter
from align.core.errors import UserError
from align.data.positions_of_model import fit_positions
from align.longseq import ATTENTION, pack, pair_logps
from align.models.loading import load_causal_lm
from align.models.precision import trains_checkpoint_weights
from align.models.settings import ModelSettings
from align.query_scale.log_length import LogLength
from align.reference.settings import reference_model
from align.runs.recipes import check_recipe
from align.synthesis.utk import UtkPipeline
from align.training.run import Run, check
from losses import logo_loss
from tests.longseq.plain import assert_close, gradients, make_example, plain_pair_logps, randomise_lora_b
from tests.tiny import tiny_tokenizer

RECIPES = Path(__file__).parents[1] / "hydra_conf" / "experiment"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
METHODS = sorted(path.stem for path in (RECIPES.parent / "method").glob("*.yaml"))
# The others run on the embedded default, whose architecture the other tests cover.
OF_PAPERS = [
    name
    for name in NAMES
    if any(mark in (RECIPES / f"{name}.yaml").read_text() for mark in ("override /model:", "\n  path: "))
    and name != "longpo_rounds"  # of `align rounds`: its rounds train with a recipe that is tested here
]

LLAMA_3 = {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 256}
LLAMA_2 = {
    "model_type": "llama",
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
QWEN_2 = {
    "model_type": "qwen2",
    "num_attention_heads": 7,
    "num_key_value_heads": 1,
    "hidden_size": 56,
    "use_sliding_window": False,
    "sliding_window": 131072,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
# Hub id → its published configuration in small: 32/8 heads become 8/2, 28/4 become 7/1, 32/2 become 16/1.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "namespace-Pt/Llama-3-8B-Instruct-80K-QLoRA-Merged": LLAMA_3
    | {"max_position_embeddings": 81920, "rope_parameters": {"rope_type": "default", "rope_theta": 2e8}},
    "meta-llama/Meta-Llama-3-8B-Instruct": LLAMA_3
    | {"max_position_embeddings": 8192, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "princeton-nlp/Llama-3-8B-ProLong-64k-Base": LLAMA_3
    | {"max_position_embeddings": 65536, "rope_parameters": {"rope_type": "default", "rope_theta": 8e6}},
    "princeton-nlp/Llama-3-8B-ProLong-512k-Base": LLAMA_3
    | {"max_position_embeddings": 524288, "rope_parameters": {"rope_type": "default", "rope_theta": 1.28e8}},
    "meta-llama/Llama-2-70b-hf": LLAMA_3
    | {
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "meta-llama/Llama-3.1-8B": LLAMA_3
    | {
        "max_position_embeddings": 131072,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    # Four layers: a quarter of them is one, which CoFiTune's band needs.
    "meta-llama/Llama-2-7b-chat-hf": LLAMA_2 | {"num_hidden_layers": 4},
    "meta-llama/Llama-2-7b-hf": LLAMA_2,
    "meta-llama/Llama-2-13b-hf": LLAMA_2,
    "huggyllama/llama-7b": LLAMA_2 | {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    "codellama/CodeLlama-7b-hf": LLAMA_2
    | {"max_position_embeddings": 16384, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "mistralai/Mistral-7B-v0.1": {
        "model_type": "mistral",
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "sliding_window": 4096,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "mistralai/Mistral-7B-Instruct-v0.2": {
        "model_type": "mistral",
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "sliding_window": None,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "Qwen/Qwen2-7B": QWEN_2 | {"max_position_embeddings": 131072},
    "Qwen/Qwen2-7B-Instruct": QWEN_2,
    "Qwen/Qwen2.5-32B-Instruct": QWEN_2
    | {"num_attention_heads": 10, "num_key_value_heads": 2, "hidden_size": 80},  # 40/8
    "Qwen/Qwen2.5-7B-Instruct": QWEN_2,
    "Qwen/Qwen3-8B": {
        "model_type": "qwen3",
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "attention_bias": False,
        "use_sliding_window": False,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 40960,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "zai-org/glm-4-9b-hf": {
        "model_type": "glm",
        "num_attention_heads": 16,
        "num_key_value_heads": 1,
        "attention_bias": True,
        "rms_norm_eps": 1.5625e-07,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    },
}


# Patterns of so few tokens that they hide something from rows of the tests.
SMALL_PATTERNS = {
    "longlora_llama2_7b_32k": ("attention.group=6",),
    "longgen_llama2_7b_128k": ("attention.others.size=4", "attention.others.sinks=2"),
}
# And a window of pre-training that the positions behind a jump go beyond, in both layers of the copies.
SMALL_SCALES = {"eabf_llama2_7b": ("model.query_scale.window=500", "model.query_scale.skip_layers=0")}


def small_copy(hub_id: str, folder: Path) -> Path:
    """Two layers of the architecture behind `hub_id`, random weights, in `folder`."""
    facts = dict(ARCHITECTURES[hub_id])
    kind = facts.pop("model_type")
    small = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "head_dim": 8,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 3,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**(small | facts)))
    if any(
        "bias" in name for name, _ in model.named_parameters()
    ):  # a fresh bias is 0 and would show nothing
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)  # of as many words, behind which `model.extra_tokens` stand
    return folder


@cache
def compose(name: str, *overrides: str) -> DictConfig:
    """`align train experiment=<name>` as a configuration; read only."""
    with hydra.initialize_config_module("hydra_conf", version_base="1.3"):
        return hydra.compose("train", [f"experiment={name}", *overrides])


@pytest.fixture(scope="module")
def copies(tmp_path_factory) -> dict[str, Path]:
    return {hub_id: small_copy(hub_id, tmp_path_factory.mktemp("model")) for hub_id in ARCHITECTURES}


def checked(name: str, copies: dict[str, Path]) -> Run:
    """The recipe's run with its model replaced by the small copy, in float32 on the CPU."""
    path = copies[compose(name).model.path]
    local = [f"model.path={path}", "model.dtype=float32", "data.path=rows.jsonl", "trainer.use_cpu=true"]
    small = (*SMALL_PATTERNS.get(name, ()), *SMALL_SCALES.get(name, ()))
    return check(compose(name, *local, *small))


@pytest.fixture(scope="module")
def runs(copies) -> dict[str, Run]:
    return {name: checked(name, copies) for name in OF_PAPERS}


def test_the_papers_models_all_have_a_recipe():
    assert {compose(name).model.path for name in OF_PAPERS} == set(ARCHITECTURES)


@pytest.mark.parametrize(
    "recipe", sorted(path.relative_to(RECIPES).with_suffix("") for path in RECIPES.rglob("*.yaml"))
)
def test_a_recipe_takes_every_method_or_names_its_own(recipe):
    """One that leaves the method to the command, as those of `make smoke` and `make miniature` do, takes them all."""
    content = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())
    own = {entry["override /method"] for entry in content.get("defaults", ()) if "override /method" in entry}
    for method in METHODS:
        words = [f"experiment={recipe.as_posix()}", f"method={method}"]
        if own and method not in own and "loss" in content.get("method", {}):
            with pytest.raises(UserError, match=f"is a recipe for method={next(iter(own))} "):
                check_recipe(words)
        else:
            check_recipe(words)


@pytest.mark.parametrize("name", OF_PAPERS)
def test_recipe_names_its_own_output_and_source(name):
    text = (RECIPES / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    assert compose(name).output == f"outputs/{name}"
    assert "arXiv" in text


def load(settings: ModelSettings, attention: str | None) -> torch.nn.Module:
    """The same weights and adapters for the same settings, whatever the attention."""
    torch.manual_seed(1)
    adapter = settings.adapter
    if getattr(adapter, "dropout", 0):  # another draw in each forward
        adapter = replace(adapter, dropout=0.0)
    model = add_adapter(load_causal_lm(settings, attention=attention), adapter)
    randomise_lora_b(model)
    return model.train()


@pytest.mark.parametrize("name", OF_PAPERS)
def test_shared_prefix_equals_the_plain_way(runs, name):
    """Two packed prompts, the second with a position jump, with the recipe's adapters and RoPE: relative 1e-5."""
    settings = runs[name].model
    rng = np.random.default_rng(0)
    examples = [
        make_example(rng, prompt=19, answers=[7, 3, 5]),
        make_example(rng, prompt=12, answers=[2, 8, 1], jump=3000),
    ]
    plain, shared = load(settings, None), load(settings, ATTENTION)  # None: sdpa, or patterns by masks
    expected = plain_pair_logps(plain, examples)
    actual = pair_logps(shared, pack(examples), nll_scope="sequence", chunk_size=8)
    losses = []
    for logps in (actual, expected):
        # Scaled so that no pair's σ is flat: every answer has to show in the gradient.
        losses.append((logo_loss(logps, beta=1.0, gamma=0.5, sft_weight=0.1).loss + 0.1 * logps.nll).mean())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)
    assert_close(gradients(shared, losses[0]), gradients(plain, losses[1]))


def test_longpo_gives_the_policy_a_rope_of_its_own(runs):
    """Policy base 1e7, reference the checkpoint's 1e6 (LongPO, section 4): different inverse frequencies."""
    run = runs["longpo_mistral_7b_128k"]
    assert run.reference_source == "frozen"
    policy = load_causal_lm(run.model).model.rotary_emb.inv_freq
    reference = load_causal_lm(reference_model(run.reference, run.model)).model.rotary_emb.inv_freq
    exponents = torch.arange(0, 8, 2) / 8
    torch.testing.assert_close(policy, 1e7**-exponents)
    torch.testing.assert_close(reference, 1e6**-exponents)


@pytest.mark.parametrize(
    ("name", "theta"),
    [("logo_paper", 2e8), ("logo_llama3_8b_64k", 2e8), ("logo_mistral_7b", 1e6)],
)
def test_rope_base_of_logo(runs, name, theta):
    """2e8 is set for Llama-3's 8K model; the 80K model and Mistral keep their checkpoint's."""
    frequencies = load_causal_lm(runs[name].model).model.rotary_emb.inv_freq
    torch.testing.assert_close(frequencies, theta ** -(torch.arange(0, 8, 2) / 8))


PAPERS = {
    "logo_paper": {"beta": 10.0, "gamma": 3.0, "sft_weight": 0.1},
    "logo_llama3_8b_64k": {"beta": 10.0, "gamma": 3.0, "sft_weight": 0.1},
    "logo_mistral_7b": {"beta": 2.5, "gamma": 0.25, "sft_weight": 0.1},
    "longpo_mistral_7b_128k": {"beta": 0.1, "preference_weight": 0.01, "nll_weight": 1.0},
    "longpo_qwen2_5_7b_128k": {"beta": 0.1, "preference_weight": 0.01, "nll_weight": 1.0},
}


STAGES = {"prolong_llama3_8b_64k": (0.70, 8e6), "prolong_llama3_8b_512k": (0.75, 1.28e8)}


@pytest.mark.parametrize("name", STAGES)
def test_prolongs_shares_and_schedule(runs, name):
    """The scripts' proportions but for those of the books of data.path; bases at head size 8; a tenth of the peak."""
    shares, theta = STAGES[name]
    run = runs[name]
    assert sum(entry.share for entry in run.data.mix) == pytest.approx(shares, abs=1e-12)
    assert all(entry.ratio is None for entry in run.data.mix)
    frequencies = load_causal_lm(run.model).model.rotary_emb.inv_freq
    torch.testing.assert_close(frequencies, theta ** -(torch.arange(0, 8, 2) / 8))
    assert run.arguments.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    assert run.method.needs.weighting == "sequence"


def test_the_scale_of_eabf(runs):
    """Base 5e5, the first two layers left alone, the window of pre-training: a factor of 1.25 at position 32,767."""
    model = load_causal_lm(runs["eabf_llama2_7b"].model)
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, 5e5 ** -(torch.arange(0, 8, 2) / 8))
    config = OmegaConf.load(Path(hydra_conf.__file__).parent / "experiment" / "eabf_llama2_7b.yaml")
    scale = LogLength(**config.model.query_scale)  # the copies have another window
    far = torch.tensor([[4095.0, 32767.0]])
    assert [scale.scale(far, layer) is None for layer in range(3)] == [True, True, False]
    assert scale.scale(far, 2).tolist() == [[1.0, pytest.approx(1.25)]]


def test_the_marks_of_utk_and_its_tokens_a_step(runs):
    """Base 5e6 at head size 8; the marks that the pipeline asks for; 5,000 steps of 32 rows of 128K: 20.97B tokens."""
    run = runs["utk_qwen2_7b_128k"]
    assert run.model.extra_tokens == UtkPipeline().needed
    frequencies = load_causal_lm(run.model).model.rotary_emb.inv_freq
    torch.testing.assert_close(frequencies, 5e6 ** -(torch.arange(0, 8, 2) / 8))
    arguments = run.arguments
    rows = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    assert rows * run.data.max_length == 4_194_304 and arguments.max_steps * 4_194_304 > 20e9
    assert run.data.max_length == UtkPipeline().row_tokens
    assert arguments.lr_scheduler_kwargs == {"min_lr_rate": 0.1} and arguments.warmup_steps == 200


def test_e2s_positions_reach_twenty_windows(runs):
    """K = 20 · 4,096 of a model that divides positions by 20; a step of 16 rows on 8 GPUs."""
    run = runs["e2_llama2_13b"]
    placement = fit_positions(run.positions, run.model).placement
    assert (placement.target_length, placement.factor, run.positions.redraw) == (81920, 20, "epoch")
    frequencies = load_causal_lm(run.model).model.rotary_emb.inv_freq
    torch.testing.assert_close(frequencies, 1e4 ** -(torch.arange(0, 8, 2) / 8) / 20)
    assert run.arguments.gradient_accumulation_steps * run.arguments.per_device_train_batch_size * 8 == 16


def test_what_trains_with_longlora(runs):
    """Per layer A and B of q, k, v and o and two norms; the embedding and the last norm."""
    model = load(runs["longlora_llama2_7b_32k"].model, ATTENTION)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(trained) == 2 * (8 + 2) + 2
    assert (
        sum("lora_" in name for name in trained) == 16
        and sum("embed_tokens" in name for name in trained) == 1
    )


@pytest.mark.parametrize("name", PAPERS)
def test_published_hyper_parameters(name):
    loss = OmegaConf.to_container(compose(name).method.loss, resolve=True)
    assert {key: loss[key] for key in PAPERS[name]} == PAPERS[name]
    assert compose(name).trainer.learning_rate == 5e-7


@pytest.mark.parametrize("name", OF_PAPERS)
def test_what_trains_in_full_trains_in_float32(name, runs):
    """bfloat16 weights would swallow steps of 5e-7; LoRA's own weights are float32 whatever the base."""
    config = compose(name)
    if trains_checkpoint_weights(runs[name].model):
        assert config.model.dtype == "float32"
        assert config.trainer.bf16
