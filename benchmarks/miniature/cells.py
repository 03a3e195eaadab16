"""The grid: every cell, what it needs, and the commands that it runs; the values are PROTOCOL.md's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.miniature import find, questions, write
from benchmarks.miniature.files import read_lines, within_budget, write_lines
from benchmarks.miniature.methods import ABLATIONS, BUDGET, POSITIONS, methods_of

SEEDS = (1, 2)


@dataclass(frozen=True)
class Place:
    """Where everything lies.

    Attributes:
        work: folder of data, runs and models.
        data: the folder `ALIGN_DATA`.
        split: `held_out`, or `dev` for trying settings.
        groups: of held-out questions of part `qa`, 24 each.
    """

    work: Path
    data: Path
    split: str = "held_out"
    groups: int = questions.GROUPS

    def folder(self, cell: str) -> Path:
        """Of a cell's runs."""
        return self.work / "cells" / cell.replace("/", "-")

    def asked(self, cell: Cell) -> Path:
        """What the cell is asked."""
        return self.work / "data" / f"{cell.asks or cell.part}-{self.split}.jsonl"


@dataclass(frozen=True)
class Step:
    """One process of a cell.

    Attributes:
        name: unique in the cell.
        command: what is run, from the root of the checkout.
        prepare: writes the files that the command reads; the same whenever it is called.
    """

    name: str
    command: tuple[str, ...]
    prepare: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Cell:
    """One cell of the grid.

    Attributes:
        part: `qa`, `find` or `write`.
        name: the method; `rows` and `pairs` only make data.
        seed: None where nothing is drawn.
        needs: cells that have to be finished.
        steps: makes the commands.
        temporary: folders of the cell that go once it is finished.
        asks: file of its questions, where it is not the part's.
    """

    part: str
    name: str
    seed: int | None
    needs: tuple[str, ...] = ()
    steps: Callable[[Cell, Place], list[Step]] = field(default=lambda cell, place: [], repr=False)
    temporary: tuple[str, ...] = ()
    asks: str | None = None

    @property
    def id(self) -> str:
        """`find/logo/seed1`."""
        return "/".join((self.part, self.name, *([] if self.seed is None else [f"seed{self.seed}"])))

    @property
    def scored(self) -> bool:
        """Whether it ends with answers to the held-out questions."""
        return self.name not in ("rows", "pairs")


def grid(seeds: Iterable[int] = SEEDS) -> list[Cell]:
    """Every cell, the cheap parts first, each behind what it needs."""
    return [*_find_cells(seeds), *_write_cells(seeds), *_qa_cells(seeds)]


def _qa_cells(seeds: Iterable[int]) -> Iterator[Cell]:
    yield Cell("qa", "base", None, steps=_qa_base)
    yield Cell("qa", "base_diluted", None, steps=_qa_base, asks="qa_diluted")
    yield Cell("qa", "rows", None, steps=_qa_rows)
    for seed in seeds:
        for name in methods_of("qa"):
            yield Cell("qa", name, seed, ("qa/rows",), _qa_method, ("train/model", "train/checkpoint-*"))


def _find_cells(seeds: Iterable[int]) -> Iterator[Cell]:
    for seed in seeds:
        base = Cell("find", "base", seed, steps=_base)
        yield base
        for name in methods_of("find"):
            yield Cell("find", name, seed, (base.id,), _find_method, ("train/checkpoint-*",))


def _write_cells(seeds: Iterable[int]) -> Iterator[Cell]:
    for seed in seeds:
        base = Cell("write", "base", seed, steps=_base)
        sft = Cell("write", "sft", seed, (base.id,), _write_sft, ("train/checkpoint-*",))
        pairs = Cell("write", "pairs", seed, (sft.id,), _write_pairs)
        yield from (base, sft, pairs)
        for name in ("dpo", *ABLATIONS["write"]):
            yield Cell("write", name, seed, (pairs.id, sft.id), _write_dpo, ("train/checkpoint-*",))


# ---- commands


def _align(command: str, *overrides: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"align.{command}", *overrides)


def _train(cell: Cell, place: Place, rows: Path, *overrides: str) -> tuple[str, ...]:
    return _align(
        "train",
        *overrides,
        f"data.path={rows}",
        f"seed={cell.seed}",
        f"output={place.folder(cell.id) / 'train'}",
    )


def _ask(cell: Cell, place: Place, model: Path | str, *overrides: str) -> Step:
    """The questions of the part: 24 new tokens for a sentence, 3 for a word and its end."""
    asked = place.asked(cell)
    suite = ("suite=longwrite",) if cell.part == "write" else ("suite=questions", "suite.counted=whole")
    command = _align(
        "evaluate",
        *suite,
        f"suite.path={asked}",
        *overrides,
        f"model.path={model}",
        "model.dtype=float32",
        f"output={place.folder(cell.id) / 'evaluate'}",
    )
    return Step("evaluate", command, partial(write_questions, cell, place))


ASK = {
    "qa": ("suite.max_new_tokens=24", "generator.batch_tokens=36864", "generator.batch_size=24"),
    "find": ("suite.max_new_tokens=3", "generator.batch_tokens=65536", "generator.batch_size=60"),
    "write": ("suite.max_new_tokens=300", "generator.batch_tokens=65536", "generator.batch_size=50"),
}


