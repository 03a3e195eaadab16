"""The grid: every arm with every seed in every setting, what it needs, and the commands that it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.miniature.cells import SEEDS, Cell, Place, Step
from benchmarks.miniature.files import write_lines
from benchmarks.windows_protocol import data, smollm2
from benchmarks.windows_protocol.arms import ARMS, SETTINGS, Arm, Overrides

DATA = {"find": data, "smollm2": smollm2}
RECIPES = {
    "find": ("experiment=miniature/find", "method=sft", "data.max_length=512"),
    "smollm2": ("experiment=miniature/qa", "method=lm", "data.chunk_separator=''", "trainer.bf16=true"),
}
ANSWERS = {
    "find": ("+suite.max_new_tokens=3", "generator.batch_tokens=65536", "generator.batch_size=60"),
    "smollm2": ("+suite.max_new_tokens=24", "generator.batch_tokens=24576", "generator.batch_size=15"),
}
TEXT_SHARES = {"plain": 0.0, "knots": 0.8}
# Knots are words that the vocabulary has and this task does not use. Labels would need letters, which it lacks.
MARKS = (
    "pipeline.label_marks=[topic00,topic01]",
    "pipeline.list_marks=[topic02,topic03,topic04]",
    "pipeline.head_mark='topic1{j}'",
    "pipeline.tail_mark='topic2{j}'",
    "pipeline.backtrace=false",
    "pipeline.min_split=32",
)


def grid(seeds: Iterable[int] = SEEDS) -> list[Cell]:
    """Every cell, the cheap setting first, each behind what it needs."""
    seeds = tuple(seeds)
    return [*_cells("find", seeds), *_cells("smollm2", seeds)]


def _cells(part: str, seeds: tuple[int, ...]) -> Iterator[Cell]:
    for name, arm in ARMS[part].items():
        for seed in seeds if drawn(part, name) else (None,):
            needs = () if name == "base" or part == "smollm2" else (cell_id(part, arm.of, seed),)
            yield Cell(part, name, seed, needs, _steps, ("train/checkpoint-*", *_models(part, arm)))


def drawn(part: str, name: str) -> bool:
    """Whether a cell depends on the seed: nothing does in `smollm2` where nothing trains."""
    return part == "find" or ARMS[part][name].rows is not None


def _models(part: str, arm: Arm) -> tuple[str, ...]:
    """A trained model that no other cell reads goes with its cell; those of 0.12M parameters may stay."""
    return ("train/model",) if part == "smollm2" and arm.rows is not None else ()


def cell_id(part: str, name: str, seed: int | None) -> str:
    """`find/yarn/seed1`."""
    return Cell(part, name, seed).id


def train_words(part: str, arm: Arm) -> Overrides:
    """What `align train` is told of a trained arm, but for paths and the seed."""
    stated = window_stated(part) if part == "find" else ()
    return (*RECIPES[part], *arm.model, *arm.train, *stated)


def read_words(part: str, arm: Arm) -> Overrides:
    """What `align evaluate` is told of an arm: a trained model brings what was changed of it in its configuration."""
    model = () if arm.rows is not None else arm.model
    return (*model, *arm.read, *window_stated(part))


def window_stated(part: str) -> Overrides:
    """The window that the configuration states, so that longer prompts are asked."""
    return (f"model.rope.max_position_embeddings={max(SETTINGS[part].lengths)}",)


def _align(command: str, *overrides: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"align.{command}", *overrides)


def _steps(cell: Cell, place: Place) -> list[Step]:
    arm, steps = ARMS[cell.part][cell.name], []
    folder = place.folder(cell.id)
    if cell.part == "find" and cell.name == "base":
        script = ("-m", "benchmarks.windows_protocol.base", str(cell.seed), str(folder / "model"))
        steps.append(Step("train", (sys.executable, *script)))
    elif arm.rows is not None:
        steps += _training(cell, place, arm)
    return [*steps, _reading(cell, place, arm)]


def _start(cell: Cell, place: Place) -> str:
    """The model that a cell starts from, or reads where nothing trains."""
    if cell.part == "smollm2":
        return "embedded"
    arm = ARMS[cell.part][cell.name]
    folder = place.folder(cell_id(cell.part, arm.of, cell.seed))
    trained = ARMS[cell.part][arm.of].rows is not None
    return str(folder / "train" / "model" if trained else folder / "model")


def _training(cell: Cell, place: Place, arm: Arm) -> list[Step]:
    folder, made = place.folder(cell.id), []
    rows = folder / "rows.jsonl"
    prepare: Callable[[], None] = partial(write_rows, cell, rows)
    if arm.rows in TEXT_SHARES:
        texts, rows = rows, folder / "rows" / "train.jsonl"
        made.append(Step("rows", _tied(cell, place, texts, TEXT_SHARES[arm.rows]), prepare))
        prepare = _nothing
    train = _align(
        "train",
        *train_words(cell.part, arm),
        f"model.path={_start(cell, place)}",
        f"data.path={rows}",
        f"seed={cell.seed}",
        f"output={folder / 'train'}",
    )
    return [*made, Step("train", train, prepare)]


def _nothing() -> None:
    """The step before has made the rows."""


def _tied(cell: Cell, place: Place, texts: Path, share: float) -> tuple[str, ...]:
    """Documents into rows as long as the target, packed one behind the other or knotted."""
    return _align(
        "synthesize",
        "pipeline=utk",
        f"pipeline.documents={texts}",
        f"pipeline.row_tokens={SETTINGS[cell.part].long}",
        f"pipeline.share={share}",
        *MARKS,
        f"model.path={_start(cell, place)}",
        f"seed={cell.seed}",
        f"output={place.folder(cell.id) / 'rows'}",
    )


def _reading(cell: Cell, place: Place, arm: Arm) -> Step:
    folder = place.folder(cell.id)
    trained = arm.rows is not None
    model = str(folder / "train" / "model") if trained else _start(cell, place)
    command = _align(
        "evaluate",
        "~suite",
        "+suite._target_=benchmarks.windows_protocol.reading.Reading",
        f"+suite.questions={place.asked(cell)}",
        f"+suite.documents={read_documents(cell, place)}",
        f"+suite.edges={list(SETTINGS[cell.part].edges)}".replace(" ", ""),
        "allow_targets=[benchmarks]",
        *ANSWERS[cell.part],
        *read_words(cell.part, arm),
        f"model.path={model}",
        "model.dtype=float32",
        f"output={folder / 'evaluate'}",
    )
    return Step("evaluate", command, partial(write_questions, cell, place))


# ---- files


def read_documents(cell: Cell, place: Place) -> Path:
    """What perplexity is measured on."""
    return place.work / "data" / f"{cell.part}-documents-{place.split}.jsonl"


def write_questions(cell: Cell, place: Place) -> None:
    """Questions and documents, once for all arms."""
    made: Any = DATA[cell.part]
    for path, rows in ((place.asked(cell), made.questions), (read_documents(cell, place), made.documents)):
        if not path.is_file():
            write_lines(path, rows(place.split))


def write_rows(cell: Cell, path: Path) -> None:
    """The rows, or documents, of a trained arm; alike for all arms of a seed that train on the same."""
    write_lines(path, made_rows(cell))


def made_rows(cell: Cell) -> Iterator[Mapping[str, Any]]:
    """See `write_rows`."""
    arm, seed = ARMS[cell.part][cell.name], cell.seed or 0
    if cell.part == "smollm2":
        return smollm2.rows(seed)
    if arm.rows in TEXT_SHARES:
        return data.texts(seed)
    return data.rows(seed, str(arm.rows))
