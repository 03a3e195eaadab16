"""Dataset Decomposition: the golden cuts, the odds, and rows that hold every token but what is counted as dropped."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from align.core.errors import UserError
from align.data.orders import Grow
from align.documents.loading import Document
from align.generation.nobody import Nobody
from align.generation.stage import Workspace
from align.synthesis.buckets import BucketsPipeline
from align.synthesis.buckets.powers import odds_of, powers_of
from tests.data.helpers import byte_tokenizer
from tests.data.test_piece_rows import with_boundary
from tests.data.test_text_rows import with_start
from tests.synthesis.utk.test_utk import documents, example


@pytest.mark.parametrize(
    ("tokens", "least", "most", "powers", "left"),
    [
        (1000, 6, 8, [8, 8, 8, 7, 6], 35),
        (1000, 8, 13, [9, 8], 230),
        (8193, 8, 13, [13], 0),
        (8194, 8, 13, [13], 1),
        (700, 6, 8, [8, 8, 7], 57),
        (1, 0, 4, [], 1),
        (2, 0, 4, [0], 0),
    ],
)
def test_golden_cuts(tokens, least, most, powers, left) -> None:
    assert powers_of(tokens, least=least, most=most) == (powers, left)


def test_each_step_of_the_curriculum_has_rows_of_one_length() -> None:
    """`data/order=grow` takes 2^k + 1 tokens for bucket k: 8 rows of each of four lengths, two a step."""
    tokens = np.repeat([2**power + 1 for power in (8, 9, 10, 13)], 8)
    order = Grow(cycles=2).arrange(tokens, prompts=2, rng=np.random.default_rng(0))
    steps = tokens[order].reshape(-1, 2)
    assert (steps[:, 0] == steps[:, 1]).all() and sorted(order.tolist()) == list(range(32))


def test_golden_odds() -> None:
    """Of 13 … 8: each twice the one before, so that every length gets as many tokens."""
    expected = [0.01587302, 0.03174603, 0.06349206, 0.12698413, 0.25396825, 0.50793651]
    np.testing.assert_allclose(odds_of(least=8, most=13), expected, atol=5e-9, rtol=0)
    assert odds_of(least=7, most=8).tolist() == pytest.approx([1 / 3, 2 / 3])


def test_drawn_powers_follow_the_odds() -> None:
    """Of a very long document, those drawn where a larger row would fit: within five deviations, all tokens kept."""
    powers, left = powers_of(60_000, least=2, most=5, rng=np.random.default_rng(0))
    assert sum(2**power + 1 for power in powers) + left == 60_000 and left < 2**2 + 1
    share = np.bincount(powers, minlength=6)[5:1:-1] / len(powers)
    assert np.abs(share - odds_of(least=2, most=5)).max() <= 5 * np.sqrt(0.25 / len(powers))
    assert powers_of(60_000, least=2, most=5, rng=np.random.default_rng(0)) == (powers, left)


def made(folder: Path, tokenizer, *, seed: int = 1, read: list[Document] | None = None, **settings):
    pipeline = BucketsPipeline(**{"min_power": 2, "max_power": 5} | settings)
    pipeline.check()
    work = Workspace(folder, seed, tokenizer, Nobody("tiny"), Console(file=io.StringIO()))
    return pipeline.run(read or documents(), work)


@pytest.mark.parametrize("long", ["largest", "random"])
@pytest.mark.parametrize("make", [byte_tokenizer, with_start, with_boundary])
def test_rows_hold_the_documents_tokens_in_order(make, long, tmp_path) -> None:
    """Each row 2^k + 1 tokens, k from 2 to 5, all scored but the first; what is left of a document is counted."""
    tokenizer = make()
    summary = made(tmp_path, tokenizer, long=long)
    rows = [json.loads(line) for line in summary.path.read_text().splitlines()]
    found: dict[str, list[int]] = {}
    for row in rows:
        ids, scored = example(row, tokenizer)
        assert len(ids) == row["tokens"] == 2 ** row["power"] + 1 and 2 <= row["power"] <= 5
        assert scored == [False, *[True] * (len(ids) - 1)]
        assert row["start"] == len(found.setdefault(row["document_id"], []))
        found[row["document_id"]] += ids
    start = [tokenizer.convert_tokens_to_ids("<|im_start|>")] if make is with_start else []
    left = 0
    for one in documents():
        encoded = tokenizer(one.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        whole = [*start, *encoded, tokenizer.eos_token_id]
        held = found.get(one.id, [])
        assert held == whole[: len(held)] and len(whole) - len(held) < 2**2 + 1
        left += len(whole) - len(held)
    assert summary.dropped["tokens behind a document's last row, or of one too short"] == left
    assert summary.dropped["document too short for a row"] == len(documents()) - len(found)
    counts = summary.counts
    assert counts["tokens in rows"] == sum(row["tokens"] for row in rows)
    assert [counts[f"rows of {2**k + 1} tokens"] for k in (2, 3, 4, 5)] == [
        sum(row["power"] == k for row in rows) for k in (2, 3, 4, 5)
    ]
    assert summary.rows == len(rows) and summary.method == "lm" and not summary.pairs


def test_equal_seeds_and_kills_give_equal_bytes(tmp_path) -> None:
    tokenizer = byte_tokenizer()
    whole = made(tmp_path / "whole", tokenizer, long="random")
    assert (
        made(tmp_path / "other", tokenizer, long="random", seed=2).path.read_bytes()
        != whole.path.read_bytes()
    )
    lines = (tmp_path / "whole" / "work" / "rows.jsonl").read_bytes().splitlines(keepends=True)
    for kept in (0, 1, 2, 9, len(lines) - 1, len(lines)):
        folder = tmp_path / f"killed-{kept}"
        (folder / "work").mkdir(parents=True)
        (folder / "work" / "rows.jsonl").write_bytes(b"".join(lines[:kept]) + b'{"maker"')
        again = made(folder, tokenizer, long="random")
        assert again.path.read_bytes() == whole.path.read_bytes()
        assert (again.rows, again.counts, again.dropped) == (whole.rows, whole.counts, whole.dropped)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"long": "short"}, "pipeline.long=short"),
        ({"min_power": -1}, "pipeline.min_power=-1 is too small"),
        ({"min_power": 6, "max_power": 5}, "pipeline.max_power=5 is too small: give 6 or more"),
        ({"max_power": 31}, "pipeline.max_power=31 is too large: give 30 or less"),
    ],
)
def test_settings_out_of_range_are_refused(settings, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        BucketsPipeline(**settings).check()
