"""`TokenizedExample` ↔ the flat int32 columns in which Arrow stores it.

Two answers of 3 and 2 tokens are `answer_ids` of 5 numbers and `answer_lengths` `[3, 2]`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import Features, List, Value

from align.data.examples import Answer, TokenizedExample
from align.data.faults import RowError
from align.data.positions import Drawn

_INTEGERS = List(Value("int32"))

# Flat lists, so that a row of 10^5 tokens is read as arrays and never as Python integers. The lengths of
# the answers and of the short rows say where the flat lists are cut. The last block describes the row.
FEATURES = Features(
    {
        "source": Value("string"),
        "prompt_ids": _INTEGERS,
        "position_ids": _INTEGERS,
        "position_step": Value("int32"),
        "drawn": List(Value("int64")),
        "answer_ids": _INTEGERS,
        "answer_position_ids": _INTEGERS,
        "answer_lengths": _INTEGERS,
        "scored": List(Value("bool")),
        "chunk_spans": _INTEGERS,
        "cut_tokens": Value("int32"),
        "short_prompt_ids": _INTEGERS,
        "short_position_ids": _INTEGERS,
        "short_prompt_lengths": _INTEGERS,
        "short_answer_ids": _INTEGERS,
        "short_answer_lengths": _INTEGERS,
        "short_scored": List(Value("bool")),
        "short_cut_tokens": _INTEGERS,
        "prompt_hash": Value("string"),
        "num_tokens": Value("int32"),
        "num_answers": Value("int32"),
        "longest_sequence": Value("int32"),
        "largest_position": Value("int32"),
        "dropped_rejected": Value("int32"),
        "cut_unrelated": Value("int32"),
        "dropped_reasoning": Value("int32"),
        "dropped_messages": Value("int32"),
        "rendered": Value("bool"),
        "moved_space": Value("bool"),
        "as_text": Value("bool"),
        "joined": Value("bool"),
        "inferred": Value("bool"),
        "piece": Value("int32"),
        "pieces": Value("int32"),
        "unread": Value("string"),
        "scores": Value("string"),
        "columns": List(Value("float64")),
        "weights": List(Value("float64")),
        "short_weights": List(Value("float64")),
        "row_hash": Value("int64"),
        "bad_reason": Value("string"),
        "bad_sentence": Value("string"),
    }
)
_EMPTY = {"string": "", "bool": False, "int32": 0, "int64": 0}


def to_row(
    example: TokenizedExample,
    *,
    dropped_rejected: int = 0,
    unread: str = "",
    scores: str = "",
    cut_unrelated: int = 0,
) -> dict[str, Any]:
    """The columns of `FEATURES` for one row.

    Args:
        example: its `short` rows have no `chunk_spans` and as many answers as it has.
        dropped_rejected: rejected answers that were left out since they equal the chosen one.
        unread: see `unread.stored_names`.
        scores: see `answer_scores.upside_down`.
        cut_unrelated: tokens that were cut from its answer to another prompt, see unrelated.py.
    """
    answers = example.answers
    row = _tokens(example)
    beside = _beside(example)
    return {
        **row,
        **{name: beside.get(name, []) for name in ("columns", "weights", "short_weights")},
        **position_columns(example),
        "source": example.source,
        "cut_tokens": example.cut_tokens,
        "prompt_hash": example.document or hash_ids(example.prompt_ids),
        "num_tokens": example.num_tokens,
        "num_answers": len(answers),
        "longest_sequence": len(example.prompt_ids) + example.longest_answer,
        "dropped_rejected": dropped_rejected,
        "cut_unrelated": cut_unrelated,
        "dropped_reasoning": example.dropped_reasoning,
        "dropped_messages": example.dropped_messages,
        "rendered": example.rendered,
        "moved_space": example.moved_space,
        "as_text": example.as_text,
        "joined": example.joined,
        "inferred": example.inferred,
        "piece": example.piece,
        "pieces": example.pieces,
        "unread": unread,
        "scores": scores,
        "row_hash": _hash_row(row | beside),
        "bad_reason": "",
        "bad_sentence": "",
    }


def position_columns(example: TokenizedExample) -> dict[str, Any]:
    """The columns that say where a row stands."""
    drawn, own = example.drawn, [answer.positions for answer in example.answers]
    return {
        "position_ids": _int32(example.position_ids),
        "position_step": example.position_step,
        "drawn": [] if drawn is None else [drawn.source, drawn.index, drawn.room],
        "answer_position_ids": _joined(positions for positions in own if positions is not None),
        "largest_position": example.largest_position,
    }


def to_bad_row(bad: RowError) -> dict[str, Any]:
    """The columns of `FEATURES` for a row that cannot be used: its place and why, and no tokens."""
    empty = {name: _EMPTY[kind.dtype] if isinstance(kind, Value) else [] for name, kind in FEATURES.items()}
    sentence = str(bad).removeprefix(f"{bad.source}: ")
    return {**empty, "source": bad.source, "bad_reason": bad.reason, "bad_sentence": sentence}


def _beside(example: TokenizedExample) -> dict[str, np.ndarray]:
    """What only some rows have, numbers for the loss and a step of positions; what has none keeps its hash."""
    found = {} if example.columns is None else {"columns": np.ravel(example.columns)}
    if example.position_step != 1:
        found["position_step"] = _int32([example.position_step])
    own = [answer.positions for answer in example.answers if answer.positions is not None]
    if own:
        found["answer_position_ids"] = _joined(own)
    of_short = [answer for short in example.short for answer in short.answers]
    for name, answers in (("weights", example.answers), ("short_weights", of_short)):
        if any(answer.weights is not None for answer in answers):
            found[name] = np.concatenate([answer.weights_or_ones for answer in answers])
    return found


def _tokens(example: TokenizedExample) -> dict[str, np.ndarray]:
    """The columns that hold a list."""
    answers = example.answers
    short_answers = [answer for short in example.short for answer in short.answers]
    return {
        "prompt_ids": _int32(example.prompt_ids),
        "position_ids": _int32(example.position_ids),
        "answer_ids": _joined(answer.input_ids for answer in answers),
        "answer_lengths": _int32([len(answer.input_ids) for answer in answers]),
        "scored": _joined((answer.scored for answer in answers), dtype=bool),
        "chunk_spans": _int32(np.ravel(example.chunk_spans)),
        "short_prompt_ids": _joined(short.prompt_ids for short in example.short),
        "short_position_ids": _joined(short.position_ids for short in example.short),
        "short_prompt_lengths": _int32([len(short.prompt_ids) for short in example.short]),
        "short_answer_ids": _joined(answer.input_ids for answer in short_answers),
        "short_answer_lengths": _int32([len(answer.input_ids) for answer in short_answers]),
        "short_scored": _joined((answer.scored for answer in short_answers), dtype=bool),
        "short_cut_tokens": _int32([short.cut_tokens for short in example.short]),
    }


def _hash_row(tokens: Mapping[str, np.ndarray]) -> int:
    """A number that changes with any token, position, mask or number of a row."""
    digest = hashlib.blake2b(digest_size=8)
    for values in tokens.values():
        digest.update(len(values).to_bytes(8, "little"))
        digest.update(values.tobytes())
    return int.from_bytes(digest.digest(), "little", signed=True)


def to_example(row: Mapping[str, Any]) -> TokenizedExample:
    """The `TokenizedExample` that `to_row` stored; lists and arrays are read alike."""
    spans = _int64(row["chunk_spans"]).reshape(-1, 2).tolist()
    piece, pieces = int(row.get("piece", 0)), int(row.get("pieces", 0))
    numbers = np.asarray(row.get("columns", ()), dtype=np.float64)
    return TokenizedExample(
        source=str(row["source"]),
        prompt_ids=_int64(row["prompt_ids"]),
        position_ids=_int64(row["position_ids"]),
        answers=_placed(
            _answers(row["answer_ids"], row["scored"], row["answer_lengths"], row.get("weights", ())), row
        ),
        chunk_spans=tuple((start, stop) for start, stop in spans),
        cut_tokens=int(row["cut_tokens"]),
        short=_short(row),
        dropped_reasoning=int(row["dropped_reasoning"]),
        dropped_messages=int(row["dropped_messages"]),
        rendered=bool(row.get("rendered", False)),
        moved_space=bool(row.get("moved_space", False)),
        as_text=bool(row.get("as_text", False)),
        joined=bool(row.get("joined", False)),
        inferred=bool(row.get("inferred", False)),
        piece=piece,
        document=str(row["prompt_hash"]) if piece or pieces else "",
        pieces=pieces,
        columns=numbers.reshape(-1, len(row["answer_lengths"])) if len(numbers) else None,
        position_step=int(row.get("position_step", 1)),
        drawn=Drawn(*map(int, row["drawn"])) if len(row.get("drawn", ())) else None,
    )


def hash_ids(ids: np.ndarray) -> str:
    """The same for the same tokens, and for practical purposes for no others."""
    return hashlib.blake2b(np.asarray(ids, dtype=np.int64).tobytes(), digest_size=16).hexdigest()


def _short(row: Mapping[str, Any]) -> tuple[TokenizedExample, ...]:
    lengths = _int64(row["short_prompt_lengths"])
    if not len(lengths):
        return ()
    answers = _answers(
        row["short_answer_ids"],
        row["short_scored"],
        row["short_answer_lengths"],
        row.get("short_weights", ()),
    )
    each = len(answers) // len(lengths)
    return tuple(
        TokenizedExample(
            str(row["source"]), ids, positions, answers[k * each : (k + 1) * each], cut_tokens=int(cut)
        )
        for k, (ids, positions, cut) in enumerate(
            zip(
                _cut(row["short_prompt_ids"], lengths),
                _cut(row["short_position_ids"], lengths),
                row["short_cut_tokens"],
                strict=True,
            )
        )
    )


def _answers(ids: Any, scored: Any, lengths: Any, weights: Any) -> tuple[Answer, ...]:
    edges = _edges(lengths)
    flags, weights = np.asarray(scored, dtype=bool), np.asarray(weights, dtype=np.float64)
    of_tokens = np.split(weights, edges) if len(weights) else [None] * len(lengths)
    return tuple(
        Answer(own, mask, weight)
        for own, mask, weight in zip(_cut(ids, lengths), np.split(flags, edges), of_tokens, strict=True)
    )


def _placed(answers: tuple[Answer, ...], row: Mapping[str, Any]) -> tuple[Answer, ...]:
    """The answers with positions of their own, where the row has them."""
    own = row.get("answer_position_ids", ())
    if not len(own):
        return answers
    parts = zip(answers, _cut(own, row["answer_lengths"]), strict=True)
    return tuple(replace(answer, positions=positions) for answer, positions in parts)


def _cut(flat: Any, lengths: Any) -> list[np.ndarray]:
    """A flat list in stretches of these lengths: `7 8 9` by 2 and 1 is `7 8` and `9`."""
    return np.split(_int64(flat), _edges(lengths))


def _edges(lengths: Any) -> np.ndarray:
    return np.cumsum(_int64(lengths))[:-1]


def _joined(arrays: Iterable[np.ndarray], dtype: type = np.int32) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype=dtype), *arrays]).astype(dtype)


def _int32(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.int32)


def _int64(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.int64)
