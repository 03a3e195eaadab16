"""Which rows are kept, and why: after any pipeline, or on rows that exist (`pipeline=rows`)."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from align.core.config import check_choice
from align.core.errors import UserError
from align.core.files import writing_atomically
from align.data.settings import DataSettings
from align.data.sources import RawRow, open_sources, read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.data.examples import Example, TokenizedExample
    from align.generation.stage import Workspace

SCORES = "selection.jsonl"  # every row's score, kept or not
LARGEST = sys.float_info.max  # of a margin: JSON has 1e400 too
LENGTHS = ("prompt", "chosen", "row")


@dataclass(frozen=True)
class Score:
    """One row's score.

    Attributes:
        value: higher is kept first; None where the row is left out whatever its rank.
        why: what the score is, in words.
        details: its parts.
        edit: makes of the row what is written in its place, where it is kept; None writes it as it is.
    """

    value: float | None
    why: str
    details: dict[str, float] | None = None
    edit: Callable[[dict[str, Any]], dict[str, Any]] | None = None


class Selector(Protocol):
    """What the group `select` instantiates."""

    @property
    def name(self) -> str | None:
        """Recorded in every row; None keeps all rows as they are."""

    @property
    def keep(self) -> float | None:
        """Rows to keep: a whole number (1 is one row), else a share up to 1.0; None keeps all that have a score."""

    def check(self) -> None:
        """Raises UserError for a value out of range; loads nothing."""

    def scores(self, path: Path, workspace: Workspace) -> Sequence[Score]:
        """The score of every row of a JSON Lines file, in order."""


@dataclass(frozen=True)
class KeepAll:
    """`select=none`."""

    name: None = None
    keep: None = None

    def check(self) -> None:
        """Nothing can be out of range."""

    def scores(self, path: Path, workspace: Workspace) -> Sequence[Score]:
        """One and the same for every row."""
        return [Score(0.0, "all rows are kept") for _ in read_rows(open_sources(str(path)).train)]


@dataclass(frozen=True)
class ByLength:
    """`select=length`: rows within bounds, the longest first; hydra_conf/select/length.yaml.

    Attributes:
        of: `prompt`, `chosen` answer, or `row` (the prompt and its longest answer).
        least: tokens, at least.
        most: and at most; None is unlimited.
        keep: see `Selector`.
    """

    of: str = "row"
    least: int = 0
    most: int | None = None
    keep: float | None = None

    @property
    def name(self) -> str:
        """Name and parameters."""
        return f"length(of={self.of}, least={self.least}, most={self.most})"

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        check_choice("select.of", self.of, LENGTHS)
        check_keep(self.keep)
        if self.least < 0 or (self.most is not None and self.most < self.least):
            raise UserError(
                f"select.least={self.least} and select.most={self.most} leave no length between them."
            )

    def scores(self, path: Path, workspace: Workspace) -> list[Score]:
        """Tokens, as the model will see them."""
        return [self._score(self._length(example)) for _, example in tokenized(path, workspace.tokenizer)]

    def _length(self, example: TokenizedExample) -> int:
        prompt = len(example.prompt_ids)
        chosen = len(example.answers[0].input_ids)
        return {"prompt": prompt, "chosen": chosen, "row": prompt + example.longest_answer}[self.of]

    def _score(self, length: int) -> Score:
        within = self.least <= length and (self.most is None or length <= self.most)
        most = "any number" if self.most is None else str(self.most)
        where = f"{'within' if within else 'outside'} {self.least} … {most}"
        return Score(float(length) if within else None, f"{self.of} of {length} tokens, {where}")


@dataclass(frozen=True)
class ByMargin:
    """`select=margin`: rows whose chosen answer was scored clearly better, the clearest first.

    Attributes:
        least: margin, at least.
        keep: see `Selector`.
    """

    least: float = 0.0
    keep: float | None = None

    @property
    def name(self) -> str:
        """Name and parameters."""
        return f"margin(least={self.least:g})"

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        check_keep(self.keep)
        if math.isnan(self.least):
            raise UserError(f"select.least={self.least} must be a number.")

    def scores(self, path: Path, workspace: Workspace) -> list[Score]:
        """The column `margin`, which pipelines that score answers write.

        Raises:
            UserError: a row has none.
        """
        return [self._score(row) for row in read_rows(open_sources(str(path)).train)]

    def _score(self, row: RawRow) -> Score:
        margin = row.values.get("margin")
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not abs(margin) <= LARGEST:
            raise UserError(
                f"{row.source}: select=margin needs a column margin with a finite number: choose pipeline=longwriter, "
                "whose answers are scored, or another select."
            )
        enough = margin >= self.least
        sign = "≥" if enough else "<"
        return Score(float(margin) if enough else None, f"score margin {margin:.2f} {sign} {self.least:g}")


def check_keep(keep: float | None) -> None:
    """Refuses a share or number of rows to keep that keeps none, or no whole number of rows."""
    if keep is not None and (math.isnan(keep) or keep <= 0 or (keep > 1 and keep != int(keep))):
        raise UserError(
            f"select.keep={keep} must be a share below 1 or a whole number of rows; null keeps all."
        )


def read_texts(path: Path) -> Iterator[tuple[RawRow, Example]]:
    """The rows as text, in order.

    Raises:
        UserError: a row cannot be used, or is pre-tokenised.
    """
    for row in read_rows(open_sources(str(path)).train):
        yield row, _text_of(row)


def _text_of(row: RawRow) -> Example:
    from align.data.formats import parse_row
    from align.data.released import is_released

    if is_released(row.values):
        raise UserError(f"{row.source}: a pre-tokenised row cannot be selected: give rows of text.")
    return parse_row(row).example


def tokenized(path: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[RawRow, TokenizedExample]]:
    """The rows as a model will see them under the default data settings, with nothing cut.

    Args:
        path: of the rows.
        tokenizer: of the model that will see them.

    Raises:
        UserError: a row cannot be used, or is pre-tokenised.
    """
    from align.data.columns import Columns
    from align.data.piece_rows import is_pieces, piece_row, read_pieces
    from align.data.tokens import ExampleTokenizer

    tokenize = ExampleTokenizer(tokenizer, DataSettings(), chunk_tokens=512)
    for row in read_rows(open_sources(str(path)).train):
        if is_pieces(row.values):
            pieces, document = read_pieces(Columns(row.source, row.values))
            yield row, piece_row(row.source, pieces, tokenize, document=document)
        else:
            yield row, tokenize(_text_of(row))


def kept_places(scores: Sequence[Score], keep: float | None) -> dict[int, int]:
    """Place of each kept row → its rank from 1, the highest score first, earlier rows first among equals."""
    usable = [i for i, score in enumerate(scores) if score.value is not None]
    ranked = sorted(usable, key=lambda i: (-(scores[i].value or 0.0), i))
    if keep is None:
        wanted = len(ranked)
    elif isinstance(keep, int) or keep > 1:
        wanted = int(keep)
    else:
        wanted = max(1, round(keep * len(scores)))  # a share is one of all rows
    return {place: rank for rank, place in enumerate(ranked[:wanted], start=1)}


def select_rows(selector: Selector, source: Path, target: Path, workspace: Workspace) -> tuple[int, int]:
    """Writes the kept rows, in their order, each with `selection`; and `selection.jsonl`, every row's score.

    Returns:
        Rows kept and rows left out.
    """
    scores = selector.scores(source, workspace)
    kept = kept_places(scores, selector.keep)
    with writing_atomically(target.with_name(SCORES)) as file:
        for place, score in enumerate(scores):
            entry = _entry(selector, score, kept.get(place), len(scores))
            whole = {"row": place + 1, "kept": place in kept, **entry}
            file.write(f"{json.dumps(whole, ensure_ascii=False)}\n")
    with (
        writing_atomically(target) as file,
        source.open(encoding="utf-8", errors="surrogatepass") as lines,
    ):
        for place, line in enumerate(line for line in lines if line.strip()):
            if place in kept:
                edit, row = scores[place].edit, json.loads(line)
                row = row if edit is None else edit(row)
                row["selection"] = _entry(selector, scores[place], kept[place], len(scores))
                file.write(f"{json.dumps(row, ensure_ascii=False)}\n")
    return len(kept), len(scores) - len(kept)


def _entry(selector: Selector, score: Score, rank: int | None, count: int) -> dict[str, Any]:
    place = "" if rank is None else f"; rank {rank} of {count}"
    entry = {"by": selector.name, "score": score.value, "rank": rank, "why": f"{score.why}{place}"}
    return entry | ({"details": score.details} if score.details else {})
