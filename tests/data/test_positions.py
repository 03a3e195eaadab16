"""Position synthesis: LOGO's invariants as properties, its cover function by value."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import hydra_conf
from align.core.errors import UserError
from align.data.dataset import load_preference_data
from align.data.examples import Answer, TokenizedExample
from align.data.notices import notices
from align.data.placements.logo import CoverWindows, Logo
from align.data.position_settings import read_positions
from align.data.positions import Drawn, PromptParts, place_row, room_of, row_rng
from align.data.settings import DataSettings, MixedSettings, PositionSettings
from align.data.stored_rows import to_example
from align.models.reach import Reach
from tests.data.helpers import byte_tokenizer, write_lines

DRAWS = ("slots", "uniform")
KINDS = ("logo_continuous", "logo_sparse")
SHARES = {"logo": 0.1, "logo_continuous": 0.0, "logo_sparse": 1.0}
GROUP = Path(hydra_conf.__file__).parent / "positions"
ROW = (0, 0, 0)  # seed, place and number


def synthesise(
    row: TokenizedExample,
    *,
    mode: str,
    target_length: int,
    draw: str = "slots",
    sparse_share: float | None = None,
    drawn_by: tuple[int, int, int] = ROW,
) -> TokenizedExample:
    """A row where `positions=MODE` puts it."""
    share = SHARES[mode] if sparse_share is None else sparse_share
    placement = Logo(target_length=target_length, draw=draw, sparse_share=share)
    placement.check()
    seed, source, index = drawn_by
    return place_row(row, placement, Drawn(source, index, room_of(row)), seed=seed)


def example(
    chunks: list[int], *, system: int = 4, question: int = 5, answers: tuple[int, ...] = (6, 3), gap: int = 0
) -> TokenizedExample:
    """A row with `chunks` tokens in its chunks and `gap` separator tokens after each but the last."""
    spans, at = [], system
    for n in chunks:
        spans.append((at, at + n))
        at += n + gap
    length = spans[-1][1] + question
    return TokenizedExample(
        source="rows.jsonl:7",
        prompt_ids=np.arange(length) % 50,
        position_ids=np.arange(length),
        answers=tuple(Answer(np.arange(n), np.ones(n, dtype=bool)) for n in answers),
        chunk_spans=tuple(spans),
    )


@st.composite
def rows(draw: st.DrawFn) -> tuple[TokenizedExample, int]:
    """Any row and any K that it fits, K = real length included."""
    row = example(
        draw(st.lists(st.integers(1, 12), min_size=1, max_size=6)),
        system=draw(st.integers(0, 5)),
        question=draw(st.integers(0, 5)),
        answers=tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))),
        gap=draw(st.integers(0, 2)),
    )
    return row, len(row.prompt_ids) + row.longest_answer + draw(st.integers(0, 200))


@given(
    case=rows(),
    mode=st.sampled_from([*KINDS, "logo"]),
    draw=st.sampled_from(DRAWS),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=300, deadline=None)
def test_invariants(case: tuple[TokenizedExample, int], mode: str, draw: str, seed: int) -> None:
    """Strictly increasing; the system part untouched; the question and the longest answer end at K − 1."""
    row, k = case
    made = synthesise(row, mode=mode, target_length=k, draw=draw, drawn_by=(seed, 0, 3))
    positions = made.position_ids
    assert positions.dtype == np.int64 and len(positions) == len(row.prompt_ids)
    assert (np.diff(positions) > 0).all()
    system, stop = row.chunk_spans[0][0], row.chunk_spans[-1][1]
    np.testing.assert_array_equal(positions[:system], np.arange(system))
    question = len(row.prompt_ids) - stop
    first = k - row.longest_answer - question
    np.testing.assert_array_equal(positions[stop:], np.arange(first, first + question))
    assert positions[-1] + row.longest_answer < k
    assert question == 0 or positions[-1] + row.longest_answer == k - 1
    again = synthesise(row, mode=mode, target_length=k, draw=draw, drawn_by=(seed, 0, 3))
    np.testing.assert_array_equal(positions, again.position_ids)
    assert (made.position_step, made.drawn) == (1, Drawn(0, 3, row.longest_answer))
    assert replace(made, position_ids=row.position_ids, drawn=None) == replace(
        row, position_ids=row.position_ids
    )
    np.testing.assert_array_equal(row.position_ids, np.arange(len(row.prompt_ids)))


@given(case=rows(), draw=st.sampled_from(DRAWS), seed=st.integers(0, 2**31))
@settings(max_examples=200, deadline=None)
def test_continuous_chunks_stay_adjacent(case: tuple[TokenizedExample, int], draw: str, seed: int) -> None:
    """Gaps fall between chunks only; a separator goes with the chunk before it."""
    row, k = case
    made = synthesise(row, mode="logo_continuous", target_length=k, draw=draw, drawn_by=(seed, 0, 0))
    bounds = [start for start, _ in row.chunk_spans] + [row.chunk_spans[-1][1]]
    for start, stop in pairwise(bounds):
        assert (np.diff(made.position_ids[start:stop]) == 1).all()


@pytest.mark.parametrize("draw", DRAWS)
def test_sparse_chunks_have_gaps_inside(draw: str) -> None:
    """8 tokens on some 400 positions: unit steps throughout have no chance."""
    made = synthesise(example([8, 8]), mode="logo_sparse", target_length=1000, draw=draw)
    assert (np.diff(made.position_ids[4:12]) > 1).any()


@pytest.mark.parametrize("mode", [*KINDS, "logo"])
@pytest.mark.parametrize("draw", DRAWS)
def test_k_equal_to_the_real_length_leaves_the_tokens_own_positions(mode: str, draw: str) -> None:
    """No slack, no gap; with chunks of unequal length too."""
    row = example([1, 9, 4], gap=1)
    k = len(row.prompt_ids) + row.longest_answer
    made = synthesise(row, mode=mode, target_length=k, draw=draw)
    np.testing.assert_array_equal(made.position_ids, np.arange(len(row.prompt_ids)))


def test_none_changes_nothing() -> None:
    row = replace(example([5]), chunk_spans=())
    assert synthesise(row, mode="logo", target_length=1) is row
    assert PositionSettings().placement is None


@pytest.mark.parametrize(
    ("n", "w", "starts"),
    [
        (5, 12, [0, 3, 7]),
        (8, 24, [0, 8, 16]),
        (5, 120, list(range(0, 116, 5))),
        (7, 7, [0]),
        (1, 3, [0, 1, 2]),
    ],
)
def test_cover_windows_by_value(n: int, w: int, starts: list[int]) -> None:
    """⌈w/n⌉ windows from i·(w − n) // (⌈w/n⌉ − 1): (5, 12) has 3, at 0, 7 // 2 and 7."""
    assert list(CoverWindows(n, w)) == [range(start, start + n) for start in starts]


