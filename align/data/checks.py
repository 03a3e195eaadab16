"""What is wrong with a data set before anybody trains on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from align.core.errors import UserError
from align.data.formats import parse_row
from align.data.provenance import leaks
from align.data.released import is_released, read_released
from align.data.sources import Source, open_sources, read_rows
from align.data.stored_rows import hash_ids

if TYPE_CHECKING:
    from datasets import Dataset

    from align.data.dataset import PreferenceData
    from align.data.settings import DataSettings


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: `unusable row`, `equal answers`, `duplicate row`, `leak` or `over the window`.
        message: one sentence that names the row.
    """

    kind: str
    message: str


def unusable_rows(settings: DataSettings, *, require_rejected: bool = False) -> list[Finding]:
    """Every row of `data.path`, `data.mix` and `data.eval_path` that has no known layout, no answer or no negative.

    Raises:
        UserError: a path or a whole file cannot be read.
    """
    files = _files_read(settings)
    return [finding for file in files for finding in _unusable(file, settings.limit, require_rejected)]


def context_leaks(settings: DataSettings) -> list[Finding]:
    """Rows whose prompt lacks what their chosen answer was made from; see `provenance.leaks`."""
    return [
        Finding("leak", f"{row.source}: {sentence}.")
        for file in _files_read(settings)
        for row in read_rows([file], 0, settings.limit)
        for sentence in leaks(row.values)
    ]


def _files_read(settings: DataSettings) -> list[Source]:
    """Everything that is read: training rows, what is mixed in, held-out rows."""
    sources = open_sources(settings.path)
    files = [*sources.train, *sources.held_out]
    if settings.eval_path is not None:
        files = [*sources.train, *open_sources(settings.eval_path, key="data.eval_path").train]
    for i, entry in enumerate(settings.mix):
        files += open_sources(entry.path, key=f"data.mix[{i}].path").train
    return files


def _unusable(source: Source, limit: int | None, require_rejected: bool) -> Iterator[Finding]:
    for row in read_rows([source], 0, limit):
        try:
            if is_released(row.values):
                read_released(row.source, row.values, require_rejected=require_rejected)
            else:
                parse_row(row, require_rejected=require_rejected)
        except UserError as error:
            yield Finding("unusable row", str(error))


def check_rows(data: PreferenceData, *, window: int | None) -> list[Finding]:
    """Equal answers, duplicate rows, held-out prompts among the training rows, rows over the window.

    Args:
        data: tokenised rows; prompts are compared as tokens, before position synthesis.
        window: tokens that the model reads at most; None does not check.
    """
    datasets = [data.train] if data.eval is None else [data.train, data.eval]
    findings = [finding for rows in datasets for finding in _equal_answers(rows)]
    findings += [finding for rows in datasets for finding in _duplicates(rows)]
    findings += _leaks(data)
    if window is not None:
        findings += [finding for rows in datasets for finding in _over_window(rows, window)]
    return findings


def _equal_answers(dataset: Dataset) -> Iterator[Finding]:
    """Rejected answers that equal the chosen one (dropped when read) or each other."""
    for row in dataset.select_columns(["source", "dropped_rejected", "answer_ids", "answer_lengths"]):
        if row["dropped_rejected"]:
            yield Finding(
                "equal answers",
                f"{row['source']}: {row['dropped_rejected']} rejected answers equal the chosen one and are left out.",
            )
        answers = np.split(row["answer_ids"], np.cumsum(row["answer_lengths"])[:-1])
        if len({hash_ids(answer) for answer in answers}) < len(answers):
            yield Finding("equal answers", f"{row['source']}: two of its answers are the same tokens.")


def _duplicates(dataset: Dataset) -> Iterator[Finding]:
    """Rows that repeat prompt and answers of an earlier one."""
    seen: dict[tuple[str, str], str] = {}
    for row in dataset.select_columns(["source", "prompt_hash", "answer_ids"]):
        key = (str(row["prompt_hash"]), hash_ids(row["answer_ids"]))
        first = seen.setdefault(key, str(row["source"]))
        if first != row["source"]:
            yield Finding("duplicate row", f"{row['source']}: the same prompt and answers as {first}.")


def _leaks(data: PreferenceData) -> Iterator[Finding]:
    """Held-out prompts that are trained on."""
    if data.eval is None:
        return
    trained = dict(zip(data.train["prompt_hash"][:], data.train["source"][:], strict=True))
    for row in data.eval.select_columns(["source", "prompt_hash"]):
        if row["prompt_hash"] in trained:
            yield Finding(
                "leak",
                f"{row['source']}: this held-out prompt is trained on in {trained[row['prompt_hash']]}.",
            )


def _over_window(dataset: Dataset, window: int) -> Iterator[Finding]:
    for row in dataset.select_columns(["source", "longest_sequence"]):
        if row["longest_sequence"] > window:
            yield Finding(
                "over the window",
                f"{row['source']}: prompt and longest answer have {row['longest_sequence']} tokens, the model's "
                f"window {window}; training cuts its context to that.",
            )
