"""Weighted sums, fronts of pairs and collisions: every way of reading rows against padded rows and full logits."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from align.data.examples import Answer, TokenizedExample
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.logps import target_logps, target_logps_and_collisions
from align.longseq.parallel import start_parallel
from align.models.identity import Identity
from align.models.structure import set_reading
from align.reference.cache import Cached, LogpStore
from align.reference.key import row_keys
from align.reference.sources import Frozen, sum_turns
from losses import PairLogps
from tests.distributed import run_distributed
from tests.longseq.plain import assert_close, gradients, make_example, plain_pair_logps, with_weights
from tests.tiny import tiny_model

NAMES = ("weighted", "weight", "chosen_front", "rejected_front", "collision")


def examples() -> list[TokenizedExample]:
    """Unlike numbers of answers, and one row of several turns, whose question is not scored; one has no weights."""
    rng = np.random.default_rng(0)
    rows = [
        make_example(rng, prompt=prompt, answers=answers)
        for prompt, answers in ((13, (5, 3, 9)), (9, (2, 6)), (17, (7,)), (6, (4, 4, 1)))
    ]
    scored = np.array([True, True, False, False, True])
    first = replace(rows[0].answers[0], scored=scored)
    rows[0] = replace(rows[0], answers=(first, *rows[0].answers[1:]))
    return [*(with_weights(rng, row) for row in rows[:3]), rows[3]]


def model(way: str = "shared") -> nn.Module:
    made = tiny_model(initializer_range=0.1)
    made.set_attn_implementation(ATTENTION if way == "shared" else "sdpa")
    if way != "shared":
        set_reading(made, way)
    return made


def loss_of(logps: PairLogps) -> Tensor:
    """Something that every sum has a say in, each with another factor."""
    parts = [
        logps.chosen,
        0.7 * logps.rejected.sum(1),
        logps.weighted @ torch.tensor([1.3, 0.4, -0.6]).double(),
    ]
    parts += [
        0.9 * logps.chosen_front.sum(1),
        -1.7 * logps.rejected_front @ torch.tensor([1.0, 2.0]).double(),
    ]
    return -(torch.stack(parts).sum(0) * (1 + logps.collision.sum(1) / 100)).mean()


def assert_same(found: PairLogps, expected: PairLogps) -> None:
    for name in NAMES:
        one, other = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-5, atol=1e-5, msg=name)
    assert not found.collision.requires_grad


@pytest.mark.parametrize("chunk_size", [3, 1024])
@pytest.mark.parametrize("tokens_per_row", [None, 1, 40])
@pytest.mark.parametrize("way", ["shared", "library", "masked"])
def test_every_way_equals_padded_rows(way, tokens_per_row, chunk_size) -> None:
    """Values and gradients; weights of 0, answers that are absent, and tokens that are not scored among them."""
    plain, ours = model("library"), model(way)
    expected = plain_pair_logps(plain, examples())
    batch = pack(examples(), tokens_per_row=tokens_per_row, fronts=True)
    found = pair_logps(ours, batch, chunk_size=chunk_size, collision=True, nll_scope="sequence")
    assert_same(found, expected)
    torch.testing.assert_close(found.chosen, expected.chosen, rtol=1e-5, atol=1e-5)
    assert_close(gradients(ours, loss_of(found)), gradients(plain, loss_of(expected)))


def test_what_is_not_asked_for_is_not_there() -> None:
    """Without weights, fronts and collisions a row carries none, and the sums are those of before, to the bit."""
    rows = [replace(row, answers=tuple(replace(a, weights=None) for a in row.answers)) for row in examples()]
    batch = pack(rows)
    row = batch.rows[0]
    assert row.weight.numel() == row.weight_sum.numel() == row.order.numel() == row.cuts.numel() == 0
    with torch.no_grad():
        found = pair_logps(model(), batch)
        assert all(getattr(found, name) is None for name in NAMES)
        asked = pair_logps(model(), pack(examples(), fronts=True), collision=True)
    assert torch.equal(found.chosen, asked.chosen) and torch.equal(found.rejected, asked.rejected)


def test_weights_of_one_are_the_plain_sums() -> None:
    ones = [
        replace(row, answers=tuple(replace(a, weights=np.ones(len(a.scored))) for a in row.answers))
        for row in examples()
    ]
    with torch.no_grad():
        found = pair_logps(model(), pack(ones))
    assert torch.equal(found.weighted[:, 0], found.chosen) and torch.equal(
        found.weighted[:, 1:], found.rejected
    )
    assert torch.equal(found.weight[:, 0], found.chosen_length.double())


def test_fronts_are_prefixes_of_each_pair() -> None:
    """A chosen answer of 3 scored tokens beside 3 and 9: all of it twice; of the other three tokens each time."""
    row = pack(examples(), fronts=True).rows[0]
    assert row.cuts.tolist() == [[3, 3], [2, 0], [0, 0], [4, 1]]
    assert row.order[:6].tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_collisions(dtype) -> None:
    """Of 0.5, 0.25, 0.25 the log of 0.375; of a sure token 0; and the log-probs are as without."""
    logits = torch.tensor([[0.5, 0.25, 0.25], [1.0, 1e-30, 1e-30]], dtype=dtype).log()
    logits, again = (
        logits.clone().requires_grad_() for _ in range(2)
    )  # a backward pass writes over its logits
    target = torch.tensor([1, 0])
    both = target_logps_and_collisions(logits, target)
    assert both[:, 1].tolist() == pytest.approx([np.log(0.375), 0.0], abs=1e-6)
    assert torch.equal(both[:, 0], target_logps(logits, target))
    (gradient,) = torch.autograd.grad(both.sum(), logits)
    (expected,) = torch.autograd.grad(target_logps(again, target).sum(), again)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)


# ---- references


def test_a_cached_reference_keeps_them(tmp_path: Path) -> None:
    """Filled, then read: packed otherwise, beside fewer answers, and without the model."""
    reference = Frozen(model, pair_logps)
    identity = Identity({"model": "tests"})
    batch = pack(examples(), fronts=True)
    expected = reference(None, batch)
    filled = Cached(reference, LogpStore(tmp_path), identity)(None, batch)
    for name in ("chosen", "rejected", *NAMES[:-1]):
        assert torch.equal(getattr(filled, name), getattr(expected, name)), name

    def refuse() -> nn.Module:
        raise AssertionError("the reference was loaded although the cache has every row")

    alone = Cached(Frozen(refuse, pair_logps), LogpStore(tmp_path), identity)
    for rows, prompts in ((examples(), slice(None)), (examples()[1:3], slice(1, 3))):
        found = alone(None, pack(rows, tokens_per_row=1, fronts=True))
        width = found.rejected.shape[1]
        for name in ("chosen", *NAMES[:2]):
            one, other = getattr(found, name), getattr(expected, name)[prompts]
            assert torch.equal(one, other if other.dim() == 1 else other[:, : 1 + width]), name
        for name in ("rejected", *NAMES[2:4]):
            assert torch.equal(getattr(found, name), getattr(expected, name)[prompts, :width]), name


def test_keys_know_weights_and_fronts() -> None:
    """One key for other weights, for none, and where pairs are cut; packing changes none of them."""
    identity = Identity({"model": "tests"})
    weighted = examples()[:1]
    bare = [replace(weighted[0], answers=tuple(replace(a, weights=None) for a in weighted[0].answers))]
    others = [with_weights(np.random.default_rng(5), weighted[0])]
    batches = [pack(weighted), pack(others), pack(bare), pack(weighted, fronts=True), pack(bare, fronts=True)]
    keys = [row_keys(batch.rows[0], identity)[0] for batch in batches]
    assert len(set(keys)) == len(keys)
    packed = [
        key
        for tokens_per_row in (None, 1)
        for row in pack(examples(), tokens_per_row=tokens_per_row, fronts=True).rows
        for key in row_keys(row, identity)
    ]
    assert packed[:4] == packed[4:]


def test_turns_add_up() -> None:
    """Weighted sums and collisions of a row's turns on their short contexts are added; fronts are of whole answers."""
    with torch.no_grad():
        turns = pair_logps(model(), pack(examples(), fronts=True), collision=True)
    summed = sum_turns(turns, torch.tensor([0, 0, 1, 2]), 3)
    for name in ("weighted", "weight", "collision"):
        values = getattr(turns, name)
        torch.testing.assert_close(
            getattr(summed, name), torch.stack([values[:2].sum(0), values[2], values[3]])
        )
    assert summed.chosen_front is None and summed.rejected_front is None


