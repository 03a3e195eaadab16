"""The shared-prefix forward against one padded row for each answer and the library's own attention."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from align.data.examples import Answer, TokenizedExample
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.checkpointing import CHECKPOINTING, apply_checkpointing
from align.models.structure import set_reading
from losses import logo_loss
from tests.longseq.plain import (
    assert_close,
    gradients,
    make_example,
    plain_pair_logps,
    randomise_lora_b,
)
from tests.longseq.stateful import float64_throughout
from tests.tiny import KINDS, tiny_model

TARGETS = {"phi3": ["qkv_proj", "o_proj"]}


def build(kind: str, *, lora: bool, attention: str, **overrides) -> torch.nn.Module:
    """The same weights for the same arguments, whatever the attention."""
    model = tiny_model(kind, **overrides)
    model.set_attn_implementation(attention)
    if lora:
        torch.manual_seed(1)
        targets = TARGETS.get(kind, ["q_proj", "k_proj", "v_proj", "o_proj"])
        model = get_peft_model(model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
        randomise_lora_b(model)
    return model.train()


def loss_of(logps) -> torch.Tensor:
    """LOGO's, whose gradient reaches the chosen and every rejected answer."""
    return logo_loss(logps, beta=2.5, gamma=0.25, sft_weight=0.1).loss.mean()


def assert_parity(
    kind,
    examples,
    *,
    lora=False,
    checkpointing="none",
    mlp_chunk=None,
    offload="none",
    tokens_per_row=None,
    chunk_size=8,
    **overrides,
):
    plain = build(kind, lora=lora, attention="sdpa", **overrides)
    shared = build(kind, lora=lora, attention=ATTENTION, **overrides)
    apply_checkpointing(shared, checkpointing, mlp_chunk=mlp_chunk, offload=offload)
    expected = plain_pair_logps(plain, examples)
    actual = pair_logps(shared, pack(examples, tokens_per_row=tokens_per_row), chunk_size=chunk_size)
    torch.testing.assert_close(actual.chosen, expected.chosen, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual.rejected, expected.rejected, rtol=1e-5, atol=1e-5)
    assert torch.equal(actual.chosen_length, expected.chosen_length)
    assert torch.equal(actual.rejected_length, expected.rejected_length)
    torch.testing.assert_close(loss_of(actual), loss_of(expected), rtol=1e-5, atol=0)
    assert_close(gradients(shared, loss_of(actual)), gradients(plain, loss_of(expected)))


@pytest.mark.parametrize("checkpointing", list(CHECKPOINTING))
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture(kind, lora, checkpointing):
    rng = np.random.default_rng(0)
    examples = [
        make_example(rng, prompt=21, answers=[7, 3, 5]),
        make_example(rng, prompt=9, answers=[2, 8, 1]),
    ]
    assert_parity(kind, examples, lora=lora, checkpointing=checkpointing)


# Tiles of 7 tokens do not divide the 55 tokens of a row; 100 are more than there are.
LEVERS = {
    "tiles": {"mlp_chunk": 7},
    "one tile": {"mlp_chunk": 100},
    "disk": {"offload": "disk"},
    "both": {"mlp_chunk": 7, "offload": "disk"},
}


@pytest.mark.parametrize("lever", LEVERS)
@pytest.mark.parametrize("checkpointing", ["full", "keep_attention"])
@pytest.mark.parametrize(
    ("kind", "lora"), [*((kind, False) for kind in KINDS), ("llama", True), ("phi3", True)]
)
def test_memory_levers(kind, lora, checkpointing, lever):
    """Tiled layers and offloaded inputs give what padded rows give, packed or one prompt a row."""
    rng = np.random.default_rng(0)
    examples = [
        make_example(rng, prompt=21, answers=[7, 3, 5]),
        make_example(rng, prompt=9, answers=[2, 8, 1]),
    ]
    for tokens_per_row in (None, 1):
        settings = LEVERS[lever] | {"checkpointing": checkpointing, "tokens_per_row": tokens_per_row}
        assert_parity(kind, examples, lora=lora, **settings)


