"""E²-LLM's, Giraffe's and PoSE's positions: golden values, and what holds for every placement."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.core.errors import UserError
from align.data.dataset import load_preference_data
from align.data.placements.e2 import E2, scaled
from align.data.placements.logo import Logo
from align.data.placements.randomised import Randomised, rescaled_sums
from align.data.placements.skip import Skip
from align.data.positions import Drawn, Placed, PromptParts, place_row, room_of, row_rng
from align.data.settings import DataSettings, PositionSettings
from align.data.stored_rows import to_example, to_row
from align.longseq import pack
from align.models.reach import Reach
from tests.data.helpers import byte_tokenizer, write_lines
from tests.data.test_positions import example

LINEAR = Reach(window=16, factor=20.0)


# ---- values that somebody derived: E²-LLM with L = 16, R = 8, F = 20


@pytest.mark.parametrize(
    ("scale", "offset", "read"),
    [
        (4, 10, [0, 0.25, 0.5, 0.75, 3.5, 3.75, 4, 4.25]),
        (4, 56, [0, 0.25, 0.5, 0.75, 15, 15.25, 15.5, 15.75]),
        (2, 24, [0, 0.5, 1, 1.5, 14, 14.5, 15, 15.5]),
    ],
)
def test_e2_reads_what_the_paper_reads(scale: int, offset: int, read: list[float]) -> None:
    """f'(x, m) = f(x, (m + t) / g), t = 0 for m ≤ 3; the model divides by F."""
    positions = scaled(8, step=20 // scale, offset=offset, keep_first=4)
    assert positions.dtype == np.int64
    np.testing.assert_allclose(positions / 20, read, rtol=0, atol=1e-8)


def test_e2_in_integers_and_the_angle_of_the_last_token() -> None:
    """g = 4, t = 10; the second frequency of θ = 1e4 and D = 4 is 0.01."""
    positions = scaled(8, step=5, offset=10, keep_first=4)
    assert positions.tolist() == [0, 5, 10, 15, 70, 75, 80, 85]
    assert abs(positions[-1] / 20 * 1e4 ** (-2 / 4) - 0.04250000) < 1e-8


def test_e2_draws_every_scale_that_fits_and_every_offset_up_to_the_papers() -> None:
    """t_max = g·L − R: 8, 24, 56, 72, 152, 312 for the six divisors of 20; evenly drawn."""
    placement = E2().fitted(LINEAR)
    assert placement.target_length == 320
    found: dict[int, list[int]] = {}
    for seed in range(3000):
        placed = placement.place(PromptParts(0, (), 6, 2), row_rng(seed, 0, 0))
        scale = 20 // placed.step
        found.setdefault(scale, []).append(int(placed.positions[-1]) // placed.step - 5)
    most = {1: 8, 2: 24, 4: 56, 5: 72, 10: 152, 20: 312}
    assert {scale: (min(drawn), max(drawn)) for scale, drawn in found.items() if scale < 10} == {
        scale: (0, most[scale]) for scale in (1, 2, 4, 5)
    }
    for scale, drawn in found.items():
        assert abs(len(drawn) - 500) < 5 * 21  # standard deviation √(3000 · 1/6 · 5/6) = 20.4
        assert max(drawn) <= most[scale] and abs(np.mean(drawn) / most[scale] - 0.5) < 0.08


def test_e2_takes_scales_that_a_row_fits_at() -> None:
    """20 tokens do not fit a window of 16 at scale 1, and 400 fit none: 20 · 16 = 320."""
    placement = E2().fitted(LINEAR)
    steps = {placement.place(PromptParts(0, (), 15, 5), row_rng(seed, 0, 0)).step for seed in range(200)}
    assert steps == {10, 5, 4, 2, 1}
    with pytest.raises(UserError, match=r"have 400 tokens, and at the largest of positions\.scales 320 fit"):
        placement.place(PromptParts(0, (), 390, 10), row_rng(0, 0, 0))
    with pytest.raises(ValueError, match="call fitted"):
        E2().place(PromptParts(0, (), 6, 2), row_rng(0, 0, 0))


def test_giraffes_sums() -> None:
    """As released: by T over the last one, 6/9, where that exceeds T; else unchanged."""
    moved = [0.66666667, 1.93333333, 2.93333333, 4, 4.8, 6]
    np.testing.assert_allclose(rescaled_sums(np.array([1, 1.9, 1.5, 1.6, 1.2, 1.8])), moved, atol=1e-8)
    kept = np.array([0.3, 0.9, 0.8, 1.1, 0.2, 0.7])
    np.testing.assert_allclose(rescaled_sums(kept), np.cumsum(kept), atol=1e-12)


def test_random_positions_are_the_sums_over_the_free_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of the module: six tokens, K = 12 beyond no answer."""

    class Fixed:
        def uniform(self, low: float, high: float, size: int) -> np.ndarray:
            assert (low, high, size) == (0.0, 2.0, 6)
            return np.array([1, 1.9, 1.5, 1.6, 1.2, 1.8])

    placed = Randomised(12).place(PromptParts(0, (), 6, 0), Fixed())  # type: ignore[arg-type]
    assert placed == Placed(placed.positions) and placed.positions.tolist() == [0, 2, 4, 7, 8, 11]


def test_skips_grow_and_cuts_are_even() -> None:
    """Three chunks of 6 tokens in K = 20 with an answer of 4: 10 free positions, every cut and skip is met."""
    cuts, skips = set(), set()
    for seed in range(1000):
        positions = Skip(20, chunks=3).place(PromptParts(0, (), 6, 4), row_rng(seed, 0, 0)).positions
        biases = positions - np.arange(6)
        assert biases[0] == 0 and (np.diff(biases) >= 0).all() and biases[-1] <= 10
        cuts.update((np.flatnonzero(np.diff(biases)) + 1).tolist())
        skips.add(int(biases[-1]))
    assert cuts == {1, 2, 3, 4, 5} and skips == set(range(11))
    assert Skip(20).place(PromptParts(0, (), 1, 4), row_rng(0, 0, 0)).positions.tolist() == [0]


# ---- what holds for every placement

PLACEMENTS = {
    "logo": lambda k: Logo(k),
    "logo, uniform": lambda k: Logo(k, draw="uniform", sparse_share=0.5),
    "e2": lambda k: E2(k),
    "e2, few scales": lambda k: E2(k, factor=6, scales=[2, 6], keep_first=1),
    "random": lambda k: Randomised(k),
    "skip": lambda k: Skip(k),
    "skip, five chunks": lambda k: Skip(k, chunks=5),
}


@given(
    chunks=st.lists(st.integers(1, 12), max_size=5),
    question=st.integers(1, 6),
    answers=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    more=st.integers(0, 3000),
    place=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 4), st.integers(0, 2**40), st.integers(0, 9)),
)
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("name", PLACEMENTS)
def test_properties(name: str, chunks, question, answers, more, place) -> None:
    """Strictly increasing, inside the target, answers on by the step, siblings alike, the same for the same seed."""
    row = example(chunks or [1], question=question, answers=tuple(answers))
    if not chunks:
        row = replace(row, chunk_spans=())
    k = len(row.prompt_ids) + row.longest_answer + more
    placement = PLACEMENTS[name](k)
    placement.check()
    seed, source, index, epoch = place
    drawn = Drawn(source, index, room_of(row))
    made = place_row(row, placement, drawn, seed=seed, epoch=epoch)
    if not chunks and name.startswith("logo"):
        assert made is row
        return
    step = made.position_step
    assert made.drawn == drawn and made.prompt_ids is row.prompt_ids
    assert made.position_ids.dtype == np.int64 and made.position_ids[0] >= 0
    assert (np.diff(made.position_ids) >= step).all() and made.position_ids.shape == row.prompt_ids.shape
    for answer in made.answers:
        expected = made.position_ids[-1] + step * np.arange(1, len(answer.input_ids) + 1)
        np.testing.assert_array_equal(made.positions_of(answer), expected)
    assert made.largest_position < k
    again = place_row(row, placement, drawn, seed=seed, epoch=epoch)
    np.testing.assert_array_equal(again.position_ids, made.position_ids)
    assert again.position_step == step
    stored = to_example(to_row(made))
    np.testing.assert_array_equal(stored.position_ids, made.position_ids)
    assert (stored.position_step, stored.drawn) == (step, drawn)
    packed = pack([made]).rows[0].position_ids[0]
    joined = np.concatenate([made.position_ids, *map(made.positions_of, made.answers)])
    np.testing.assert_array_equal(packed.numpy(), joined)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_rows_places_pieces_and_epochs_draw_apart(name: str) -> None:
    row, placement = example([8, 8, 8]), PLACEMENTS[name](10**6)
    made = {
        tuple(place_row(row, placement, Drawn(source, index, 6), seed=seed, epoch=epoch).position_ids)
        for seed, source, index, epoch in product(range(2), repeat=4)
    }
    assert len(made) == 16
    draws = {row_rng(0, 0, 0, epoch=e, piece=p).integers(2**62) for e, p in product(range(3), repeat=2)}
    assert len(draws) == 9


@pytest.mark.parametrize("name", ["e2", "random", "skip"])
def test_rows_that_fill_k_keep_unit_steps(name: str) -> None:
    """No slack, no choice: at F = g alone a row of K tokens fits."""
    row = replace(example([5]), chunk_spans=())
    k = len(row.prompt_ids) + row.longest_answer
    made = place_row(row, PLACEMENTS[name](k), Drawn(0, 0, room_of(row)), seed=0)
    assert made.position_ids.tolist() == list(range(len(row.prompt_ids))) and made.position_step == 1
    with pytest.raises(UserError, match=r"^rows\.jsonl:7: the prompt and its longest answer have 20 tokens"):
        place_row(row, PLACEMENTS[name](k - 1), Drawn(0, 0, room_of(row)), seed=0)


# ---- documents of plain text, conversations


def load(tmp_path: Any, positions: PositionSettings, *rows: Any, **more: Any) -> Any:
    path = write_lines(tmp_path / "rows.jsonl", *rows)
    wanted = DataSettings(path=path, eval_size=0, **more)
    return load_preference_data(wanted, byte_tokenizer(), positions=positions, seed=0)


@pytest.mark.parametrize("name", ["e2", "random", "skip"])
def test_documents_and_conversations_are_placed(tmp_path, monkeypatch, name: str) -> None:
    """A document has one token before what is scored, so its scored tokens are placed too, each piece for itself."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    positions = PositionSettings(PLACEMENTS[name](4000))
    data = load(tmp_path, positions, {"text": "abcdefgh" * 16}, {"text": "abcdefgh" * 16}, max_length=48)
    pieces = [to_example(row) for row in data.train]
    assert len(pieces) == 6 and data.counts["unplaced_rows"] == 0
    jumps = []
    for row, piece in zip(data.train, pieces, strict=True):
        (answer,) = piece.answers
        every = np.concatenate([piece.position_ids, piece.positions_of(answer)])
        assert (np.diff(every) >= piece.position_step).all() and every[0] >= 0 and every[-1] < 4000
        assert row["largest_position"] == every[-1] == piece.largest_position
        np.testing.assert_array_equal(pack([piece]).rows[0].position_ids[0].numpy(), every)
        jumps.append(tuple(np.diff(every)))
    assert len(set(jumps)) == 6  # equal pieces of two documents, and of one
    assert any(len(set(steps)) > 1 for steps in jumps)  # a gap among the scored tokens
    data = load(tmp_path, positions, {"prompt": "what now", "chosen": " yes", "rejected": " no"})
    example = to_example(data.train[0])
    assert data.counts["unplaced_rows"] == 0 and (np.diff(example.position_ids) >= 1).all()
    assert data.counts["largest_position"] == example.largest_position > 20


def test_logo_leaves_documents_where_they_are(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"moves the chunks of a context, and no row has one: .*\(e2, random"):
        load(tmp_path, PositionSettings(Logo(4000)), {"text": "abcdefgh" * 4})


def test_the_digest_tells_steps_apart(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    row = example([5])
    stepped = [replace(row, position_ids=row.position_ids * 5, position_step=step) for step in (1, 2, 5)]
    assert len({to_row(one)["row_hash"] for one in stepped}) == 3
