"""`data.order`: every row once an epoch, drawn alike everywhere, and what each order says of a step's rows."""

from __future__ import annotations

import numpy as np
import pytest

from align.core.errors import UserError
from align.data.orders import Buckets, Grow, Shuffled, draw_buckets

ORDERS = [
    Shuffled(),
    Buckets(steps=3),
    Buckets(steps=1),
    Grow(cycles=2),
    Grow(odds=100, cycles=5, shortest=1),
]


def lengths(count: int, seed: int = 0) -> np.ndarray:
    """Tokens of rows with a long tail."""
    return np.exp(np.random.default_rng(seed).normal(7, 1.2, count)).astype(np.int64)


def arranged(order, tokens, prompts=8, seed=0, epoch=0):
    return order.arrange(tokens, prompts=prompts, rng=np.random.default_rng([seed, epoch]))


@pytest.mark.parametrize("order", ORDERS, ids=repr)
@pytest.mark.parametrize("count", [1, 7, 8, 9, 103, 240])
@pytest.mark.parametrize("prompts", [1, 3, 8])
def test_an_order_is_a_permutation_that_follows_from_seed_and_epoch(order, count, prompts):
    tokens = lengths(count)
    found = arranged(order, tokens, prompts)
    assert sorted(found) == list(range(count))
    assert np.array_equal(found, arranged(order, tokens, prompts))
    if count > 9:
        others = [arranged(order, tokens, prompts, *draw) for draw in ((0, 1), (1, 0))]
        assert not any(np.array_equal(found, other) for other in others)


def test_shuffled_is_the_generators_permutation():
    for draw in ((0, 0), (42, 3)):
        expected = np.random.default_rng(list(draw)).permutation(103)
        assert np.array_equal(arranged(Shuffled(), lengths(103), 8, *draw), expected)


def test_buckets_make_steps_of_rows_that_are_about_as_long():
    tokens = np.array([9, 1, 5, 2])
    steps = arranged(Buckets(steps=2), tokens, 2).reshape(2, 2)
    assert sorted(map(sorted, tokens[steps].tolist())) == [[1, 2], [5, 9]]
    tokens = lengths(400)
    spread = {
        order: np.ptp(tokens[arranged(order, tokens)].reshape(50, 8), axis=1).mean()
        for order in (Shuffled(), Buckets(steps=5), Buckets(steps=50))
    }
    of_shuffled, of_few, of_all = spread.values()
    assert of_all < 0.3 * of_few < 0.3 * of_shuffled


def test_buckets_of_one_step_leave_every_step_its_rows():
    """So that only what is balanced differs from shuffled; the steps come in the same order too."""
    tokens = lengths(103)
    one, shuffled = (arranged(order, tokens)[:96].reshape(12, 8) for order in (Buckets(steps=1), Shuffled()))
    whole = np.random.default_rng([0, 0]).permutation(103)
    assert np.array_equal(whole[:96].reshape(12, 8), shuffled)
    assert [sorted(step) for step in one.tolist()] == [sorted(step) for step in shuffled.tolist()]


def test_rows_that_fill_no_step_are_any_rows():
    """Those drawn last, be they short or long: an epoch does not end with its longest."""
    tokens = lengths(103)
    for order in (Buckets(steps=4), Grow(cycles=3)):
        expected = np.random.default_rng([0, 0]).permutation(103)[96:]
        assert np.array_equal(arranged(order, tokens)[96:], expected)


class Recording:
    """A generator that remembers the probabilities that it is given."""

    def __init__(self) -> None:
        self.rng, self.seen = np.random.default_rng(0), []

    def choice(self, count, p):
        self.seen.append(p)
        return self.rng.choice(count, p=p)


def test_grow_p2_draws_with_the_papers_odds():
    """At the first step with equal buckets of 256 … 8,192 tokens; their mean length is then 780.19."""
    rng, odds = Recording(), np.array([32.0, 16, 8, 4, 2, 1])
    draw_buckets(np.full(6, 3), odds, rng)
    expected = [0.50793651, 0.25396825, 0.12698413, 0.06349206, 0.03174603, 0.01587302]
    np.testing.assert_allclose(rng.seen[0], expected, atol=1e-8)
    assert rng.seen[0] @ 2.0 ** np.arange(8, 14) == pytest.approx(780.19047619, abs=1e-8)


def test_grow_p2_weighs_by_steps_and_odds():
    """The factors and weights of the release's README for Wikipedia."""
    rng, factors = Recording(), np.array([46, 78, 97, 82, 67, 60])
    draw_buckets(factors, np.array([32.0, 16, 8, 4, 2, 1]), rng)
    weights = np.array([1472, 1248, 776, 328, 134, 60])
    np.testing.assert_allclose(rng.seen[0], weights / weights.sum(), atol=1e-12)
    for p in rng.seen:  # a bucket without steps left drops out, the others keep their weights
        left = np.where(p > 0, weights, 0)
        np.testing.assert_allclose(p, left / left.sum(), atol=1e-12)
    assert (rng.seen[-1] > 0).sum() == 1


def test_buckets_are_drawn_without_replacement():
    drawn = draw_buckets(np.array([4, 4, 4]), np.array([4.0, 2, 1]), np.random.default_rng(0))
    assert drawn == [1, 0, 0, 0, 1, 2, 1, 1, 0, 2, 2, 2]


def test_a_step_of_grow_has_rows_of_one_bucket():
    """Of two where one runs out: at most one such step between each two that follow each other."""
    tokens = lengths(800, seed=1)
    steps = arranged(Grow(cycles=4), tokens).reshape(100, 8)
    kinds = np.floor(np.log2(np.maximum(tokens, 256)))[steps]
    mixed = kinds[np.ptp(kinds, axis=1) > 0]
    assert len(mixed) <= len(np.unique(kinds)) - 1
    assert len(np.unique(kinds)) > 5


def test_a_cycle_grows_and_has_its_part_of_every_bucket():
    bucket = np.repeat([8, 9, 10, 13], [400, 400, 400, 3])
    cycles = Grow(cycles=4).cycles_of(bucket, np.random.default_rng(0))
    assert sorted(np.concatenate(cycles)) == list(range(1203))
    for cycle in cycles:
        counts = np.bincount(bucket[cycle], minlength=14)
        assert counts[[8, 9, 10]].tolist() == [100, 100, 100] and counts[13] <= 1
        assert bucket[cycle[:150]].mean() + 0.3 < bucket[cycle[150:]].mean()


def test_only_grow_reads_other_shares_within_an_epoch():
    for order in (Shuffled(), Buckets(), Grow()):
        order.check_mixture(whole_epochs=True)
    for order in (Shuffled(), Buckets()):
        order.check_mixture(whole_epochs=False)
    with pytest.raises(UserError, match=r"data.order=grow reads short rows first, .*num_train_epochs"):
        Grow().check_mixture(whole_epochs=False)


@pytest.mark.parametrize(
    ("order", "key"),
    [
        (Shuffled(balance="rows"), "data.order.balance=rows is not known"),
        (Buckets(steps=0), "data.order.steps=0"),
        (Grow(odds=0.0), "data.order.odds=0"),
        (Grow(odds=float("inf")), "data.order.odds=inf"),
        (Grow(cycles=0), "data.order.cycles=0"),
        (Grow(shortest=0), "data.order.shortest=0"),
    ],
)
def test_a_key_out_of_its_range_is_named(order, key):
    with pytest.raises(UserError, match=key):
        order.check()
