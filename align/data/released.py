"""Pre-tokenised rows as LOGO and LongPO released them (`load_from_disk`), read straight to tokens.

LOGO: `{chosen,reject_1,reject_2,…}_{input_ids,attention_mask,position_ids,labels}`, rows that share the prompt;
`position_ids` are synthesised already. LongPO: `{chosen,rejected}_{input_ids,attention_mask,labels}` and, on the
short context with one row a turn, `ref_{chosen,rejected}_*`. What labels leave out (−100) at the start of a row
is its prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from align.data import faults
from align.data.columns import Columns
from align.data.examples import Answer, TokenizedExample

IGNORED = -100  # a label that takes no part in the loss
_LEAST, _MOST = -(2**31), 2**31 - 1  # what is stored in 32 bits


@dataclass(frozen=True)
class _Sequence:
    """One released sequence: prompt and answer in one, as for a model that reads a row an answer.

    Attributes:
        name: how its columns begin: `chosen`, `rejected`, `reject_1`, `ref_chosen`, …
        ids: `[n]` token ids.
        labels: `[n]` the same, and −100 where nothing is scored: a prompt of 3 and an answer of 2 tokens
            `−100, −100, −100, 57, 2`.
        positions: `[n]`; None without synthesised ones.
    """

    name: str
    ids: np.ndarray
    labels: np.ndarray
    positions: np.ndarray | None

    @property
    def prompt(self) -> int:
        """Tokens before the first label."""
        return int(np.argmax(self.labels != IGNORED))


def is_released(values: Mapping[str, Any]) -> bool:
    """Whether a raw row is pre-tokenised."""
    return "chosen_input_ids" in values


def read_released(
    source: str, values: Mapping[str, Any], *, require_rejected: bool = False
) -> TokenizedExample:
    """A pre-tokenised row as a `TokenizedExample`; it has no `chunk_spans`.

    Raises:
        UserError: columns of different lengths, a row without labels, rows that do not share the prompt or
            its positions, positions that do not increase or jump inside an answer; names row and column.
    """
    columns = Columns(source, values, reason=faults.PRE_TOKENISED)
    names = ["chosen", *_rejected_names(columns.values)]
    if require_rejected and len(names) == 1:
        raise columns.no_rejected()
    sequences = [_sequence(columns, name, _columns(columns, name)) for name in names]
    return TokenizedExample(
        source=source,
        **_shared(columns, sequences),
        short=_short_turns(columns, source),
    )


# What a released row has of each answer: the columns `chosen_input_ids`, `chosen_labels` and so on.
_SUFFIXES = ("input_ids", "attention_mask", "position_ids", "labels")
_OPTIONAL = ("attention_mask", "position_ids")


def _rejected_names(values: Mapping[str, Any]) -> list[str]:
    """`rejected`, or `reject_1`, `reject_2`, … in order."""
    found = [match for name in values if (match := re.fullmatch(r"(rejected|reject_(\d+))_input_ids", name))]
    return [match[1] for match in sorted(found, key=lambda match: int(match[2] or 0))]


def _columns(columns: Columns, name: str) -> dict[str, Any]:
    """The values of `NAME_input_ids`, `NAME_labels` and so on by their endings; None for one that may be absent."""
    return {
        suffix: None
        if suffix in _OPTIONAL and f"{name}_{suffix}" not in columns
        else columns.get(f"{name}_{suffix}")
        for suffix in _SUFFIXES
    }


def _only_row(value: Any) -> Any:
    """`[[1, 5, 7]]` as `[1, 5, 7]`: LongPO's script writes its long columns as a list of one row."""
    nested = isinstance(value, list) and len(value) == 1 and isinstance(value[0], list | np.ndarray)
    return value[0] if nested else value