@pytest.mark.parametrize("rejected", range(5))
def test_number_of_rejected_answers(rejected):
    rng = np.random.default_rng(rejected)
    lengths = [6, 4, 9, 1, 3][: 1 + rejected]
    assert_parity("llama", [make_example(rng, prompt=17, answers=lengths)])


def test_answers_of_one_token():
    rng = np.random.default_rng(1)
    assert_parity("llama", [make_example(rng, prompt=5, answers=[1, 1, 1])])


def test_answers_of_very_different_lengths():
    """A long text against a short one (LongWriter's pairs): exact, and not a token of padding is read."""
    rng = np.random.default_rng(11)
    shapes = [(9, [400, 12]), (5, [7, 250, 90])]
    examples = [make_example(rng, prompt=prompt, answers=answers) for prompt, answers in shapes]
    assert pack(examples).num_tokens == sum(prompt + sum(answers) for prompt, answers in shapes)
    assert_parity("llama", examples, lora=True, chunk_size=64)


@pytest.mark.parametrize("way", [ATTENTION, "masked", "library"])
@pytest.mark.parametrize("tokens_per_row", [None, 1])
def test_positions_by_steps_in_float64(way, tokens_per_row):
    """As E²-LLM's: steps of 5, an offset, linear RoPE; every way to read a row, packed or not, and a document's own."""
    rng = np.random.default_rng(5)
    shapes = [(12, [5, 3]), (20, [4, 4]), (1, [9, 2])]
    examples = [
        make_example(rng, prompt=prompt, answers=answers, step=step, jump=70)
        for step, (prompt, answers) in zip((5, 10, 4), shapes, strict=True)
    ]
    own = replace(examples[2].answers[0], positions=74 + np.cumsum(rng.integers(1, 9, 9)))
    examples[2] = replace(examples[2], answers=(own, examples[2].answers[1]))
    rope = {"rope_type": "linear", "factor": 20.0, "rope_theta": 1e4}
    plain, read = (
        build("llama", lora=False, attention=name, rope_parameters=rope).double()
        for name in ("sdpa", ATTENTION if way == ATTENTION else "sdpa")
    )
    set_reading(read, way if way != ATTENTION else "sdpa")
    with float64_throughout():
        expected = plain_pair_logps(plain, examples)
        found = pair_logps(read, pack(examples, tokens_per_row=tokens_per_row), chunk_size=8)
        torch.testing.assert_close(found.chosen, expected.chosen, rtol=1e-12, atol=0)
        torch.testing.assert_close(found.rejected, expected.rejected, rtol=1e-12, atol=0)
        torch.testing.assert_close(loss_of(found), loss_of(expected), rtol=1e-12, atol=0)
        assert_close(gradients(read, loss_of(found)), gradients(plain, loss_of(expected)), tolerance=1e-12)
        stepless = [replace(example, position_step=1) for example in examples]
        assert not torch.allclose(plain_pair_logps(plain, stepless).chosen[:2], expected.chosen[:2])


def test_prompt_of_one_token():
    rng = np.random.default_rng(2)
    assert_parity("llama", [make_example(rng, prompt=1, answers=[3, 2])])


@pytest.mark.parametrize("tokens_per_row", [None, 1, 40, 70])
def test_packed_rows(tokens_per_row):
    """Prompts of unlike size and unlike number of answers, in one row, in several, and one a row."""
    rng = np.random.default_rng(3)
    shapes = [(12, [5, 3]), (20, [4, 4, 2]), (7, [1, 6]), (15, [3])]
    examples = [make_example(rng, prompt=prompt, answers=answers) for prompt, answers in shapes]
    assert_parity("qwen2", examples, lora=True, tokens_per_row=tokens_per_row)


def test_positions_that_jump():
    """Synthesised positions leave gaps; the library must be told (`attention_mask`) not to read them as borders."""
    rng = np.random.default_rng(4)
    assert_parity("llama", [make_example(rng, prompt=30, answers=[5, 6, 2], jump=900)])


def test_attention_crosses_a_position_jump():
    """Changing a token before the jump changes the log-probs after it."""
    rng = np.random.default_rng(5)
    model = build("llama", lora=False, attention=ATTENTION)
    example = make_example(rng, prompt=30, answers=[5, 6], jump=900)
    changed = example.prompt_ids.copy()
    changed[0] = (changed[0] + 1) % 128
    other = TokenizedExample(example.source, changed, example.position_ids, example.answers)
    first, second = (pair_logps(model, pack([one])).chosen for one in (example, other))
    assert (first - second).abs().item() > 1e-4


