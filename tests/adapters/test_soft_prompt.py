"""A soft prompt as tokens is PEFT's prompt tuning on plain rows, and the same packed, sharded and generated with."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import TrainingArguments

from align.adapters.ball import into_ball
from align.adapters.soft_prompt import SoftPrompt
from align.core.errors import UserError
from align.data.examples import TokenizedExample, with_soft_prompt
from align.generation.generators import Message, Request, Sampling
from align.generation.local import LocalSettings
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.parallel import start_parallel
from align.longseq.plain_rows import plain_pair_logps
from align.models.soft_prompt import PromptRows, add_soft_prompt, prompt_weights, soft_ids
from align.models.structure import find_causal_lm
from align.reference.sources import AdapterOff
from align.training.collate import Collator
from align.training.method_settings import Needs
from losses import logo_loss
from tests.distributed import run_distributed
from tests.longseq.plain import assert_close, gradients, make_example
from tests.longseq.wrapped import WRAPPERS
from tests.tiny import tiny_composite, tiny_model, tiny_tokenizer

TOKENS = 5
STEPS = 3


def base(**overrides: Any) -> Any:
    return tiny_model(**({"initializer_range": 0.1} | overrides)).double()


@cache
def examples(jump: int = 30) -> tuple[TokenizedExample, ...]:
    """Two rows without a soft prompt; the second has synthesised positions."""
    rng = np.random.default_rng(0)
    return (
        make_example(rng, prompt=21, answers=(5, 9, 3)),
        make_example(rng, prompt=14, answers=(8, 2, 6), jump=jump),
    )


def behind(model: nn.Module, rows: Any = None) -> list[TokenizedExample]:
    return [with_soft_prompt(row, soft_ids(model)) for row in rows or examples()]


def policy_of(model: Any, attention: str = ATTENTION, **settings: Any) -> Any:
    policy = SoftPrompt(tokens=TOKENS, **settings).add(model)
    find_causal_lm(policy).set_attn_implementation(attention)
    return policy.train()


def loss_of(logps: Any) -> Tensor:
    return logo_loss(logps, beta=1.0, gamma=0.5, sft_weight=0.1).loss.sum()


def step(policy: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    return {"loss": loss.detach()[None], **gradients(policy, loss)}


# ---- PEFT's prompt tuning


def prompt_tuning(model: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and the prompt's gradient by PEFT, a plain row for each answer."""
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS)
    policy: Any = get_peft_model(model, config).double()
    (weight,) = (each for each in policy.parameters() if each.requires_grad)
    weight.data.copy_(rows)
    total = torch.zeros((), dtype=torch.float64)
    for row in examples(0):
        for j, answer in enumerate(row.answers):
            ids = torch.as_tensor(np.concatenate([row.prompt_ids, answer.input_ids]))[None]
            logps = policy(input_ids=ids).logits.log_softmax(-1)[0, TOKENS:]
            start = len(row.prompt_ids)
            scored = logps[start - 1 : -1].gather(-1, ids[0, start:, None])
            total = total + scored.sum() * (1.0 if j == 0 else -0.5)
    return total.detach(), torch.autograd.grad(total, weight)[0]


@pytest.mark.parametrize("tied", [False, True])
def test_it_is_prompt_tuning(tied: bool) -> None:
    """fp64: the loss to 1e-12, the gradient to 1e-6; tied, the head gives no logit for the prompt's tokens."""
    policy = policy_of(base(tie_word_embeddings=tied), "sdpa")
    rows = prompt_weights(policy)[0].detach()
    expected, gradient = prompt_tuning(base(tie_word_embeddings=tied), rows)
    for attention, forward in (
        ("sdpa", lambda: plain_pair_logps(policy, behind(policy, examples(0)))),
        (ATTENTION, lambda: pair_logps(policy, pack(behind(policy, examples(0))))),
    ):
        find_causal_lm(policy).set_attn_implementation(attention)
        logps = forward()
        loss = (logps.chosen - 0.5 * logps.rejected.sum(1)).sum()
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-12, atol=0)
        (found,) = gradients(policy, loss).values()
        assert float((found - gradient).norm() / gradient.norm()) <= 1e-6


# ---- the same however it is computed