@given(n=st.integers(1, 40), more=st.integers(0, 200))
def test_cover_windows_cover(n: int, more: int) -> None:
    """Every position of the slot lies in a window and no window leaves the slot."""
    windows = CoverWindows(n, n + more)
    assert set().union(*windows) == set(range(n + more))
    assert len(windows) == -(-(n + more) // n)


def test_cover_windows_refuse_a_chunk_wider_than_the_slot() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        CoverWindows(6, 5)


def test_slots_by_hand() -> None:
    """sys 4, qa 5 + 6, K 55: extent 40, two chunks, slots of 40 // 2 = 20 from 4 and from 24, up to the question at 44.

    A chunk of 10 has the windows 0–9 and 10–19 of its slot; of 6 the ⌈20/6⌉ = 4 at 0, 14 // 3, 28 // 3, 14.
    """
    starts = {
        tuple(
            synthesise(
                example([10, 6]), mode="logo_continuous", target_length=55, drawn_by=(seed, 0, 0)
            ).position_ids[[4, 14]]
        )
        for seed in range(200)
    }
    assert starts == {(4 + a, 24 + b) for a in (0, 10) for b in (0, 4, 9, 14)}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("mode", KINDS)
@pytest.mark.parametrize("chunks", [[8], [8, 8], [8, 8, 8, 8]])
def test_distances_from_the_question_begin_at_one_and_cover_the_target_evenly(
    chunks: list[int], mode: str, draw: str
) -> None:
    """Where an answer looks for its context: over 4,000 rows as often in each eighth of [1, extent].

    An eighth holds 1/8 of all distances. Sorted uniform gaps put it within 35 %, since a chunk keeps its place in the
    order; slots within 20 %.
    """
    row = example(chunks)
    k = 4 + 5 + 6 + 400  # system part, question, longest answer and an extent of 400
    counts = np.zeros(401, dtype=np.int64)
    for index in range(4000):
        made = synthesise(row, mode=mode, target_length=k, draw=draw, drawn_by=(0, 0, index)).position_ids
        distances = made[-5] - made[4 : 4 + sum(chunks)]
        np.add.at(counts, distances, 1)
    assert counts[0] == 0 and counts[1] > 0 and counts[400] > 0
    eighths = counts[1:].reshape(8, 50).sum(axis=1) / counts.sum()
    assert np.abs(eighths * 8 - 1).max() < (0.2 if draw == "slots" else 0.35)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("mode", KINDS)
def test_every_relative_distance_below_k_is_met(mode: str, draw: str) -> None:
    """Over many draws some pair of tokens (prompt or longest answer) is d apart, for all d from 1 to K − 1.

    K itself cannot be met: positions are 0 … K − 1.
    """
    k, row = 160, example([8, 8, 8])
    met: set[int] = set()
    for seed in range(1500):
        made = synthesise(row, mode=mode, target_length=k, draw=draw, drawn_by=(seed, 0, 0)).position_ids
        sequence = np.concatenate([made, made[-1] + 1 + np.arange(row.longest_answer)])
        met.update(np.abs(sequence[:, None] - sequence).ravel().tolist())
        if len(met) == k:
            break
    assert met == set(range(k))


def test_the_mix_is_nine_to_one() -> None:
    """2,000 rows, share 0.1: 200 sparse ones expected, standard deviation 13.4; five of them are 67."""
    row = example([8, 8])
    sparse = 0
    for index in range(2000):
        made = synthesise(row, mode="logo", target_length=4000, drawn_by=(0, 0, index))
        sparse += int((np.diff(made.position_ids[4:12]) > 1).any())
    assert 133 < sparse < 267


@pytest.mark.parametrize(("share", "kind"), [(0.0, "logo_continuous"), (1.0, "logo_sparse")])
def test_shares_of_nothing_and_all_are_the_pure_modes(share: float, kind: str) -> None:
    row = example([8, 8])
    mixed = synthesise(row, mode="logo", target_length=900, sparse_share=share, drawn_by=(1, 0, 1))
    pure = synthesise(row, mode=kind, target_length=900, drawn_by=(1, 0, 1))
    np.testing.assert_array_equal(mixed.position_ids, pure.position_ids)


def test_rows_draw_apart() -> None:
    """Another row, another place or another seed is another draw; the same three are the same."""
    places = list(product(range(3), repeat=3))
    draws = [row_rng(*place).integers(2**62) for place in places]
    assert len(set(draws)) == 27
    assert [row_rng(*place).integers(2**62) for place in places] == draws


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        (
            example([8, 8]),
            {"target_length": 30},
            r"rows\.jsonl:7: .* have 31 tokens, more than positions\.target_length=30",
        ),
        (example([8]), {"draw": "slot"}, r"positions\.draw=slot is not known: use slots, uniform"),
        (example([8]), {"sparse_share": 1.5}, r"positions\.sparse_share=1\.5"),
        (example([8]), {"target_length": 0}, r"positions\.target_length=0 is too small"),
    ],
)
def test_bad_settings_name_the_row_or_the_key(
    row: TokenizedExample, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        synthesise(row, **({"mode": "logo", "target_length": 500} | changes))


def test_rows_without_chunks_keep_their_positions() -> None:
    for spans in ((), ((4, 4),)):
        row = replace(example([8]), chunk_spans=spans)
        assert synthesise(row, mode="logo", target_length=500) is row


def test_every_file_of_the_group_has_the_keys_of_recipes_and_works() -> None:
    """So that `positions.target_length=…` holds whichever is chosen; LOGO's own also where none is."""
    files = sorted(GROUP.glob("*.yaml"))
    assert [file.stem for file in files] == [
        *("e2", "logo", "logo_continuous", "logo_sparse", "none", "random", "skip")
    ]
    for file in files:
        config = OmegaConf.create({"positions": OmegaConf.load(file), "allow_targets": []})
        keys = {"target_length", "redraw", "chunk_tokens"}
        keys |= {"draw", "sparse_share"} if file.stem in (*SHARES, "none") else set()
        assert keys <= set(config.positions)
        settings = read_positions(config)
        assert settings.chunk_tokens == 512 and settings.redraw == config.positions.redraw
        if file.stem == "none":
            assert settings == PositionSettings()
        elif file.stem in SHARES:
            assert settings.placement == Logo(sparse_share=SHARES[file.stem])
        else:
            placed = settings.placement.fitted(Reach(512, 20.0)).place(
                PromptParts(0, (), 9, 3), row_rng(*ROW)
            )
            assert placed.positions.shape == (9,)


def test_ordinary_pairs_beside_rows_with_contexts_keep_their_positions(tmp_path, monkeypatch) -> None:
    """As `data.mix` brings them: counted and said; where no row has a context there is nothing to synthesise."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    context = {"context": ["abc", "def"], "question": "q?", "chosen": "yes", "rejected": "no"}
    plain = {"prompt": "what now", "chosen": " yes", "rejected": " no"}
    positions = PositionSettings(Logo(target_length=300, sparse_share=0.0), chunk_tokens=4)

    def load(*rows, **settings):
        path = write_lines(tmp_path / "rows.jsonl", *rows)
        return load_preference_data(
            DataSettings(path=path, eval_size=0, **settings), byte_tokenizer(), positions=positions, seed=0
        )

    data = load(context, plain)
    assert data.counts["unplaced_rows"] == 1
    assert "1 of 2 rows have no context, and keep their positions." in notices(data, window=None)
    placed, kept = (to_example(stored).position_ids for stored in data.train)
    assert placed[-1] > 290 and kept.tolist() == list(range(len(kept)))
    with pytest.raises(UserError, match=r"moves the chunks of a context, and no row has one"):
        load(plain)


def test_equal_rows_of_unlike_places_draw_apart(tmp_path, monkeypatch) -> None:
    """Row 0 of the held-out file is row 0 of the training file: the same tokens at other positions."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    context = {"context": ["abc", "def"], "question": "q?", "chosen": "yes", "rejected": "no"}
    paths = [write_lines(tmp_path / name, context) for name in ("train.jsonl", "held.jsonl", "mixed.jsonl")]
    wanted = DataSettings(path=paths[0], eval_path=paths[1], mix=[MixedSettings(path=paths[2], ratio=1.0)])
    positions = PositionSettings(Logo(target_length=3000, sparse_share=0.0), chunk_tokens=4)
    data = load_preference_data(wanted, byte_tokenizer(), positions=positions, seed=0)
    drawn = [to_example(stored).position_ids.tolist() for rows in (data.train, data.eval) for stored in rows]
    assert len(drawn) == 3 and len(set(map(tuple, drawn))) == 3


def test_only_the_window_that_is_drawn_is_computed() -> None:
    """A chunk of two tokens at the most positions there are: half a billion windows, of which none is listed."""
    most = 2**31 - 1
    windows = CoverWindows(2, most)
    assert len(windows) == 2**30 and windows[0] == range(2) and windows[2**30 - 1] == range(most - 2, most)
    row = example([2], system=0, question=0, answers=(1,))
    placed = synthesise(row, mode="logo_continuous", target_length=most).position_ids
    drawn = row_rng(0, 0, 0)
    drawn.random()  # continuous or sparse
    extent = most - 1
    start = int(drawn.integers(2**30 - 1)) * (extent - 2) // (2**30 - 2)
    assert placed.tolist() == [start, start + 1]
    with pytest.raises(IndexError):
        windows[2**30]


def test_positions_that_cannot_be_stored_are_refused() -> None:
    assert PositionSettings(Logo(target_length=2**31 - 1)).redraw == "never"
    with pytest.raises(
        UserError, match=r"positions\.target_length=2147483648 is too large: .* 2147483647 is"
    ):
        PositionSettings(Logo(target_length=2**31))


GOLDEN = {
    ("logo", "slots"): "0471f6d0a1c25523",
    ("logo", "uniform"): "7754898092214608",
    ("logo_continuous", "slots"): "5a09f68923b71593",
    ("logo_continuous", "uniform"): "0d08372526a6d2b9",
    ("logo_sparse", "slots"): "1a7d14826fb7c2ba",
    ("logo_sparse", "uniform"): "39cb39e29bdfea79",
}


@pytest.mark.parametrize(("mode", "draw"), GOLDEN)
def test_a_seed_gives_what_it_gave_in_version_0_2_0(mode: str, draw: str) -> None:
    """Bit for bit, so that rows that were read with `positions.mode` keep their positions."""
    digest = hashlib.blake2b(digest_size=8)
    for seed, row in product(range(50), (example([8, 5, 9], gap=1), example([2, 30], system=0, question=3))):
        place = (seed, 1, seed * 7)
        made = synthesise(row, mode=mode, draw=draw, target_length=900 + seed, drawn_by=place)
        digest.update(made.position_ids.tobytes())
    assert digest.hexdigest() == GOLDEN[mode, draw]
