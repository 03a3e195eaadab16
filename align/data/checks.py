"""What is wrong with a data set before anybody trains on it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from align.core.errors import UserError
from align.core.files import writing_atomically
from align.core.readable import agreeing, counted
from align.data.bad_rows import check_limit
from align.data.dataset import Places, PreferenceData
from align.data.faults import RowError
from align.data.length_words import rows_in_window_words
from align.data.notices import positions_beyond
from align.data.provenance import leaks
from align.data.renaming import Renaming
from align.data.sources import Source, open_sources, read_places
from align.data.stored_rows import hash_ids
from align.data.totals import column_of, short_cuts
from align.data.unread import upside_down_rows

if TYPE_CHECKING:
    from datasets import Dataset

    from align.data.settings import DataSettings


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: `unusable row`, `equal answers`, `duplicate row`, `leak`, `over the window`, `positions over the window`,
            `scores` or `settings`.
        message: one sentence that names the row.
        reason: why a row is unusable, in a few words by which such rows are grouped; else empty.
    """

    kind: str
    message: str
    reason: str = ""


def unusable_rows(places: Places, *, window: int | None) -> list[Finding]:
    """Every row of `data.path`, `data.mix` and `data.eval_path` that cannot be used; `window` as in `notices`."""
    return [
        Finding("unusable row", str(bad), bad.reason)
        for built in places.all
        for bad in rows_in_window_words(built.bad, window)
    ]


def over_the_limit(places: Places, settings: DataSettings) -> list[Finding]:
    """Places of which `data.bad_rows=drop` would leave out more rows than `data.bad_rows_limit` allows."""
    findings = []
    for built in places.all if settings.bad_rows == "drop" else ():
        try:
            check_limit(built.place, built.bad, usable=len(built.rows) or 1, limit=settings.bad_rows_limit)
        except UserError as error:
            findings.append(Finding("settings", str(error)))
    return findings


def context_leaks(settings: DataSettings) -> list[Finding]:
    """Rows whose prompt lacks what their chosen answer was made from; see `provenance.leaks`."""
    return [
        Finding("leak", f"{row.source}: {sentence}.")
        for files, renaming in _files_read(settings)
        for row in read_places(files, 0, settings.limit)
        if not isinstance(row, RowError)
        for sentence in leaks(renaming(row.values))
    ]


def _files_read(settings: DataSettings) -> Iterator[tuple[Sequence[Source], Renaming]]:
    """Everything that is read: training rows, held-out rows, what is mixed in."""
    renaming = Renaming.of(settings.columns)
    sources = open_sources(settings.path, wanted=renaming.wanted())
    yield sources.train, renaming
    if settings.eval_path is None:
        yield sources.held_out, renaming
    else:
        opened = open_sources(settings.eval_path, key="data.eval_path", wanted=renaming.wanted())
        yield opened.train, renaming
    for i, entry in enumerate(settings.mix):
        own = Renaming.of(entry.columns)
        yield open_sources(entry.path, key=f"data.mix[{i}].path", wanted=own.wanted()).train, own


def check_rows(data: PreferenceData, *, window: int | None, reach: int | None = None) -> list[Finding]:
    """Equal answers, duplicate rows, held-out prompts among the training rows, rows over the window.

    Args:
        data: tokenised rows; prompts are compared as tokens, before position synthesis.
        window: tokens that the model reads at most; None does not check.
        reach: see `notices`.
    """
    datasets = [data.train] if data.eval is None else [data.train, data.eval]
    findings = [finding for rows in datasets for finding in _equal_answers(rows)]
    findings += [finding for rows in datasets for finding in _duplicates(rows)]
    findings += _leaks(data)
    findings += [
        Finding("scores", f"{where}: {why}: the rejected answer is said to be the better one.")
        for rows in datasets
        for where, why in upside_down_rows(rows)
    ]
    if window is not None:
        findings += [finding for rows in datasets for finding in _over_window(rows, window)]
    beyond = positions_beyond(data.counts["largest_position"], window=window, reach=reach)
    findings += [] if beyond is None else [Finding("positions over the window", beyond)]
    return findings


