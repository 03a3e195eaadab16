"""Rows on disk → tokenised, memory-mapped data sets with a held-out split.

data = load_preference_data(settings, tokenizer, positions=positions, seed=42)
batch = align.training.collate.Collator(tokens_per_row=8192)([data.train[0], data.train[1]])["batch"]
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from datasets import Dataset

from align.core.errors import AlignWarning, UserError
from align.core.moved import renamed
from align.data.bad_rows import check_limit
from align.data.build import Built, build_dataset
from align.data.faults import RowError
from align.data.held_out import split_held_out as split_held_out
from align.data.labels import check_both, count_labels
from align.data.mixture import Ingredient, mix
from align.data.numbers import numbers_of
from align.data.renaming import Renaming
from align.data.row_builder import Demands
from align.data.settings import DataSettings, PositionSettings
from align.data.sources import Source, open_sources
from align.data.stored_rows import to_example, to_row
from align.data.template_file import writes_date
from align.data.totals import count_rows_of, digest_of_rows, unplaced_rows
from align.data.weighing import Weigher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
else:
    __getattr__ = partial(renamed, __name__)

__all__ = [
    "DataSettings",
    "PositionSettings",
    "PreferenceData",
    "load_preference_data",
    "to_example",
    "to_row",
]


OWN = PositionSettings()  # every token at its own position


@dataclass(frozen=True)
class PreferenceData:
    """Tokenised rows, ready for a Trainer with `Collator` (and `remove_unused_columns=False`).

    Attributes:
        train: rows in file order; `to_example` turns one into a `TokenizedExample`.
        eval: the held-out rows; None where none are held out.
        counts: over both: `rows`, `train_rows`, `eval_rows`, `tokens` (each prompt once), `padded_tokens`
            (1 + M rows a prompt, each as long as the longest), `longest_sequence` (prompt + answer),
            `largest_position` (of any epoch), `cut_rows`, `cut_tokens`, `short_cut_rows`, `short_cut_tokens` (out of
            short contexts), `dropped_rejected` (equal to the chosen answer),
            `dropped_reasoning` (answers without their reasoning, `data.thinking=drop`), `dropped_messages` (behind the
            last answer), `unplaced_rows` (that positions leave where they are), `rendered_prompts` (string prompts
            whose special tokens count), `moved_spaces` (string prompts whose last space begins the answers),
            `text_prompts` (string prompts that stand as they are), `joined_rows` (messages without a chat template),
            `inferred_prompts` (rows whose prompt is what their answers begin with in common), `dropped_rows` (left out,
            since they cannot be used), `documents` (unlike ones of plain text, some `cut_documents`), `pieces` (their
            rows), `piece_tokens` (of these), `rows_of_pieces` (piece_rows.py), `tokens_in_pieces`; of rows with labels
            `good_answers`, `bad_answers` and `unrelated_answers` of the training rows.
        ingredients: what the training rows were mixed from, `data.path` first; empty without `data.mix`.
        dropped: the rows that were left out, with `data.bad_rows=drop`.
        date: what the chat template writes into prompts; None where it writes none.
        digest: changes with the content and the order of the rows, and with nothing else: not with their place.
        of_template: settings that are set and change nothing where no chat template is used.
        has_template: there is a chat template, or `data.chat=never` wants none.
        end: the tokenizer's end-of-text token, with which documents end; None where it has none.
        positions: where rows stand, fitted to the model.
        seed: of their positions.
    """

    train: Dataset
    eval: Dataset | None
    counts: dict[str, int]
    ingredients: tuple[Ingredient, ...] = ()
    dropped: tuple[RowError, ...] = ()
    digest: str = ""
    date: str | None = None
    of_template: tuple[str, ...] = ()
    has_template: bool = True
    end: str | None = None
    positions: PositionSettings = OWN
    seed: int = 0


def load_preference_data(
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    positions: PositionSettings,
    seed: int,
    require_rejected: bool = False,
    require_short: bool = False,
    vocabulary: int | None = None,
    columns: Mapping[str, str] | None = None,
    unrelated: bool = False,
    weigher: Weigher | None = None,
) -> PreferenceData:
    """Reads, tokenises, places and splits the rows of `data.path`; a second call finds them in the cache.

    Args:
        settings: group `data`.
        tokenizer: a fast tokenizer; part of the cache's key by its content.
        positions: group `positions`, fitted to the model; row i draws from (seed, i).
        seed: of the held-out split, of what `data.mix` draws and of position synthesis.
        require_rejected: rows without a rejected answer cannot be used.
        require_short: rows without a short context cannot be used.
        vocabulary: rows of the model's embedding, which token ids must stay below; None checks none.
        columns: numbers that are read of every row, name → `prompt` or `answer` (`method.needs.columns`).
        unrelated: every row gets an answer to another prompt behind its own.
        weigher: says what tokens of answers weigh (`token_weights`); None leaves all at 1.

    Raises:
        UserError: data missing or empty; a row that cannot be used (`data.bad_rows=stop`), or more such rows than
            `data.bad_rows_limit` allows.
    """
    demands = Demands(
        rejected=require_rejected,
        short=require_short,
        vocabulary=vocabulary,
        numbers=numbers_of(columns or {}, settings.numbers),
        unrelated=unrelated,
        weigher=weigher,
    )
    places = build_places(settings, tokenizer, positions=positions, seed=seed, demands=demands)
    return assemble(places, settings, seed=seed)


@dataclass(frozen=True)
class Places:
    """The rows of every place that `data` names: to train on, held out (where they are named), mixed in.

    `date` is what the chat template writes into prompts; None where it writes none. `positions` says where rows stand,
    `has_template` and `end` as in `PreferenceData`; `kinds` are those of the rows' numbers.
    """

    train: Built
    held_out: Built | None
    mixed: tuple[Built, ...]
    date: str | None = None
    positions: PositionSettings = OWN
    has_template: bool = True
    end: str | None = None
    kinds: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[Built, ...]:
        """Each of them."""
        return (self.train, *([] if self.held_out is None else [self.held_out]), *self.mixed)


def build_places(
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    positions: PositionSettings,
    seed: int,
    demands: Demands,
) -> Places:
    """Tokenises the rows of every place; arguments and errors as `load_preference_data`."""
    settings = replace(settings, date=str(settings.today()))  # the same for every file, whenever midnight is
    renaming, more = Renaming.of(settings.columns), demands.columns
    sources = open_sources(settings.path, wanted=renaming.wanted(more))
    held_out, held_key = sources.held_out, f"data.path={settings.path}"
    if settings.eval_path is not None:
        named = open_sources(settings.eval_path, key="data.eval_path", wanted=renaming.wanted(more))
        _tell_unused(held_out, named.train, held_key, "data.eval_path names the held-out rows")
        held_key = f"data.eval_path={settings.eval_path}"
        _tell_unused(
            named.held_out,
            sources.train,
            held_key,
            "of what data.eval_path names its training rows are held out",
        )
        held_out = named.train

    def build(files: Sequence[Source], place: str, renaming: Renaming, number: int) -> Built:
        return build_dataset(
            files,
            settings,
            tokenizer,
            place=place,
            positions=positions,
            seed=seed,
            demands=demands,
            renaming=renaming,
            number=number,
        )

    train = build(sources.train, f"data.path={settings.path}", renaming, 0)
    held = build(held_out, held_key, renaming, 1) if held_out else None
    mixed = []
    for i, entry in enumerate(settings.mix):
        key, own = f"data.mix[{i}].path", Renaming.of(entry.columns, f"data.mix[{i}].columns")
        opened = open_sources(entry.path, key=key, wanted=own.wanted(more))
        _tell_unused(opened.held_out, held_out, f"{key}={entry.path}", "only training rows are mixed in")
        mixed.append(build(opened.train, f"{key}={entry.path}", own, 2 + i))
    template = settings.template_source() or tokenizer.chat_template
    dated = settings.chat != "never" and writes_date(template)
    return Places(
        train,
        held,
        tuple(mixed),
        settings.date if dated else None,
        positions=positions,
        has_template=settings.chat == "never" or template is not None,
        end=None if tokenizer.eos_token is None else str(tokenizer.eos_token),
        kinds=tuple(number.kind for number in demands.numbers),
    )


def _tell_unused(held_out: Sequence[Source], read: Sequence[Source], place: str, why: str) -> None:
    """Says which held-out rows of a place nobody reads, not even as `read`: the same ones by another name."""
    known = [source.identity()[1:] for source in read]
    names = [source.name for source in held_out if source.identity()[1:] not in known]
    if names:
        shown = f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''} {'is' if len(names) == 1 else 'are'}"
        warnings.warn(f"{place}: {shown} in no set, since {why}.", AlignWarning, stacklevel=2)


def assemble(places: Places, settings: DataSettings, *, seed: int) -> PreferenceData:
    """The rows that can be used, split and mixed; arguments and errors as `load_preference_data`."""
    for built in places.all:
        if not len(built.rows) and not built.bad:
            raise UserError(f"{built.place} holds no rows.")
        check_limit(built.place, built.bad, usable=len(built.rows), limit=settings.bad_rows_limit)
    train = places.train.rows
    if places.held_out is None:
        train, held = split_held_out(train, settings.eval_size, seed=seed)
    else:
        held = places.held_out.rows
    ingredients: tuple[Ingredient, ...] = ()
    if settings.mix:
        others = [built.rows for built in places.mixed]
        mixed = list(zip(settings.mix, others, strict=True))
        train, ingredients = mix(train, str(settings.path), mixed, seed=seed)
    dropped = tuple(row for built in places.all for row in built.bad)
    counts = {**count_rows_of(train, held), "dropped_rows": len(dropped), "unplaced_rows": 0}
    if places.positions.placement is not None:
        counts["unplaced_rows"] = unplaced_rows(train, held)
        most = places.positions.placement.target_length
        if places.positions.redrawn and most is not None:
            counts["largest_position"] = max(counts["largest_position"], most - 1)  # of any epoch
    if "label" in places.kinds:
        labels = count_labels(train, places.kinds)
        check_both(labels, rows=len(train))
        counts |= labels
    return PreferenceData(
        train,
        held,
        counts,
        ingredients,
        dropped,
        digest_of_rows(train, held),
        places.date,
        settings.of_template(),
        places.has_template,
        places.end,
        places.positions,
        seed,
    )
