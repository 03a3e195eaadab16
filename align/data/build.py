"""Tokenises rows into a memory-mapped data set, in several processes, once for each key."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from datasets.exceptions import DatasetGenerationError
from rich.console import Console

from align.core.bars import dataset_bars_off
from align.core.display import Tally, watched
from align.core.errors import AlignWarning, UserError
from align.core.files import cache_folder
from align.core.telling import is_first
from align.data.bad_rows import stopped
from align.data.faults import RowError
from align.data.renaming import NO_RENAMING, Renaming
from align.data.row_builder import NO_DEMANDS, Demands, RowBuilder
from align.data.settings import DataSettings, PositionSettings
from align.data.sources import Source, count_rows, read_places
from align.data.stored_rows import FEATURES
from align.data.stretches import read_stored
from align.data.template_file import writes_date
from align.data.tokens import ExampleTokenizer
from align.data.weighing import identity_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Part of the cache's key: raise it when a change of the code changes the stored rows.
VERSION = 11
LIBRARIES = ("tokenizers", "transformers", "jinja2")  # what they make of a text may change with their version
REFUSAL = "refusal"  # file in which a worker leaves why it stopped
WRITER_BATCH = (
    32,
    1000,
)  # rows held in memory before they are written: fewest (rows may be megabytes) and most
HELD_BYTES = 4_000_000  # of their text, about
# Settings that do not change a stored row: they say which rows, or what happens to them afterwards.
NOT_STORED = (
    "order",
    "path",
    "eval_path",
    "eval_size",
    "mix",
    "columns",
    "numbers",
    "bad_rows",
    "bad_rows_limit",
    "tokens_per_row",
    "num_proc",
    "chat_template",
    "date",
)


@dataclass(frozen=True)
class Built:
    """The rows of one place.

    Attributes:
        place: what names it: `data.path=rows.jsonl`.
        rows: those that can be used, in their order.
        bad: the others.
    """

    place: str
    rows: Dataset
    bad: tuple[RowError, ...] = ()


def build_dataset(
    sources: Sequence[Source],
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    place: str,
    positions: PositionSettings,
    seed: int,
    demands: Demands,
    renaming: Renaming = NO_RENAMING,
    number: int = 0,
) -> Built:
    """The rows of `sources` in their order, whatever `data.num_proc`; arguments as `load_preference_data`.

    Several processes that start together (ranks) wait for the one that builds. With `data.bad_rows=stop` the first row
    that cannot be used ends the build. `number` is the place's: rows of unlike places draw their positions apart.

    Raises:
        UserError: a source that cannot be read, or such a row.
    """
    for sentence in renaming.check(read_places(sources), place):
        warnings.warn(sentence, AlignWarning, stacklevel=2)
    tokenize = ExampleTokenizer(tokenizer, settings, chunk_tokens=positions.chunk_tokens)
    builder = RowBuilder(tokenize, positions, seed, demands, renaming, number)
    key = cache_key(
        sources,
        settings,
        tokenizer,
        positions=positions,
        seed=seed,
        demands=demands,
        renaming=renaming,
        number=number,
    )
    if is_built(key):
        stored = _generated({}, key, processes=1, batch=WRITER_BATCH[0])
    else:
        if next(read_places(sources, 0, settings.limit), None) is None:
            return Built(place, Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES))
        stored = _build(sources, settings, builder, key)
    return _parted(stored, place, stop=settings.bad_rows == "stop")


def _build(sources: Sequence[Source], settings: DataSettings, builder: RowBuilder, key: str) -> Dataset:
    """Tokenises, in `data.num_proc` processes."""
    count = count_rows(sources)
    count = count if settings.limit is None else min(count, settings.limit)
    shards = _shards(count, settings.num_proc)
    with tempfile.TemporaryDirectory() as folder:
        console = Console(stderr=True, quiet=not is_first())
        arguments = {
            "shards": shards,
            "sources": tuple(sources),
            "builder": builder,
            "folder": folder,
            "stop": settings.bad_rows == "stop",
        }
        try:
            with watched(Path(folder), "rows", total=count, console=console):
                batch = _writer_batch(sum(source.size() for source in sources), count_rows(sources))
                processes = min(settings.num_proc, len(shards))
                return _generated(arguments, key, processes=processes, batch=batch)
        except DatasetGenerationError:
            refusal = Path(folder, REFUSAL)
            if not refusal.is_file():
                raise
            raise UserError(refusal.read_text(encoding="utf-8")) from None


def _generated(arguments: dict[str, Any], key: str, *, processes: int, batch: int) -> Dataset:
    """The rows of `_generate`, or those of the same key in the cache, which needs no arguments."""
    with dataset_bars_off():
        return Dataset.from_generator(
            _generate,
            features=FEATURES,
            cache_dir=str(cache_folder() / "data"),
            gen_kwargs=arguments,
            num_proc=processes,
            fingerprint=key,
            writer_batch_size=batch,
        )


def _writer_batch(size: int, rows: int) -> int:
    """Rows written at once, of so many bytes of text together."""
    fewest, most = WRITER_BATCH
    return min(most, max(fewest, HELD_BYTES * rows // max(size, 1)))


def is_built(key: str) -> bool:
    """Whether the cache holds the rows of this key, whole."""
    folder = cache_folder() / "data" / "generator" / f"default-fingerprint={key}"
    return any(folder.glob("*/dataset_info.json"))


def _parted(stored: Dataset, place: str, *, stop: bool) -> Built:
    """The usable rows, and the others.

    Raises:
        RowError: there are others and `data.bad_rows` is stop.
    """
    reasons = stored.with_format("arrow").select_columns(["bad_reason"])[:]["bad_reason"]
    is_bad = pc.not_equal(reasons, "").to_numpy(zero_copy_only=False)
    if not is_bad.any():
        return Built(place, stored.with_format("numpy"))
    columns = ["source", "bad_reason", "bad_sentence"]
    found = stored.with_format(None).select_columns(columns).select(np.flatnonzero(is_bad))
    bad = tuple(RowError(row["source"], row["bad_sentence"], reason=row["bad_reason"]) for row in found)
    if stop:
        raise stopped(bad[0], count=len(bad), total=len(stored))
    return Built(place, stored.select(np.flatnonzero(~is_bad)).with_format("numpy"), bad)


def cache_key(
    sources: Sequence[Source],
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    positions: PositionSettings,
    seed: int,
    demands: Demands = NO_DEMANDS,
    renaming: Renaming = NO_RENAMING,
    number: int = 0,
) -> str:
    """Changes with everything that changes a stored row: files, tokenizer, settings, seed, this code, libraries."""
    content = {
        "version": VERSION,
        "libraries": {name: version(name) for name in LIBRARIES},
        "sources": [source.identity() for source in sources],
        "data": {name: value for name, value in asdict(settings).items() if name not in NOT_STORED},
        "template": template_content(settings, tokenizer),
        "columns": renaming.columns,
        "tokenizer": _tokenizer_content(tokenizer),
        "positions": [positions.chunk_tokens, identity_of(positions.placement)],
        "seed": None if positions.placement is None else [seed, number],
        "demands": asdict(replace(demands, weigher=None)),
        "weigher": identity_of(demands.weigher),
    }
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What decides on ids: vocabulary, merges, normalisation, special tokens, chat template."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.pop("truncation", None)
    state.pop("padding", None)
    return {
        "state": state,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
    }


def template_content(settings: DataSettings, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The chat template's source, and the date where it writes one."""
    source = settings.template_source() or tokenizer.chat_template
    dated = writes_date(source)
    return {"source": source, "date": str(settings.today()) if dated else None}


def _shards(count: int, processes: int) -> list[tuple[int, int]]:
    """`count` places in at most one range a process, of about the same size, in order.

    10 places for 4 processes: (0, 2), (2, 5), (5, 7), (7, 10).
    """
    edges = [count * i // processes for i in range(processes + 1)]
    return [(start, stop) for start, stop in pairwise(edges) if start < stop]


def _generate(
    shards: list[tuple[int, int]], sources: Sequence[Source], builder: RowBuilder, folder: str, stop: bool
) -> Iterator[dict[str, Any]]:
    """Rows of some shards, counted in `folder`.

    `datasets` hides what a worker raises, so the sentence is also left there.
    """
    tally = Tally(Path(folder), str(os.getpid()))
    try:
        for start, end in shards:
            yield from read_stored(sources, builder, (start, end), stop=stop, counted=tally.add)
    except UserError as error:
        Path(folder, REFUSAL).write_text(str(error), encoding="utf-8", errors="backslashreplace")
        raise
