"""What all rows together come to: counts, a digest, and columns that are taken at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from align.core.errors import UserError


def count_rows_of(train: Dataset, held: Dataset | None) -> dict[str, int]:
    """See `PreferenceData.counts`."""
    both = [train] if held is None else [train, held]
    names = (
        "cut_tokens",
        "longest_sequence",
        "num_tokens",
        "num_answers",
        "largest_position",
        "dropped_rejected",
        "cut_unrelated",
        "dropped_reasoning",
        "dropped_messages",
        "rendered",
        "moved_space",
        "as_text",
        "joined",
        "inferred",
    )
    found = {
        name: np.concatenate([column_of(rows, name).to_numpy(zero_copy_only=False) for rows in both]).astype(
            np.int64
        )
        for name in names
    }
    cut, longest = found["cut_tokens"], found["longest_sequence"]
    short_cut = np.concatenate([short_cuts(rows) for rows in both])
    return {
        "rows": sum(len(rows) for rows in both),
        "train_rows": len(train),
        "eval_rows": 0 if held is None else len(held),
        "tokens": int(found["num_tokens"].sum()),
        "padded_tokens": int((longest * found["num_answers"]).sum()),
        "longest_sequence": int(longest.max()),
        "largest_position": int(found["largest_position"].max()),
        "cut_rows": int((cut > 0).sum()),
        "cut_tokens": int(cut.sum()),
        "short_cut_rows": int((short_cut > 0).sum()),
        "short_cut_tokens": int(short_cut.sum()),
        "dropped_rejected": int(found["dropped_rejected"].sum()),
        "cut_unrelated": int((found["cut_unrelated"] > 0).sum()),
        "rendered_prompts": int(found["rendered"].sum()),
        "moved_spaces": int(found["moved_space"].sum()),
        "text_prompts": int(found["as_text"].sum()),
        "joined_rows": int(found["joined"].sum()),
        "inferred_prompts": int(found["inferred"].sum()),
        "dropped_reasoning": int(found["dropped_reasoning"].sum()),
        "dropped_messages": int(found["dropped_messages"].sum()),
        **_documents(both),
        **_rows_of_pieces(both),
    }


def _documents(both: Sequence[Dataset]) -> dict[str, int]:
    """Documents of plain text, those of them that are cut, the pieces that there are, and the tokens of those."""
    documents, cut, pieces, tokens = set[str](), set[str](), 0, 0
    for rows in both:
        piece = column_of(rows, "piece").to_numpy(zero_copy_only=False)
        places = np.flatnonzero(piece)
        if len(places):
            names, sizes = column_of(rows, "prompt_hash"), column_of(rows, "num_tokens")
            documents.update(names.take(pa.array(places)).to_pylist())
            cut.update(names.take(pa.array(np.flatnonzero(piece > 1))).to_pylist())
            tokens += int(sizes.to_numpy(zero_copy_only=False)[places].sum(dtype=np.int64))
        pieces += len(places)
    return {
        "documents": len(documents),
        "cut_documents": len(cut),
        "pieces": pieces,
        "piece_tokens": tokens,
    }


def _rows_of_pieces(both: Sequence[Dataset]) -> dict[str, int]:
    """Rows that are laid out in pieces, and their tokens."""
    rows, tokens = 0, 0
    for dataset in both:
        places = np.flatnonzero(column_of(dataset, "pieces").to_numpy(zero_copy_only=False))
        sizes = column_of(dataset, "num_tokens").to_numpy(zero_copy_only=False)
        rows, tokens = rows + len(places), tokens + int(sizes[places].sum(dtype=np.int64))
    return {"rows_of_pieces": rows, "tokens_in_pieces": tokens}


def short_cuts(rows: Dataset) -> np.ndarray:
    """`[n]` tokens that are cut out of the short contexts of each row: 0 where it has none."""
    cuts = column_of(rows, "short_cut_tokens")
    row = pc.list_parent_indices(cuts).to_numpy()
    tokens = pc.list_flatten(cuts).to_numpy().astype(np.int64)
    return np.bincount(row, weights=tokens, minlength=len(rows)).astype(np.int64)


def unplaced_rows(train: Dataset, held: Dataset | None) -> int:
    """Rows that position synthesis leaves as they are: those without a context, of which LOGO's moves the chunks.

    Raises:
        UserError: all of them, so that there was nothing to synthesise.
    """
    both = [train] if held is None else [train, held]
    count = sum(int(pc.sum(pc.equal(lengths_of(rows, "drawn"), 0)).as_py() or 0) for rows in both)
    if count == sum(map(len, both)):
        raise UserError(
            "position synthesis moves the chunks of a context, and no row has one: give `context` and `question`, or "
            "set positions=none (e2, random and skip need no context)."
        )
    return count


def digest_of_rows(train: Dataset, held: Dataset | None) -> str:
    """See `PreferenceData.digest`."""
    digest = hashlib.blake2b(digest_size=8)
    for rows in [train] if held is None else [train, held]:
        digest.update(len(rows).to_bytes(8, "little"))
        digest.update(column_of(rows, "row_hash").to_numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def column_of(rows: Dataset, name: str) -> pa.Array:
    """One column of all rows. `datasets` itself gathers a selection row by row: a minute for a million rows."""
    return _selected(rows, rows.data.column(name))


def lengths_of(rows: Dataset, name: str) -> pa.Array:
    """How many entries each row's list has in a column; the lists themselves stay on the disk."""
    return _selected(rows, pc.list_value_length(rows.data.column(name)))


def _selected(rows: Dataset, column: pa.ChunkedArray) -> pa.Array:
    """A column of the stored table as the rows have it that were selected of it."""
    whole = column.combine_chunks()
    return whole if rows._indices is None else whole.take(rows._indices.column(0).combine_chunks())
