"""Half against full: one step of each on a tiny model, and what is counted."""

from __future__ import annotations

from benchmarks.half import CONTESTANTS, rows
from tests.tiny import tiny_model


def made(name: str):
    model = tiny_model(tie_word_embeddings=True)
    model.set_attn_implementation("align_shared")
    return CONTESTANTS[name](model)


def test_half_needs_no_second_model_and_starts_with_the_same_loss():
    batch = rows(12, 4, 128)
    found = {name: made(name) for name in CONTESTANTS}
    losses = {name: contestant.step(batch)[1] for name, contestant in found.items()}
    assert losses["full"] == losses["half"]  # the margin is 0: log 2
    full, half = (found[name].bytes() for name in ("full", "half"))
    base = sum(p.nbytes for p in tiny_model(tie_word_embeddings=True).parameters())
    assert full["weights"] == 2 * base
    assert half["weights"] == base + half["gradients"]
    assert half["gradients"] < 0.6 * full["gradients"]
    assert half["optimizer"] < 0.6 * full["optimizer"]


def test_both_learn():
    batch = rows(12, 4, 128)
    for name in CONTESTANTS:
        contestant = made(name)
        contestant.optimizer.param_groups[0]["lr"] = 1e-2
        losses = [contestant.step(batch)[1] for _ in range(4)]
        assert losses[-1] < losses[0]
