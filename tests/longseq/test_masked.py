"""Packed rows by a mask (`model.attention=masked`) give what the model says of each answer by itself."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import CONFIG_MAPPING, AttentionInterface, TrainingArguments
from transformers.masking_utils import AttentionMaskInterface

from align.core.errors import UserError
from align.data.examples import TokenizedExample
from align.longseq import pack, pair_logps
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.float64 import Float64
from align.longseq.forward import tokens_read
from align.longseq.masked import row_masks
from align.longseq.numeric import outcome
from align.longseq.parallel import SequenceParallel
from align.longseq.settings import MemorySettings
from align.longseq.shared_prefix import Layout, PackedPrompt
from align.longseq.small_model import build_small
from align.models.loading import library_class
from align.models.settings import LIBRARY, MASKED
from align.models.structure import set_reading
from align.models.text_part import set_attention
from align.reference.sources import AdapterOff
from align.training.trainer import PreferenceTrainer
from benchmarks.architecture_worker import Architecture
from losses.types import PairLogps
from tests.distributed import run_distributed
from tests.longseq.plain import assert_close, randomise_lora_b
from tests.longseq.sharded import Case
from tests.longseq.test_own_rows import (
    METHODS,
    assert_alike,
    check_resumed,
    check_two_steps,
    check_wrappers,
    examples,
    mixed,
    one_by_one,
)
from tests.longseq.wrapped import TOLERANCES, WRAPPERS, Wrapper, _worst, alone
from tests.tiny import tiny_model
from tests.training.helpers import make_trainer

# Attention of their own (GPT-J, Falcon), a mask of its own (StableLM), keys that an index selects (DeepSeek-V3.2,
# GLM-5), that and windows by kinds of layers (dots.3), that beside layers with a state (Qwen4), windows and a head of
# more than its embedding (ModernBERT's decoder).
KINDS = (
    *("gptj", "falcon", "stablelm", "deepseek_v32", "glm_moe_dsa", "dots3_note_text", "qwen4_exp_text"),
    "modernbert-decoder",
)
SELECTING = ("deepseek_v32", "glm_moe_dsa", "dots3_note_text")
QUICK = ("gptj", "glm_moe_dsa", "dots3_note_text", "qwen4_exp_text")


def build(kind: str, *, dtype: torch.dtype = torch.float64, selecting: bool = False) -> Any:
    """A small model that reads packed rows by a mask.

    Of the keys an index selects all, or 4 of those that a token sees; it has 32 heads then, since a score of few heads
    is 0 for many keys, and which of these is taken is not said.
    """
    config = Architecture(CONFIG_MAPPING[kind]).config()
    if selecting:
        config.index_n_heads = 32
    keep = ("index_n_heads",) if selecting else ("index_topk", "indexer_budget")
    model_class: Any = library_class(config)
    model = build_small(model_class, config, dtype=dtype, keep=keep)
    set_reading(model, MASKED)
    return model


def slow_but(quick: tuple[str, ...]) -> list[Any]:
    return [pytest.param(kind, marks=[] if kind in quick else pytest.mark.slow) for kind in KINDS]


def assert_same(model: nn.Module, rows: list[TokenizedExample], *, tolerance: float = 1e-9) -> None:
    """Values and gradients against each answer in a row by itself, in float64, with each scope of the NLL."""
    batch = pack(rows, tokens_per_row=40)

    def expected(scope: str) -> PairLogps:
        found = one_by_one(model, rows)
        nll = {"none": None, "chosen": -found.chosen / found.chosen_length, "sequence": found.nll}
        return replace(found, nll=nll[scope])

    with Float64():
        for scope in ("none", "chosen", "sequence"):
            read = partial(pair_logps, model, batch, nll_scope=scope, chunk_size=3)
            for name, value in vars(expected(scope)).items():
                torch.testing.assert_close(getattr(read(), name), value, rtol=tolerance, atol=tolerance)
            actual, wanted = (
                outcome(model, forward, loss_of=mixed)[1] for forward in (read, partial(expected, scope))
            )
            # An index that selects keys takes no part.
            assert {name for name in wanted if wanted[name] is None} == {
                name for name in actual if actual[name] is None
            }
            assert_alike(
                *({k: v for k, v in each.items() if v is not None} for each in (actual, wanted)), tolerance
            )


@pytest.mark.parametrize("kind", slow_but(QUICK))
def test_values_and_gradients_are_the_models_own(kind):
    assert_same(build(kind), examples())


@pytest.mark.parametrize("kind", slow_but(("stablelm",)))
def test_positions_with_jumps(kind):
    assert_same(build(kind), examples(jump=50))


@pytest.mark.parametrize("kind", SELECTING)
def test_keys_are_selected_among_those_that_an_answer_sees(kind):
    """4 keys of up to 27: an index that looked at siblings or at other prompts would take others."""
    model = build(kind, selecting=True)
    assert model.config.index_topk == 4
    assert_same(model, examples())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_either_form_of_a_mask(attention):
    model = tiny_model().double()
    set_attention(model, attention)
    set_reading(model, MASKED)
    assert_same(model, examples())
    batch = pack(examples())
    assert tokens_read(model, batch) == batch.num_tokens == 69


def test_who_sees_whom():
    """A prompt of 3 tokens with answers of 2 and 1, in full and with a window of 3."""
    layout = Layout((PackedPrompt((0, 3), ((3, 5), (5, 6))),))
    full = [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    full += [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 1]]
    window = [*full[:3], [0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 0, 1]]
    model = build("modernbert-decoder")
    model.config.sliding_window = 3
    masks = row_masks(model, layout, torch.device("cpu"))
    seen = {kind: mask[0, 0].int().tolist() for kind, mask in masks.items()}
    assert seen == {"full_attention": full, "sliding_attention": window}
    set_attention(model, "eager")
    added = row_masks(model, layout, torch.device("cpu"))["full_attention"]
    assert added.dtype == torch.float64
    assert torch.equal(added == 0, masks["full_attention"]) and added.min() == torch.finfo(torch.float64).min


# ---- memory levers, precisions, references, methods


@pytest.mark.parametrize(
    ("mode", "offload"), [("full", "none"), ("keep_attention", "none"), ("full", "disk")]
)
@pytest.mark.parametrize("kind", ["falcon", "glm_moe_dsa", "qwen4_exp_text"])
def test_checkpointing_keeps_the_gradients(kind, mode, offload):
    plain, levered = (build(kind, dtype=torch.float32) for _ in range(2))
    apply_checkpointing(levered, mode, offload=offload)
    batch = pack(examples())
    expected, actual = (
        outcome(model, partial(pair_logps, model, batch, chunk_size=4), loss_of=mixed)
        for model in (plain, levered)
    )
    assert torch.equal(actual[0], expected[0])
    assert_close(*({k: v for k, v in each[1].items() if v is not None} for each in (actual, expected)))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["stablelm", "glm_moe_dsa"])
def test_bfloat16_hides_what_float32_hides(kind, autocast):
    """A sibling's tokens change no bit of an answer's log-prob, in weights of two bytes and under autocast."""
    model = build(kind, dtype=torch.float32 if autocast else torch.bfloat16)
    rows = examples()
    other = [replace(rows[0], answers=(rows[1].answers[0], *rows[0].answers[1:])), *rows[1:]]
    context = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext()
    with torch.no_grad(), context:
        first, second = (pair_logps(model, pack(each)) for each in (rows, other))
    assert first.chosen[0] != second.chosen[0] and torch.isfinite(first.chosen).all()
    torch.testing.assert_close(first.rejected, second.rejected, rtol=1e-2, atol=1e-2)


def test_the_adapter_off_is_the_model_without_it():
    """To the last bit: with a new adapter a margin at step 0 is 0."""
    base = build("stablelm", dtype=torch.float32)
    batch = pack(examples())
    expected = pair_logps(base, batch)
    policy = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    randomise_lora_b(policy)
    assert not torch.equal(pair_logps(policy, batch).chosen, expected.chosen)
    found = AdapterOff(policy, pair_logps)(policy, batch)
    assert torch.equal(found.chosen, expected.chosen) and torch.equal(found.rejected, expected.rejected)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(tmp_path, name):
    check_two_steps(tmp_path, name, build("gptj", dtype=torch.float32), "masked")


def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(tmp_path):
    check_resumed(tmp_path, partial(build, "stablelm", dtype=torch.float32), "masked")


# ---- what is refused


def test_a_model_that_does_not_heed_a_mask_is_refused_in_its_first_forward():
    def causal(module: nn.Module, query: Any, key: Any, value: Any, mask: Any, **unused: Any) -> Any:
        attended = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return attended.transpose(1, 2), None

    AttentionInterface.register("tests_causal", causal)
    AttentionMaskInterface.register("tests_causal", lambda *given, **more: None)
    model = tiny_model()
    set_attention(model, "tests_causal")
    set_reading(model, MASKED)
    with pytest.raises(
        UserError, match=r"does not heed the mask of a packed row: .* set model\.attention=library"
    ):
        pair_logps(model, pack(examples()))


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("mpt", "MptForCausalLM takes no position_ids, which model.attention=masked hands it"),
        ("inkling_text", "InklingForCausalLM has layers of type hybrid_sliding, whose mask is not known"),
    ],
)
def test_models_that_take_no_such_mask_are_refused(kind, sentence):
    config = Architecture(CONFIG_MAPPING[kind]).config()
    model_class: Any = library_class(config)
    model = build_small(model_class, config, dtype=torch.float32)
    set_reading(model, MASKED)
    with pytest.raises(UserError, match=sentence):
        pair_logps(model, pack(examples()))


def test_a_row_is_read_by_one_process_and_not_in_tiles(tmp_path):
    model = build("gptj", dtype=torch.float32)
    group = SequenceParallel(None, 2, 0, "gather", None, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"which model\.attention=masked cannot: set parallel=none"):
        pair_logps(model, pack(examples()), parallel=group)
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    with pytest.raises(UserError, match=r"memory\.mlp_chunk=8 cuts layers at our attention"):
        PreferenceTrainer(
            model, arguments, method="simpo", attention="masked", memory=MemorySettings(mlp_chunk=8)
        )


def test_a_refusal_names_the_mask_where_it_shares_the_prompt(tmp_path):
    model = build("stablelm", dtype=torch.float32)
    set_reading(model, LIBRARY)
    with pytest.raises(UserError, match="set attention=masked to share the prompt by a mask"):
        make_trainer(tmp_path, model=model)


# ---- wrappers


def test_ddp_and_fsdp():
    check_wrappers(["ddp", "fsdp2"], MASKED)


def unlike(rank: int, size: int, name: str) -> float:
    """The worst gradient's error of one prompt on the first process and two on the second, against all in one."""
    rows = Case(rows=((20, (7, 3)), (40, (5, 6)), (18, (2, 4)))).examples()

    def gradients_of(wrapper: Wrapper, read: list[TokenizedExample], factor: float) -> dict[str, Any]:
        model, batch = Case().build("sdpa"), pack(read)
        set_reading(model, MASKED)
        step, _ = wrapper(model)
        return step(lambda called: factor * pair_logps(called, batch, chunk_size=3).chosen.sum())[1]

    expected = gradients_of(alone, rows, 1 / size)
    return _worst(gradients_of(WRAPPERS[name], rows[rank : 1 + 2 * rank], 1.0), expected)


def test_unlike_numbers_of_prompts():
    """The first process reads an empty row while the second still has one."""
    for error in run_distributed(unlike, 2, "fsdp2"):
        assert error <= TOLERANCES["gradient"]


@pytest.mark.slow
def test_zero():
    pytest.importorskip("deepspeed")
    check_wrappers(["zero3"], MASKED)
