"""The groups `data` and `positions` as types; hydra_conf/data/default.yaml comments every key."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from align.core.config import check_choice
from align.core.errors import UserError
from align.data.layout_columns import check_columns
from align.data.template_file import check_template_kwargs, read_template

if TYPE_CHECKING:
    from align.data.positions import Placement

CUTS = ("middle", "end", "start")
CHATS = ("auto", "always", "never")
THINKING = ("keep", "close", "drop")
BAD_ROWS = ("stop", "drop")  # of `data.bad_rows`
REDRAWS = ("never", "epoch")  # of `positions.redraw`


@dataclass(frozen=True)
class MixedSettings:
    """An entry of `data.mix`: rows from elsewhere, with either of `ratio` and `share`.

    Attributes:
        path: of the rows.
        ratio: how many of them for each training row of `data.path`.
        columns: other names of their columns, as `data.columns`.
        share: of the tokens of the whole mixture; the shares of all entries sum to less than 1.
    """

    path: str
    ratio: float | None = field(default=None, metadata={"example": True})
    columns: dict[str, str | None] | None = None
    share: float | None = None


@dataclass(frozen=True)
class DataSettings:
    """Group `data`; see hydra_conf/data/default.yaml.

    Raises:
        UserError: a value outside its range, naming the key.
    """

    path: str | None = None
    eval_path: str | None = None
    eval_size: float = 0.1
    limit: int | None = None
    columns: dict[str, str | None] | None = None
    numbers: dict[str, str] | None = None
    bad_rows: str = "stop"
    bad_rows_limit: float | None = 0.1
    template: str = "{context}\n\n{question}"
    chunk_separator: str = "\n\n"
    system: str | None = None
    chat: str = "auto"
    chat_template: str | None = None
    template_kwargs: dict[str, Any] | None = None
    thinking: str = "keep"
    date: str | None = None
    max_length: int | None = None
    cut: str = "middle"
    keep_tail: int = 128
    tokens_per_row: int | None = None
    num_proc: int = 1
    order: dict[str, Any] | None = None
    mix: list[MixedSettings] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_choice("data.cut", self.cut, CUTS)
        check_choice("data.chat", self.chat, CHATS)
        check_choice("data.thinking", self.thinking, THINKING)
        check_template_kwargs("data.template_kwargs", self.template_kwargs)
        self.today()
        self.template_source()
        check_choice("data.bad_rows", self.bad_rows, BAD_ROWS)
        check_columns(self.columns, "data.columns")
        for key in ("limit", "max_length", "tokens_per_row", "num_proc"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"data.{key}={value} is too small: give a number from 1 on.")
        for key in ("eval_size", "bad_rows_limit", "keep_tail"):
            value = getattr(self, key)
            if value is not None and not value >= 0:
                raise UserError(f"data.{key}={value} is negative: give 0 or more.")
        for key in ("eval_size", "bad_rows_limit"):
            value = getattr(self, key)
            if value is not None and value > 1 and not float(value).is_integer():  # infinity is none either
                raise UserError(f"data.{key}={value} is neither a share below 1 nor a whole number of rows.")
        _check_mix(self.mix)
        for place in ("{context}", "{question}"):
            if self.template.count(place) != 1:
                raise UserError(f"data.template={self.template!r} must contain {place} exactly once.")

    def today(self) -> datetime.date:
        """`data.date`, which chat templates write that ask for the date; null is the day of the call."""
        try:
            return datetime.date.today() if self.date is None else datetime.date.fromisoformat(self.date)
        except ValueError:
            raise UserError(f"data.date={self.date} is no date: write it like 2026-01-31.") from None

    def template_source(self) -> str | None:
        """The text of the file `data.chat_template`; None leaves the tokenizer's template.

        Raises:
            UserError: the file cannot be read.
        """
        return None if self.chat_template is None else read_template("data.chat_template", self.chat_template)

    def of_template(self) -> tuple[str, ...]:
        """The keys that are set and change nothing but what the chat template writes."""
        values = {
            "data.system": self.system,
            "data.chat_template": self.chat_template,
            "data.template_kwargs": self.template_kwargs,
            "data.thinking": None if self.thinking == "keep" else self.thinking,
        }
        return tuple(key for key, value in values.items() if value)


def _check_mix(mix: Sequence[MixedSettings]) -> None:
    """Refuses entries of `data.mix` that say no proportion, two of them, or one that cannot be."""
    for i, entry in enumerate(mix):
        check_columns(entry.columns, f"data.mix[{i}].columns")
        if (entry.ratio is None) == (entry.share is None):
            raise UserError(
                f"data.mix[{i}] ({entry.path}) takes either a ratio, rows for each training row of data.path, or a "
                f"share of all tokens, and has {'neither' if entry.ratio is None else 'both'}."
            )
        if entry.ratio is not None and not 0 < entry.ratio < math.inf:
            raise UserError(
                f"data.mix[{i}].ratio={entry.ratio:g} must be a number above 0: it is the number of rows of "
                f"{entry.path} for each training row of data.path."
            )
        if entry.share is not None and not 0 < entry.share < 1:
            raise UserError(
                f"data.mix[{i}].share={entry.share:g} must lie between 0 and 1: it is the part of all tokens that "
                f"{entry.path} gives; data.path gives the rest."
            )
    shares = [entry.share for entry in mix if entry.share is not None]
    if shares and len(shares) < len(mix):
        raise UserError(
            "data.mix has entries with a ratio and others with a share: give all of them the same."
        )
    if math.fsum(shares) >= 1 - 1e-9:
        raise UserError(
            f"the shares of data.mix sum to {math.fsum(shares):g} and leave nothing to data.path: keep them below 1."
        )


@dataclass(frozen=True)
class PositionSettings:
    """Group `positions`, as `position_settings.read_positions` reads it; see hydra_conf/positions/logo.yaml.

    Attributes:
        placement: says where the tokens of each row stand; None leaves them at 0, 1, 2, …
        chunk_tokens: of a chunk where a row's context does not come in chunks.
        redraw: `never`: a row keeps the positions that are drawn when it is read; `epoch`: training rows are drawn anew
            for each epoch, from seed, row and epoch alone.

    Raises:
        UserError: a value outside its range, naming the key.
    """

    placement: Placement | None = None
    chunk_tokens: int = 512
    redraw: str = "never"

    def __post_init__(self) -> None:
        check_choice("positions.redraw", self.redraw, REDRAWS)
        if self.chunk_tokens < 1:
            raise UserError(
                f"positions.chunk_tokens={self.chunk_tokens} is too small: give a number from 1 on."
            )
        if self.placement is not None:
            self.placement.check()

    @property
    def redrawn(self) -> bool:
        """Whether training rows have other positions in each epoch."""
        return self.placement is not None and self.redraw == "epoch"
