"""The order of rows follows from seed and epoch, and from both."""

from __future__ import annotations

from align.training.sampling import PLACEHOLDER, EpochSampler


def order(seed: int | None, epoch: int) -> tuple[int, ...]:
    sampler = EpochSampler(30, multiple=4, seed=seed)
    sampler.set_epoch(epoch)
    return tuple(sampler)


def test_every_seed_and_every_epoch_has_an_order_of_its_own():
    """Every row once, then placeholders; drawn again it is the same."""
    drawn = {(seed, epoch): order(seed, epoch) for seed in range(8) for epoch in range(8)}
    assert len(set(drawn.values())) == 64
    for (seed, epoch), rows in drawn.items():
        assert sorted(rows[:30]) == list(range(30)) and rows[30:] == (PLACEHOLDER,) * 2
        assert rows == order(seed, epoch)


def test_without_a_seed_rows_keep_their_order():
    assert order(None, 3) == (*range(30), PLACEHOLDER, PLACEHOLDER)