def test_untied_and_tied_heads_and_bias():
    rng = np.random.default_rng(6)
    examples = [make_example(rng, prompt=11, answers=[4, 6])]
    assert_parity("llama", examples, tie_word_embeddings=True)
    assert_parity("llama", examples, attention_bias=True, mlp_bias=True)


def test_siblings_and_neighbours_are_invisible():
    """An answer's sum stays the same to the bit of rounding whatever its siblings and row mates are."""
    rng = np.random.default_rng(7)
    model = build("llama", lora=False, attention=ATTENTION)
    one = make_example(rng, prompt=13, answers=[5, 4])
    mate = make_example(rng, prompt=8, answers=[3, 9])
    changed = TokenizedExample(
        one.source,
        one.prompt_ids,
        one.position_ids,
        (one.answers[0], Answer(rng.integers(4, 128, 7), np.ones(7, bool))),
    )
    alone = pair_logps(model, pack([one])).chosen[0]
    beside = pair_logps(model, pack([mate, changed])).chosen[1]
    torch.testing.assert_close(alone, beside, rtol=1e-6, atol=1e-6)


def test_several_turns_score_only_the_answers():
    """A branch y1 + q2 + y2 with q2 unscored: the sum covers y1 and y2, both computed with all before them."""
    rng = np.random.default_rng(8)
    scored = np.array([True] * 4 + [False] * 3 + [True] * 2)
    base = make_example(rng, prompt=10, answers=[9, 9])
    example = TokenizedExample(
        base.source,
        base.prompt_ids,
        base.position_ids,
        tuple(Answer(answer.input_ids, scored) for answer in base.answers),
    )
    assert_parity("llama", [example])


@pytest.mark.parametrize("scope", ["chosen", "sequence"])
def test_nll_scopes(scope):
    """`sequence`: the mean over every token of prompt and chosen branch but the first, which nothing predicts."""
    rng = np.random.default_rng(9)
    examples = [make_example(rng, prompt=11, answers=[4, 6]), make_example(rng, prompt=6, answers=[7, 2])]
    plain = build("llama", lora=False, attention="sdpa")
    shared = build("llama", lora=False, attention=ATTENTION)
    expected = plain_pair_logps(plain, examples)
    actual = pair_logps(shared, pack(examples), nll_scope=scope, chunk_size=5)
    wanted = expected.nll if scope == "sequence" else -expected.chosen / expected.chosen_length
    torch.testing.assert_close(actual.nll, wanted, rtol=1e-5, atol=1e-6)
    assert_close(gradients(shared, actual.nll.sum()), gradients(plain, wanted.sum()))


def test_evaluation_mode_gives_the_same():
    """Nothing is decided by `module.training`."""
    rng = np.random.default_rng(10)
    model = build("llama", lora=True, attention=ATTENTION)
    batch = pack([make_example(rng, prompt=14, answers=[4, 3])])
    training = pair_logps(model, batch)
    with torch.no_grad():
        evaluating = pair_logps(model.eval(), batch)
    assert torch.equal(training.chosen, evaluating.chosen)
    assert torch.equal(training.rejected, evaluating.rejected)


def test_token_scoring_golden_values():
    """logo.md's: logits rows with labels [−100, −100, 0, 1, −100] have mean −0.54221067 and sum −1.08442133.

    The label at index i is predicted by row i − 1: 0 from [2, 0, 0, 0], 1 from [0, 1, 0, 0] … as shifted.
    """
    from align.longseq.logps import token_logps

    rows = torch.tensor(
        [[0, 0, 0, 0], [2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]], dtype=torch.float64
    )
    logps = token_logps(torch.nn.Identity(), rows[[1, 2]], torch.tensor([0, 1]), slices=2)
    assert logps.sum().item() == pytest.approx(-1.08442133, abs=1e-8)
    assert logps.mean().item() == pytest.approx(-0.54221067, abs=1e-8)
