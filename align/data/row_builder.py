"""One raw row → what is stored of it: layout, tokens, cut, positions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from align.core.errors import UserError
from align.core.readable import counted
from align.data import faults
from align.data.answer_scores import upside_down
from align.data.columns import Columns
from align.data.examples import TokenizedExample
from align.data.faults import RowError, as_row_error
from align.data.files import RawRow
from align.data.formats import ParsedRow, parse_row
from align.data.numbers import Number, read_numbers, wanted_columns
from align.data.piece_rows import is_pieces, piece_row, read_pieces
from align.data.positions import Drawn, place_row, room_of
from align.data.released import is_released, read_released
from align.data.renaming import NO_RENAMING, Renaming, check_no_media, is_pre_tokenised
from align.data.settings import PositionSettings
from align.data.stored_rows import to_row
from align.data.text_rows import is_text, read_text, text_pieces
from align.data.tokens import ExampleTokenizer
from align.data.unread import stored_names, unread_names
from align.data.vocabulary import check_ids
from align.data.weighing import RowWeights, Weigher


@dataclass(frozen=True)
class Demands:
    """What a method and its model ask of every row.

    Attributes:
        rejected: a rejected answer.
        short: a short context.
        vocabulary: rows of the model's embedding, which token ids must stay below; None where it is not known.
        numbers: what the method reads of it beside its texts.
        unrelated: an answer to another prompt, which `build` puts behind its own.
        weigher: says what the tokens of its answers weigh; None where all weigh 1.
    """

    rejected: bool = False
    short: bool = False
    vocabulary: int | None = None
    numbers: tuple[Number, ...] = ()
    unrelated: bool = False
    weigher: Weigher | None = None

    @property
    def columns(self) -> set[str]:
        """Columns that may be read beside those of a layout."""
        return wanted_columns(self.numbers) | set(self.weigher.reads() if self.weigher else ())


NO_DEMANDS = Demands()


@dataclass(frozen=True)
class RowBuilder:
    """Raw row → the stored columns: layout, tokens, cut, positions; `source` is the place's number, see `Drawn`."""

    tokenize: ExampleTokenizer
    positions: PositionSettings
    seed: int
    demands: Demands
    renaming: Renaming = NO_RENAMING
    source: int = 0

    def __call__(self, row: RawRow) -> list[dict[str, Any]]:
        """The columns of `align.data.stored_rows.FEATURES`: of one row, or of each piece of a document.

        Raises:
            RowError: it cannot be used.
        """
        try:
            return self._build(replace(row, values=self.renaming(row.values)))
        except UserError as error:
            raise as_row_error(error, row.source) from error

    def _build(self, row: RawRow) -> list[dict[str, Any]]:
        dropped = 0
        if is_released(row.values):
            examples = [self._released(row)]
            known = self.demands.columns
            unread = [
                name
                for name in (*row.values, *row.unseen)
                if not is_pre_tokenised(name) and name not in known
            ]
        elif is_text(row.values):
            check_no_media(row)
            columns = Columns(row.source, row.values)
            examples, unread = self._pieces(row, columns), unread_names(columns, row)
        elif is_pieces(row.values):
            columns = Columns(row.source, row.values)
            examples, unread = [self._of_pieces(row, columns)], unread_names(columns, row)
        else:
            check_no_media(row)
            parsed, weights = self._parsed(row)
            example, dropped = self._placed(self.tokenize(parsed.example, weights), row), parsed.dropped
            examples = [replace(example, columns=parsed.numbers)]
            unread = list(parsed.unread)
        if self.demands.short and not examples[0].short:
            raise RowError(
                row.source,
                "the method reads the context made short, which this row does not have: add short_prompt "
                "(short_prompts, one a turn).",
                reason=faults.NO_SHORT,
            )
        names = stored_names(name for name in unread if name not in self.renaming.names())
        scores = upside_down(row.values)
        return [to_row(one, dropped_rejected=dropped, unread=names, scores=scores) for one in examples]

    def _pieces(self, row: RawRow, columns: Columns) -> list[TokenizedExample]:
        """The pieces of a document, which has nothing beside its text."""
        text = read_text(columns, **self._asked_of_documents(columns))
        return [self._placed(one, row) for one in text_pieces(row.source, text, self.tokenize)]

    def _of_pieces(self, row: RawRow, columns: Columns) -> TokenizedExample:
        """A row of pieces, which has nothing beside them."""
        pieces, document = read_pieces(columns, **self._asked_of_documents(columns))
        return self._placed(piece_row(row.source, pieces, self.tokenize, document=document), row)

    def _asked_of_documents(self, columns: Columns) -> dict[str, bool]:
        """What the method asks for beyond a text; weights of tokens are refused here."""
        demands = self.demands
        if demands.weigher is not None:
            raise columns.error("the tokens of a document all weigh 1: set token_weights=none.")
        more = bool(demands.numbers) or demands.unrelated
        return {"require_rejected": demands.rejected, "wants_more": more}

    def _parsed(self, row: RawRow) -> tuple[ParsedRow, RowWeights | None]:
        """The row as text, and what weighs its answers."""
        weigher, demands = self.demands.weigher, self.demands
        reads = () if weigher is None else weigher.reads()
        parsed = parse_row(row, require_rejected=demands.rejected, numbers=demands.numbers, reads=reads)
        if weigher is None:
            return parsed, None
        turns, numbers = parsed.example.turns, (0, *(j + 1 for j in parsed.kept))
        return parsed, RowWeights(weigher, row.source, row.values, turns, numbers, count=len(turns))

    def _placed(self, example: TokenizedExample, row: RawRow) -> TokenizedExample:
        """The row where its placement puts it, its ids inside the vocabulary."""
        vocabulary = self.demands.vocabulary
        if vocabulary is not None and len(self.tokenize.tokenizer) > vocabulary:
            check_ids(example, vocabulary, tokenizer=self.tokenize.tokenizer)
        placement = self.positions.placement
        if placement is None:
            return example
        drawn = Drawn(self.source, row.index, room_of(example))
        return place_row(example, placement, drawn, seed=self.seed)

    def _released(self, row: RawRow) -> TokenizedExample:
        """A pre-tokenised row keeps its ids and positions: there is no telling its context from its question."""
        example = read_released(row.source, row.values, require_rejected=self.demands.rejected)
        check_ids(example, self.demands.vocabulary)
        limit = self.tokenize.settings.max_length
        longest = len(example.prompt_ids) + example.longest_answer
        if limit is not None and longest > limit:
            raise RowError(
                row.source,
                f"a pre-tokenised row of {counted(longest, 'token')} cannot be cut to data.max_length={limit}: "
                "raise it or leave the row out.",
                reason=faults.TOO_LONG,
            )
        if self.positions.placement is not None:
            raise RowError(
                row.source,
                "a pre-tokenised row has no marked context to place: set positions=none, which "
                "keeps the positions it came with.",
                reason=faults.PRE_TOKENISED,
            )
        if self.demands.weigher is not None:
            raise RowError(
                row.source,
                "a pre-tokenised row has no text whose tokens could be weighed: set token_weights=none.",
                reason=faults.PRE_TOKENISED,
            )
        if not self.demands.numbers:
            return example
        columns, count = Columns(row.source, row.values), len(example.answers)
        numbers = read_numbers(columns, self.demands.numbers, answers=count, kept=range(count - 1))
        return replace(example, columns=numbers)
