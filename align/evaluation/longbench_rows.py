"""LongBench's rows: what each has to have, so that nothing is asked that cannot be scored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.core.errors import UserError
from align.evaluation import longbench_metrics as metrics
from align.evaluation.files import read_places

COLUMNS = ("context", "input", "answers")
PREDICTION_COLUMNS = ("pred", "answers")

Places = list[tuple[str, dict[str, Any]]]


def task_of(path: str) -> str:
    """A LongBench file is named after its task."""
    return Path(path).name.split(".")[0]


def plain_task(task: str) -> str:
    """LongBench-E has the tasks of LongBench."""
    return task.removesuffix("_e")


def rows_to_ask(path: str, limit: int | None) -> Places:
    """Rows with their places; `input` is a text, empty where it is null.

    Raises:
        UserError: a row that cannot be asked or scored, by its line.
    """
    rows = read_places(path, COLUMNS)[:limit]
    for where, row in rows:
        if not isinstance(row["context"], str):
            raise UserError(f"{where}: `context` has to be a text.")
        if not isinstance(row["input"], str | None):
            raise UserError(f"{where}: `input` has to be a text, or null where there is none.")
        row["input"] = row["input"] or ""
        _check(task_of(path), row, where)
    return rows


def rows_to_score(path: str, limit: int | None) -> Places:
    """Predictions made elsewhere with their places.

    Raises:
        UserError: a row that cannot be scored, by its line.
    """
    rows = read_places(path, PREDICTION_COLUMNS)[:limit]
    for where, row in rows:
        if not isinstance(row["pred"], str):
            raise UserError(f"{where}: `pred` has to be a text.")
        _check(task_of(path), row, where)
    return rows


def _check(task: str, row: Mapping[str, Any], where: str) -> None:
    answers = row["answers"]
    if (
        not isinstance(answers, list)
        or not answers
        or not all(isinstance(text, str | int) for text in answers)
    ):
        raise UserError(f"{where}: `answers` has to be a list of texts, one at least.")
    place = metrics.PLACES.get(plain_task(task))
    if place is not None and not all(re.search(place, str(text)) for text in answers):
        shape = place.replace(r"(\d+)", "N")
        raise UserError(f"{where}: an answer has to name `{shape}`.")
    _check_classes(task, row, where)
    length = row.get("length")
    counts = isinstance(length, int | float) and not isinstance(length, bool) and 0 <= length < 2**53
    if length is not None and not counts:
        raise UserError(f"{where}: `length` has to be a number of words from 0 on, or null.")


def _check_classes(task: str, row: Mapping[str, Any], where: str) -> None:
    if plain_task(task) not in metrics.CLASSES:
        return
    classes = row.get("all_classes")
    if not classes:
        raise UserError(
            f"{where}: `all_classes` is missing, the classes of {task} that a prediction may name; without them "
            "every score would be 0. They are in LongBench's own files."
        )
    if not isinstance(classes, list) or not all(isinstance(name, str) and name for name in classes):
        raise UserError(f"{where}: `all_classes` has to be a list of texts.")
