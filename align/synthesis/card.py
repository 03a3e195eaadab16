"""The data card: README.md beside the rows, with counts, settings, samples to read and two histograms."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from align.core.files import write_atomically
from align.synthesis.selection.select import tokenized

if TYPE_CHECKING:
    from align.data.examples import TokenizedExample
    from align.generation.stage import Workspace
    from align.synthesis.pipeline import Summary

CARD = "README.md"
LENGTHS, MARGINS = "lengths.png", "margins.png"
SAMPLES = 3  # rows shown
CHARACTERS = 600  # of each text shown, half from either end
FINEST = 1e-9  # of the largest margin, that bars tell apart
LARGEST_DRAWN = 1e12  # margin that is shown as it is
PARTS = ("prompt", "chosen", "rejected")
LAID_OUT = ("row", "scored")  # parts of rows of pieces


@dataclass
class CardFigures:
    """What the histograms show, over all rows.

    Attributes:
        lengths: part → tokens, one entry a row; `rejected` one an answer; of rows of pieces `row` and `scored`.
        scores: the score of the chosen answer minus that of the rejected one, of rows that have a finite `margin`.
        differences: the same of their tokens, of rows with rejected answers.
    """

    lengths: dict[str, list[int]] = field(default_factory=lambda: {part: [] for part in (*PARTS, *LAID_OUT)})
    scores: list[float] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)

    @property
    def shown(self) -> tuple[str, ...]:
        """The parts that have a histogram."""
        return LAID_OUT if self.lengths["row"] else PARTS

    @property
    def of(self) -> str:
        """What the margins shown are of: `score`, where any answers were scored, else `length`."""
        return "score" if self.scores else "length"

    @property
    def margins(self) -> list[float]:
        """The one kind that is shown: scores and tokens do not go into one histogram."""
        return self.scores or self.differences


def write_card(summary: Summary, config: DictConfig, workspace: Workspace) -> Path:
    """Writes the card and its pictures beside the rows; the same rows give the same card."""
    folder = summary.path.parent
    samples: list[Mapping[str, Any]] = []
    figures = CardFigures()
    places = _sample_places(summary.rows)
    for place, (row, example) in enumerate(
        tokenized(summary.path, workspace.tokenizer) if summary.rows else ()
    ):
        _measure(row.values, example, figures)
        if place in places:
            samples.append(row.values)
    pictures = []
    if summary.rows:
        draw_lengths(figures, folder / LENGTHS)
        pictures.append(("Tokens of the rows", LENGTHS))
    if figures.margins:
        draw_margins(figures, folder / MARGINS)
        pictures.append((f"Margins ({_margin_label(figures)})", MARGINS))
    parts = [
        *_head(summary, workspace),
        *_table(summary, figures),
        *(line for title, name in pictures for line in (f"![{title}]({name})", "")),
        *_samples(samples, summary.rows),
        *_settings(config),
    ]
    write_atomically(folder / CARD, "\n".join(parts) + "\n")
    return folder / CARD


def _sample_places(rows: int) -> set[int]:
    """The first row, the middle one, the last."""
    return {i * (rows - 1) // (SAMPLES - 1) for i in range(SAMPLES)} if rows else set()


def _measure(values: Mapping[str, Any], example: TokenizedExample, figures: CardFigures) -> None:
    if example.pieces:
        figures.lengths["row"].append(example.num_tokens)
        figures.lengths["scored"].append(int(example.answers[0].scored.sum()))
        return
    chosen, *rejected = (int(answer.scored.sum()) for answer in example.answers)
    figures.lengths["prompt"].append(len(example.prompt_ids))
    figures.lengths["chosen"].append(chosen)
    figures.lengths["rejected"].extend(rejected)
    margin = values.get("margin")
    if isinstance(margin, int | float) and not isinstance(margin, bool) and _is_finite(margin):
        figures.scores.append(float(margin))
    if rejected:
        figures.differences.append(chosen - sum(rejected) / len(rejected))


def _is_finite(number: float) -> bool:
    """Whether it can be drawn: JSON has 1e400, and integers of any size."""
    return abs(number) <= sys.float_info.max


def _margin_label(figures: CardFigures) -> str:
    if figures.of == "score":
        return "score of the chosen answer minus that of the rejected one"
    return "tokens of the chosen answer minus those of the rejected ones; these answers have no scores"


def draw_lengths(figures: CardFigures, path: Path) -> None:
    """One histogram a part of the rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for axes, part in zip(figure.subplots(1, len(figures.shown)), figures.shown, strict=True):
        values = figures.lengths[part]
        if values:
            axes.hist(values, bins=min(40, max(5, len(set(values)))), color="#1f5a92")
        axes.set_title(f"{part}: {len(values)}", loc="left", fontsize=11)
        axes.set_xlabel("tokens")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def draw_margins(figures: CardFigures, path: Path) -> None:
    """One histogram, with a line at 0."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    unit = _unit(figures.margins)
    values = [margin / unit for margin in figures.margins]
    low, high = min(values), max(values)
    if high - low < FINEST * max(1.0, -low, high):  # all one, as far as bars can tell them apart
        low, high = low - 0.5, high + 0.5
    axes.hist(values, bins=min(40, max(5, len(set(values)))), range=(low, high), color="#1f5a92")
    axes.axvline(0, color="#c8502d", linewidth=1)
    axes.set_title("chosen minus rejected", loc="left", fontsize=11)
    axes.set_xlabel(
        ("score" if figures.of == "score" else "tokens") + ("" if unit == 1 else f" / {unit:.3g}")
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _unit(margins: Sequence[float]) -> float:
    """What margins are shown in: 1, or the largest of those that are too large for a histogram's sums."""
    largest = max(map(abs, margins))
    return 1.0 if largest <= LARGEST_DRAWN else largest