# ---- two processes that share a row


def sharded(rank: int, size: int) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Values, and the world's mean gradient, of both exchanges."""
    found = []
    for kind in ("ulysses", "gather"):
        ours = model()
        batch = pack(examples(), tokens_per_row=40, fronts=True)
        logps = pair_logps(ours, batch, parallel=start_parallel(kind, size), chunk_size=8, collision=True)
        mean = gradients(ours, loss_of(logps))
        for value in mean.values():
            torch.distributed.all_reduce(value)
            value /= size
        values = {one.name: getattr(logps, one.name) for one in fields(logps)}
        found.append(({name: values[name].detach() for name in ("chosen", *NAMES)}, mean))
    return found


def test_degree_two_equals_padded_rows() -> None:
    plain = model("library")
    expected = plain_pair_logps(plain, examples())
    wanted = gradients(plain, loss_of(expected))
    for values, mean in run_distributed(sharded, 2)[0]:
        for name, value in values.items():
            torch.testing.assert_close(
                value, getattr(expected, name).detach(), rtol=1e-5, atol=1e-5, msg=name
            )
        assert_close(mean, wanted)


def test_an_answer_needs_no_weights_of_its_own() -> None:
    """`Answer` without weights beside one that has them: its tokens weigh 1."""
    rng = np.random.default_rng(0)
    row = make_example(rng, prompt=4, answers=(2, 3))
    first = Answer(row.answers[0].input_ids, row.answers[0].scored, np.array([0.5, 2.0]))
    packed = pack([replace(row, answers=(first, row.answers[1]))]).rows[0]
    assert packed.weight.view(torch.float64).tolist() == [0.5, 2.0, 1.0, 1.0, 1.0]
    assert packed.weight_sum.view(torch.float64).tolist() == [[2.5, 3.0]]