def plain(policy: Any) -> dict[str, Tensor]:
    find_causal_lm(policy).set_attn_implementation("sdpa")
    found = step(policy, loss_of(plain_pair_logps(policy, behind(policy))))
    find_causal_lm(policy).set_attn_implementation(ATTENTION)
    return found


def packed(policy: Any, *, tokens_per_row: int | None = None, parallel: Any = None) -> dict[str, Tensor]:
    batch = pack(behind(policy), tokens_per_row=tokens_per_row)
    return step(policy, loss_of(pair_logps(policy, batch, chunk_size=8, parallel=parallel)))


@pytest.mark.parametrize("trains", ["prompt", "base"])
def test_packed_rows_checkpoints_and_tiles(trains: str) -> None:
    def policy() -> Any:
        return behind_frozen(base()) if trains == "base" else policy_of(base())

    expected = plain(policy())
    assert_close(packed(policy()), expected, tolerance=1e-6)
    assert_close(packed(policy(), tokens_per_row=1), expected, tolerance=1e-6)
    levered = policy()
    apply_checkpointing(levered, "full", mlp_chunk=7)
    assert_close(packed(levered), expected, tolerance=1e-6)


def behind_frozen(model: Any) -> Any:
    """All parameters train, behind a prompt that stays."""
    rows = torch.randn(TOKENS, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    add_soft_prompt(model, PromptRows(rows, trains=False))
    model.set_attn_implementation(ATTENTION)
    return model.train()


@pytest.mark.parametrize("kind", ["gemma3", "qwen3_vl"])
def test_text_parts_of_composites(kind: str) -> None:
    """Gemma's embedding scales what it looks up, and the prompt begins as scaled rows."""
    policy = policy_of(tiny_composite(kind, initializer_range=0.1).double())
    tokens: Any = find_causal_lm(policy).get_input_embeddings()
    rows = prompt_weights(policy)[0]
    every = tokens(torch.arange(128)[None])[0]
    assert all((every - row).abs().sum(-1).min() < 1e-5 for row in rows)
    assert_close(packed(policy), plain(policy), tolerance=1e-6)


def sharded_steps(rank: int, size: int, folder: Any) -> dict[str, dict[str, Tensor]]:
    """The world's mean of a step that two processes share by each exchange."""
    found = {}
    for kind in ("gather", "ulysses"):
        found[kind] = packed(policy_of(base()), parallel=start_parallel(kind, size))
        for value in found[kind].values():
            torch.distributed.all_reduce(value)
            value /= size
    return found


def test_two_processes_that_share_a_row(tmp_path) -> None:
    """The second one's shard has no token of the prompt, and its gradient is the same."""
    for found in run_distributed(sharded_steps, 2, tmp_path)[0].values():
        assert_close(found, plain(policy_of(base())), tolerance=1e-6)


def wrapped_steps(rank: int, size: int, folder: Any) -> dict[str, dict[str, Tensor]]:
    """Loss, gradient and, after some steps, weights in each wrapper, the row shared by all processes."""
    found = {}
    for name in ("ddp", "fsdp2", "zero2", "zero3"):
        parallel = start_parallel("gather", size)
        found[name] = steps_in(WRAPPERS[name], parallel)
    return found


def steps_in(wrapper: Any, parallel: Any = None) -> dict[str, Tensor]:
    policy = policy_of(base().float())
    take, weights = wrapper(policy)
    batch = pack(behind(policy))
    taken = [
        take(lambda called: 100 * loss_of(pair_logps(called, batch, parallel=parallel))) for _ in range(STEPS)
    ]
    ((_, gradient),) = taken[0][1].items()
    ((_, weight),) = weights().items()
    return {"loss": torch.tensor([taken[0][0]]), "gradient": gradient, "weight": weight}


@pytest.mark.slow
def test_wrappers(tmp_path) -> None:
    """DDP, FSDP2, ZeRO-2 and ZeRO-3 train the rows as one process does; clipping is active."""
    pytest.importorskip("deepspeed")
    from tests.longseq.wrapped import alone

    expected = steps_in(alone)
    for found in run_distributed(wrapped_steps, 2, tmp_path)[0].values():
        assert_close(found, expected, tolerance=1e-5)


# ---- rows


def test_what_is_scored_is_the_same() -> None:
    """An NLL over the whole sequence leaves the prompt's tokens out, and the text's first one as always."""
    policy = policy_of(base())
    bare, soft = pack(examples()), pack(behind(policy))
    for name in ("target", "context_target", "lengths", "context_length"):
        assert torch.equal(getattr(soft.rows[0], name), getattr(bare.rows[0], name))
    assert torch.isfinite(pair_logps(policy, soft, nll_scope="sequence").nll).all()


def test_positions_spans_and_short_contexts_move() -> None:
    row = replace(examples()[1], short=(examples()[0],))
    found = with_soft_prompt(row, np.arange(128, 132))
    assert found.prompt_ids[:5].tolist() == [128, 129, 130, 131, row.prompt_ids[0]]
    assert found.position_ids.tolist() == [0, 1, 2, 3, *(row.position_ids + 4)]
    ((start, stop),) = row.chunk_spans
    assert found.chunk_spans == ((start + 4, stop + 4),)
    assert found.short[0].prompt_ids[0] == 128 and found.short[0].position_ids[4] == 4
    assert with_soft_prompt(row, np.arange(0)) is row


def test_a_reference_reads_rows_without_it() -> None:
    """With the adapter off it is the starting model's log-probs, to the last bit."""
    from align.data.stored_rows import to_row

    policy = policy_of(base())
    needs = Needs(reference="same", policy_short=False, nll_scope="none")
    batch = Collator.of(needs, soft=soft_ids(policy))([to_row(row) for row in examples()])
    assert batch["batch"].num_tokens == batch["bare"]["batch"].num_tokens + 2 * TOKENS
    start = base()
    start.set_attn_implementation(ATTENTION)
    with torch.no_grad():
        expected = pair_logps(start, pack(examples()))
    found = AdapterOff(policy, pair_logps)(policy, batch["bare"]["batch"])
    assert torch.equal(found.chosen, expected.chosen) and torch.equal(found.rejected, expected.rejected)
    alone = Collator.of(needs, soft=soft_ids(start))([to_row(row) for row in examples()])
    assert "bare" not in alone and alone["batch"].num_tokens == batch["bare"]["batch"].num_tokens


def test_answers_are_generated_behind_it() -> None:
    """What a suite asks during training is what greedy decoding of the ids gives."""
    model = tiny_model(initializer_range=0.1)
    policy = SoftPrompt(tokens=TOKENS).add(model).eval()
    for weight in prompt_weights(policy):
        weight.data.mul_(20)
    sampling = Sampling(temperature=0.0, top_p=1.0, min_new_tokens=6, max_new_tokens=6)
    request = Request("one", (Message("user", "w10 w11 w12"),), sampling, 0)
    generator = LocalSettings().of_model(model, tiny_tokenizer())
    prompt = generator.encode(request)
    assert prompt[:TOKENS].tolist() == soft_ids(policy).tolist()
    ((pair,),) = generator.generate([request], finished=())
    ids = prompt.tolist()
    with torch.no_grad():
        for _ in range(6):
            logits = model(torch.tensor([ids])).logits[0, -1]
            logits[3] = -torch.inf  # the end, which an answer of six tokens does not have
            ids.append(int(logits.argmax()))
    assert pair[1].text == tiny_tokenizer().decode(ids[len(prompt) :], skip_special_tokens=True).strip()
    assert len(pair[1].text.split()) > 1


# ---- derived values


def test_promot_in_numbers() -> None:
    """h is the mean of [P; x] and the logits are Uh: stage 1 moves P, stage 2 moves U behind the P of stage 1."""
    tokens = nn.Embedding(2, 2, _weight=torch.tensor([[1.0, -1.0], [0.5, 0.5]], dtype=torch.float64))
    prompt = PromptRows(torch.tensor([[0.1, 0.2]], dtype=torch.float64), trains=True)
    head = torch.tensor([[0.5, -0.2], [0.1, 0.3], [-0.4, 0.6]], dtype=torch.float64, requires_grad=True)
    toy = Toy(tokens)
    add_soft_prompt(toy, prompt)

    def loss(*ids: int) -> Tensor:
        logits = head @ tokens(torch.tensor(ids)).mean(0)
        return nn.functional.cross_entropy(logits[None], torch.tensor([2]))

    assert loss(2, 0, 1).item() == pytest.approx(1.41002047, abs=1e-8)
    assert loss(0, 1).item() == pytest.approx(1.60285378, abs=1e-8)
    own, other = torch.autograd.grad(loss(2, 0, 1), [prompt.weight, head])
    assert own[0].tolist() == pytest.approx([0.18296444, -0.14682054], abs=1e-8)
    assert other[2].tolist() == pytest.approx([-0.40312625, 0.07558617], abs=1e-8)
    (bare,) = torch.autograd.grad(loss(0, 1), head)
    with torch.no_grad():
        prompt.weight -= 0.5 * own
        assert loss(2, 0, 1).item() == pytest.approx(1.38268238, abs=1e-8)
    (behind_it,) = torch.autograd.grad(loss(2, 0, 1), head)
    start = head.detach().clone()
    with torch.no_grad():
        head.copy_(start - 0.5 * behind_it)
        assert loss(2, 0, 1).item() == pytest.approx(1.27541747, abs=1e-8)
        assert loss(0, 1).item() == pytest.approx(1.42793817, abs=1e-8)
        head.copy_(start - 0.5 * bare)
        assert loss(0, 1).item() == pytest.approx(1.31219045, abs=1e-8)


class Toy(nn.Module):
    """As much of a model as a soft prompt asks for."""

    def __init__(self, tokens: nn.Embedding) -> None:
        super().__init__()
        self.tokens = tokens

    def get_input_embeddings(self) -> nn.Embedding:
        return self.tokens


def test_the_ball_in_numbers() -> None:
    """ε is the radius · √(width / 2048); what is longer is cut to it, what is shorter stays."""
    for width, radius, most in ((576, 0.1, 0.05303301), (576, 0.2, 0.10606602), (64, 0.1, 0.01767767)):
        far = torch.zeros(1, width, dtype=torch.float64)
        far[0, 3] = 7.0
        assert float(into_ball(far, radius=radius).norm()) == pytest.approx(most, abs=1e-8)
    radius = 0.1 / (2 / 2048) ** 0.5  # ε of 0.1 in two dimensions
    moved = torch.tensor([[3.0, 4.0], [0.03, 0.04]], dtype=torch.float64)
    expected = torch.tensor([[0.06, 0.08], [0.03, 0.04]], dtype=torch.float64)
    torch.testing.assert_close(into_ball(moved, radius=radius), expected, rtol=0, atol=1e-8)


# ---- where it begins


def test_it_begins_with_a_text_from_the_beginning_again() -> None:
    policy, tokenizer = SoftPrompt(tokens=5, init="w10 w11").add(base()), tiny_tokenizer()
    SoftPrompt(tokens=5, init="w10 w11").begin(policy, tokenizer)
    ids = tokenizer("w10 w11 w10 w11 w10")["input_ids"]
    tokens: Any = find_causal_lm(policy).get_input_embeddings()
    for weight in prompt_weights(policy):
        assert torch.equal(weight, tokens.weight[ids])


def test_the_draw_depends_on_the_seed_alone() -> None:
    def rows(seed: int) -> Tensor:
        return prompt_weights(SoftPrompt(tokens=9, seed=seed).add(base()))[0]

    before = torch.get_rng_state()
    assert torch.equal(rows(1), rows(1)) and not torch.equal(rows(1), rows(2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tokens": 0}, "adapter.tokens=0 is no prompt"),
        ({"init": " "}, "adapter.init=' ' has no tokens"),
        ({"trains": "all"}, "adapter.trains=all is not known: use prompt, base"),
        ({"trains": "base"}, "name the run that did, adapter.path=FOLDER"),
        ({"trains": "base", "path": "x", "radius": 0.1}, "adapter.radius is of a prompt that trains"),
        ({"radius": 0.0}, "adapter.radius=0.0 is no radius"),
        ({"path": "no/such/run"}, "adapter.path=no/such/run holds no soft prompt"),
    ],
)
def test_what_trains_nothing_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        SoftPrompt(**settings).check()


def test_a_ball_does_not_go_with_deepspeed(tmp_path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    free, held = SoftPrompt(), SoftPrompt(radius=0.1)
    assert all(free.takes_wrapper(name) for name in ("ddp", "fsdp2", "zero3"))
    for name in ("none", "ddp", "fsdp2"):
        held.check_launch(name, arguments)
    with pytest.raises(UserError, match=r"adapter\.radius .*: launch with ddp or fsdp2"):
        held.check_launch("zero2", arguments)