def _head(summary: Summary, workspace: Workspace) -> Iterator[str]:
    yield f"# {summary.rows:,} rows"
    yield ""
    yield (
        f"Made by `align synthesize` with {workspace.generator.name}, seed {workspace.seed}. "
        f"The rows are in [`{summary.path.name}`]({summary.path.name})."
    )
    yield ""


def _table(summary: Summary, figures: CardFigures) -> Iterator[str]:
    yield "| what | number |"
    yield "|---|---|"
    for name, number in summary.counts.items():
        yield f"| {name} | {number:,} |"
    for name, number in summary.dropped.items():
        yield f"| dropped: {name} | {number:,} |"
    yield f"| **rows** | **{summary.rows:,}** |"
    for part, values in figures.lengths.items():
        if values:
            middle = sorted(values)[len(values) // 2]
            yield f"| {part}: tokens, least / median / most | {min(values):,} / {middle:,} / {max(values):,} |"
    if figures.scores and len(figures.scores) < summary.rows:
        yield f"| rows without a finite margin, not in the histogram | {summary.rows - len(figures.scores):,} |"
    yield ""


def _samples(samples: Sequence[Mapping[str, Any]], rows: int) -> Iterator[str]:
    if samples:
        yield "## Samples"
        yield ""
        yield f"{len(samples)} of {rows:,} rows: the first, the middle one, the last. Long texts are cut in the middle."
        yield ""
    for row in samples:
        yield f"### {_inline(str(row.get('id', 'row')))}"
        yield ""
        for label, text in _texts(row):
            yield f"**{label}**"
            yield ""
            yield _fenced(_cut(text))
            yield ""
        if isinstance(row.get("selection"), dict):
            yield f"Kept: {_inline(str(row['selection'].get('why')))}"
            yield ""


def _texts(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a person reads of a row, whatever its layout, with a label each."""
    if "pieces" in row:
        yield f"{len(row['pieces'])} pieces", "".join(map(piece_text, row["pieces"]))
        return
    context = row.get("context")
    if context is not None:
        chunks = [context] if isinstance(context, str) else list(context)
        yield f"context, {len(chunks)} chunks", "\n\n".join(map(str, chunks))
    turns = row.get("questions")
    if isinstance(turns, list):
        for i, question in enumerate(turns):
            yield f"question {i + 1}", str(question)
            yield f"chosen {i + 1}", _plain(_at(row.get("chosens"), i))
            yield from _rejected(_at(row.get("rejecteds"), i), f"rejected {i + 1}")
        return
    for column in ("prompt", "question", "messages", "chosen", "completion"):
        if row.get(column) is not None:
            yield column, _plain(row[column])
    yield from _rejected(row.get("rejected"), "rejected")


def piece_text(piece: Mapping[str, Any]) -> str:
    """A piece as a person reads it."""
    return str(piece.get("token") or piece.get("text") or piece.get("ids"))


def _at(values: Any, place: int) -> Any:
    """An entry of a list; None where there is no list, or it is shorter."""
    return values[place] if isinstance(values, list) and place < len(values) else None


def _rejected(value: Any, label: str) -> Iterator[tuple[str, str]]:
    """One answer, a list of answers, or an answer as messages."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        for j, item in enumerate(value):
            yield f"{label}.{j + 1}", item
    elif value is not None:
        yield label, _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return "\n\n".join(f"[{item.get('role', '?')}] {item.get('content', '')}" for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _settings(config: DictConfig) -> Iterator[str]:
    yield "## Settings"
    yield ""
    yield _fenced(OmegaConf.to_yaml(config, resolve=True).strip(), "yaml")


def _cut(text: str) -> str:
    half = CHARACTERS // 2
    return text if len(text) <= CHARACTERS else f"{text[:half]}\n[…]\n{text[-half:]}"


def _fenced(text: str, language: str = "") -> str:
    """A block that no back quote inside can end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


def _inline(text: str) -> str:
    """Text that stays text in a line of Markdown."""
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|")