def _equal_answers(dataset: Dataset) -> Iterator[Finding]:
    """Rejected answers that equal the chosen one (dropped when read) or each other."""
    dropped = column_of(dataset, "dropped_rejected").to_numpy()
    same = np.isin(np.arange(len(dataset)), _with_answers_of_one_length(dataset))
    columns = dataset.select_columns(["source", "dropped_rejected", "answer_ids", "answer_lengths"])
    for place in np.flatnonzero((dropped > 0) | same):
        row = columns[int(place)]
        if row["dropped_rejected"]:
            yield Finding(
                "equal answers",
                f"{row['source']}: {counted(row['dropped_rejected'], 'rejected answer')} "
                f"{agreeing(row['dropped_rejected'], 'equals the chosen one and is', 'equal the chosen one and are')} "
                "left out.",
            )
        answers = np.split(row["answer_ids"], np.cumsum(row["answer_lengths"])[:-1])
        if len({hash_ids(answer) for answer in answers}) < len(answers):
            yield Finding("equal answers", f"{row['source']}: two of its answers are the same tokens.")


def _with_answers_of_one_length(dataset: Dataset) -> np.ndarray:
    """Rows of which two answers have as many tokens: only those can have two that are the same tokens."""
    lengths = column_of(dataset, "answer_lengths")
    row = pc.list_parent_indices(lengths).to_numpy().astype(np.int64)
    both = np.stack([row, pc.list_flatten(lengths).to_numpy().astype(np.int64)])
    both = both[:, np.lexsort(both[::-1])]
    return np.unique(both[0, 1:][(both[:, 1:] == both[:, :-1]).all(axis=0)])


def _duplicates(dataset: Dataset) -> Iterator[Finding]:
    """Rows that repeat prompt and answers of an earlier one."""
    names = pc.dictionary_encode(column_of(dataset, "prompt_hash"))
    prompts = names.indices.to_numpy()
    shared = np.bincount(prompts, minlength=len(names.dictionary))[prompts] > 1
    seen: dict[tuple[int, str], str] = {}  # the first of each; places in unlike files may have one name
    columns = dataset.select_columns(["source", "answer_ids", "answer_lengths"])
    for place in np.flatnonzero(shared):
        row = columns[int(place)]
        key = (int(prompts[place]), hash_ids(np.concatenate([row["answer_lengths"], row["answer_ids"]])))
        if key in seen:
            yield Finding("duplicate row", f"{row['source']}: the same prompt and answers as {seen[key]}.")
        else:
            seen[key] = str(row["source"])


def _leaks(data: PreferenceData) -> Iterator[Finding]:
    """Held-out prompts that are trained on."""
    if data.eval is None:
        return
    trained, held = (column_of(rows, "prompt_hash") for rows in (data.train, data.eval))
    first = pc.index_in(held, value_set=trained)
    for place in np.flatnonzero(first.is_valid().to_numpy(zero_copy_only=False)):
        where = data.train[first[int(place)].as_py()]["source"]
        yield Finding(
            "leak", f"{data.eval[int(place)]['source']}: this held-out prompt is trained on in {where}."
        )


def _over_window(dataset: Dataset, window: int) -> Iterator[Finding]:
    """Rows that are cut to the window, though nobody asked for a length."""
    cut = column_of(dataset, "cut_tokens").to_numpy().astype(np.int64)
    whole = column_of(dataset, "longest_sequence").to_numpy() + cut
    sources = dataset.select_columns(["source"])
    for place in np.flatnonzero(whole > window):
        yield Finding(
            "over the window",
            f"{sources[int(place)]['source']}: prompt and longest answer have {whole[place]} tokens, the model's "
            f"window {window}; training cuts {cut[place]} of them out of its context (data.max_length={window} accepts "
            "that).",
        )
    cuts = short_cuts(dataset)
    for place in np.flatnonzero(cuts):
        yield Finding(
            "over the window",
            f"{sources[int(place)]['source']}: with its short context it has more tokens than the model's window "
            f"{window}; training cuts {cuts[place]} of them out of that (data.max_length={window} accepts that).",
        )


def write_findings(findings: Sequence[Finding], path: Path) -> None:
    """Every finding as JSON Lines with `kind`, `reason` and `message`."""
    with writing_atomically(path) as file:
        for one in findings:
            line = {"kind": one.kind, "reason": one.reason, "message": one.message}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