def _integers(columns: Columns, name: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:  # a list of lists of different lengths
        array = np.empty(0, dtype=object)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise columns.error(f"column {name} must be a flat list of integers.")
    if len(array) and (array.min() < _LEAST or array.max() > _MOST):
        raise columns.error(
            f"column {name} holds a number that is no token id, position or label ({array.min()} … {array.max()}).",
            reason=faults.VOCABULARY,
        )
    return array.astype(np.int64)


def _sequence(columns: Columns, name: str, values: Mapping[str, Any]) -> _Sequence:
    """Checks one released row and leaves out what its mask hides: padding at the end, or, of LOGO's, of each chunk.

    Nobody attends to a hidden token, so that the others' logits stay what they are; they keep their positions.

    Args:
        columns: the row, for messages to people.
        name: `chosen`, `reject_1`, …
        values: of the columns that begin with it, by their endings.
    """
    arrays = {
        suffix: _integers(columns, f"{name}_{suffix}", _only_row(value))
        for suffix, value in values.items()
        if value is not None
    }
    n = len(arrays["input_ids"])
    for suffix, array in arrays.items():
        if len(array) != n:
            raise columns.error(f"column {name}_{suffix} has {len(array)} entries, {name}_input_ids {n}.")
    attended = np.flatnonzero(arrays.get("attention_mask", np.ones(n, dtype=np.int64)))
    ids, labels = arrays["input_ids"][attended], arrays["labels"][attended]
    scored = labels != IGNORED
    if not scored.any():
        raise columns.error(f"column {name}_labels marks no answer: all are {IGNORED}.")
    if scored[0]:
        raise columns.error(f"column {name}_labels leaves no prompt: the first label is not {IGNORED}.")
    if not np.array_equal(labels[scored], ids[scored]):
        raise columns.error(f"column {name}_labels differs from {name}_input_ids where it is not {IGNORED}.")
    positions = arrays.get("position_ids")
    return _Sequence(name, ids, labels, None if positions is None else positions[attended])


def _shared(columns: Columns, sequences: Sequence[_Sequence]) -> dict[str, Any]:
    """Prompt, positions and answers of rows that must share the prompt."""
    first = sequences[0]
    n = min(sequence.prompt for sequence in sequences)
    for sequence in sequences:
        if sequence.prompt != n or not np.array_equal(sequence.ids[:n], first.ids[:n]):
            raise columns.error(
                f"column {sequence.name}_input_ids does not share the prompt of {first.name}."
            )
    positions = np.arange(n) if first.positions is None else first.positions[:n]
    for sequence in sequences:
        if sequence.positions is not None:
            _check_positions(columns, sequence, positions)
    answers = tuple(Answer(s.ids[n:], s.labels[n:] != IGNORED) for s in sequences)
    return {"prompt_ids": first.ids[:n], "position_ids": positions.astype(np.int64), "answers": answers}


def _check_positions(columns: Columns, sequence: _Sequence, prompt: np.ndarray) -> None:
    name, n = f"{sequence.name}_position_ids", len(prompt)
    if sequence.positions is None or not np.array_equal(sequence.positions[:n], prompt):
        raise columns.error(f"column {name} does not share the prompt's positions.")
    if (np.diff(sequence.positions) < 1).any() or sequence.positions[0] < 0:
        raise columns.error(f"column {name} must increase strictly from 0 or more.")
    if (np.diff(sequence.positions[n - 1 :]) != 1).any():
        raise columns.error(f"column {name} jumps inside the answer, which must go on by unit steps.")


def _short_turns(columns: Columns, source: str) -> tuple[TokenizedExample, ...]:
    """LongPO's reference rows: one `TokenizedExample` a turn, padding cut.

    The columns `ref_chosen_*` and `ref_rejected_*` are lists with one entry a turn: of a row with two turns
    `ref_chosen_input_ids` is `[[1, 5, 7], [1, 9]]`, and so are the others.
    """
    if "ref_chosen_input_ids" not in columns:
        return ()
    names = ("ref_chosen", "ref_rejected")
    lists = {name: _columns(columns, name) for name in names}
    present = [values for of_name in lists.values() for values in of_name.values() if values is not None]
    if (
        not all(isinstance(values, list) for values in present)
        or len({len(values) for values in present}) != 1
    ):
        raise columns.error("the columns ref_chosen_* and ref_rejected_* must be lists with one row a turn.")
    short = []
    for turn in range(len(present[0])):
        sequences = [_sequence(columns, name, _entries(lists[name], turn)) for name in names]
        short.append(TokenizedExample(source=source, **_shared(columns, sequences)))
    return tuple(short)


def _entries(lists: Mapping[str, list[Any] | None], turn: int) -> dict[str, Any]:
    """Of each column the entry of one turn; None where there is no such column."""
    return {kind: None if values is None else values[turn] for kind, values in lists.items()}