def _base(cell: Cell, place: Place) -> list[Step]:
    model = place.folder(cell.id) / "model"
    command = (sys.executable, "-m", "benchmarks.miniature.tiny", cell.part, str(cell.seed), str(model))
    return [Step("train", command), _ask(cell, place, model, *ASK[cell.part])]


def _find_method(cell: Cell, place: Place) -> list[Step]:
    base = place.folder(f"find/base/seed{cell.seed}") / "model"
    rows = place.folder(cell.id) / "rows.jsonl"
    train = _train(cell, place, rows, "experiment=miniature/find", *_method(cell), f"model.path={base}")
    model = place.folder(cell.id) / "train" / "model"
    made = find.rows(cell.seed or 0)
    return [
        Step("train", train, partial(write_method_rows, made, cell, rows)),
        _ask(cell, place, model, *ASK["find"]),
    ]


def _qa_base(cell: Cell, place: Place) -> list[Step]:
    return [_ask(cell, place, "embedded", *ASK["qa"])]


def _qa_rows(cell: Cell, place: Place) -> list[Step]:
    sources = questions.SOURCES if place.split == "held_out" else 60
    command = _align(
        "synthesize",
        "~pipeline",
        "+pipeline._target_=benchmarks.miniature.rows.QuestionRows",
        f"+pipeline.data={place.data}",
        *(f"+pipeline.sources={sources}", f"+pipeline.groups={place.groups}"),
        "allow_targets=[benchmarks]",
        "deduplicate=none",
        "model.dtype=float32",
        "generator.batch_size=24",
        f"output={place.folder(cell.id) / 'rows'}",
    )
    return [Step("rows", command)]


def _qa_method(cell: Cell, place: Place) -> list[Step]:
    made = place.folder("qa/rows") / "rows" / "train.jsonl"
    rows = place.folder(cell.id) / "rows.jsonl"
    cache = f"reference.cache={place.work / 'reference'}"
    train = _train(cell, place, rows, "experiment=miniature/qa", *_method(cell), cache)
    model = place.folder(cell.id) / "train" / "model"

    def prepare() -> None:
        write_method_rows(read_lines(made), cell, rows)

    return [Step("train", train, prepare), _ask(cell, place, model, *ASK["qa"])]


def _method(cell: Cell) -> tuple[str, ...]:
    overrides, _ = methods_of(cell.part)[cell.name]
    return (*overrides, *(POSITIONS[cell.part] if cell.name.endswith("_positions") else ()))


def _write_sft(cell: Cell, place: Place) -> list[Step]:
    base = place.folder(f"write/base/seed{cell.seed}") / "model"
    rows = place.folder(cell.id) / "rows.jsonl"
    train = _train(cell, place, rows, "experiment=miniature/write_sft", f"model.path={base}")
    model = place.folder(cell.id) / "train" / "model"

    def prepare() -> None:
        write_lines(rows, write.sft_rows(cell.seed or 0))

    return [Step("train", train, prepare), _ask(cell, place, model, *ASK["write"])]


def _write_pairs(cell: Cell, place: Place) -> list[Step]:
    model = place.folder(f"write/sft/seed{cell.seed}") / "train" / "model"
    asked = place.folder(cell.id) / "instructions.jsonl"
    command = _align(
        "synthesize",
        "pipeline=longwriter",
        f"pipeline.instructions={asked}",
        "pipeline.temperature=1.0",
        "pipeline.top_p=1.0",
        "pipeline.max_new_tokens=300",
        "pipeline.length_weight=1.0",
        "deduplicate=none",
        f"model.path={model}",
        "model.dtype=float32",
        "generator.batch_tokens=65536",
        "generator.batch_size=50",
        f"seed={cell.seed}",
        f"output={place.folder(cell.id) / 'rows'}",
    )

    def prepare() -> None:
        write_lines(asked, write.instructions("train"))

    return [Step("pairs", command, prepare)]


def _write_dpo(cell: Cell, place: Place) -> list[Step]:
    sft = place.folder(f"write/sft/seed{cell.seed}") / "train" / "model"
    rows = place.folder(f"write/pairs/seed{cell.seed}") / "rows" / "train.jsonl"
    overrides, _ = ABLATIONS["write"].get(cell.name, ((), None))
    train = _train(cell, place, rows, "experiment=miniature/write_dpo", f"model.path={sft}", *overrides)
    return [Step("train", train), _ask(cell, place, place.folder(cell.id) / "train" / "model", *ASK["write"])]


# ---- files


def write_questions(cell: Cell, place: Place) -> None:
    """What the cell is asked, once for all that are asked the same."""
    path = place.asked(cell)
    if path.is_file():
        return
    if cell.part == "qa":
        split = questions.Split.read(place.data, groups=place.groups)
        groups = split.held_out if place.split == "held_out" else split.dev
        if cell.asks == "qa_diluted":
            rows = questions.diluted_questions(groups, place.data)
        else:
            rows = questions.held_out_questions(groups)
    else:
        rows = find.questions(place.split) if cell.part == "find" else write.instructions(place.split)
    write_lines(path, rows)


def write_method_rows(made: Iterable[Mapping[str, Any]], cell: Cell, path: Path) -> None:
    """The rows that a method trains on: its rejected answers, and as many rows as its budget has room for."""
    write_lines(
        path, within_budget(made, rejected=methods_of(cell.part)[cell.name][1], budget=BUDGET[cell.part])
    )
