"""Tokenises rows into a memory-mapped data set, in several processes, once for each key."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from datasets.exceptions import DatasetGenerationError
from rich.console import Console

from align.core.bars import dataset_bars_off
from align.core.display import Tally, watched
from align.core.errors import UserError
from align.core.files import cache_folder
from align.data.formats import parse_row
from align.data.positions import row_rng, synthesise
from align.data.released import is_released, read_released
from align.data.settings import DataSettings, PositionSettings
from align.data.sources import RawRow, Source, count_rows, read_rows
from align.data.stored_rows import FEATURES, to_row
from align.data.template_file import writes_date
from align.data.tokens import ExampleTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Part of the cache's key: raise it when a change of the code changes the stored rows.
VERSION = 2
REFUSAL = "refusal"  # file in which a worker leaves why it stopped
WRITER_BATCH = 32  # rows held in memory before they are written; rows may be megabytes
# Settings that do not change a stored row: they say which rows, or what happens to them afterwards.
NOT_STORED = ("path", "eval_path", "eval_size", "mix", "tokens_per_row", "num_proc", "chat_template", "date")


@dataclass(frozen=True)
class RowBuilder:
    """Raw row → the stored columns: layout, tokens, cut, positions."""

    tokenize: ExampleTokenizer
    positions: PositionSettings
    seed: int
    require_rejected: bool

    def __call__(self, row: RawRow) -> dict[str, Any]:
        """The columns of `align.data.stored_rows.FEATURES`; raises UserError naming the row."""
        if is_released(row.values):
            return self._released(row)
        parsed = parse_row(row, require_rejected=self.require_rejected)
        example = synthesise(
            self.tokenize(parsed.example),
            mode=self.positions.mode,
            target_length=self.positions.target_length,
            draw=self.positions.draw,
            sparse_share=self.positions.sparse_share,
            rng=row_rng(self.seed, 0, row.index),
        )
        return to_row(example, dropped_rejected=parsed.dropped)

    def _released(self, row: RawRow) -> dict[str, Any]:
        """A pre-tokenised row keeps its ids and positions: there is no telling its context from its question."""
        example = read_released(row.source, row.values, require_rejected=self.require_rejected)
        limit = self.tokenize.settings.max_length
        longest = len(example.prompt_ids) + example.longest_answer
        if limit is not None and longest > limit:
            raise UserError(
                f"{row.source}: a pre-tokenised row of {longest} tokens cannot be cut to data.max_length={limit}: "
                "raise it or leave the row out."
            )
        if self.positions.mode != "none":
            raise UserError(
                f"{row.source}: a pre-tokenised row has no marked context to place: set positions=none, which "
                "keeps the positions it came with."
            )
        return to_row(example)


def build_dataset(
    sources: Sequence[Source],
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    positions: PositionSettings,
    seed: int,
    require_rejected: bool,
) -> Dataset:
    """The rows of `sources` in their order, whatever `data.num_proc`; arguments as `load_preference_data`.

    Several processes that start together (ranks) wait for the one that builds.
    """
    tokenize = ExampleTokenizer(tokenizer, settings, chunk_tokens=positions.chunk_tokens)
    builder = RowBuilder(tokenize, positions, seed, require_rejected)
    key = cache_key(
        sources, settings, tokenizer, positions=positions, seed=seed, require_rejected=require_rejected
    )
    count = count_rows(sources)
    count = count if settings.limit is None else min(count, settings.limit)
    shards = _shards(count, settings.num_proc)
    if next(read_rows(sources, 0, count), None) is None:
        return Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES)
    with tempfile.TemporaryDirectory() as folder:
        refusal = Path(folder) / REFUSAL
        console = Console(stderr=True, quiet=int(os.environ.get("RANK", "0")) > 0)
        try:
            with watched(Path(folder), "rows", total=count, console=console), dataset_bars_off():
                dataset = Dataset.from_generator(
                    _generate,
                    features=FEATURES,
                    cache_dir=str(cache_folder() / "data"),
                    gen_kwargs={
                        "shards": shards,
                        "sources": tuple(sources),
                        "builder": builder,
                        "folder": folder,
                    },
                    num_proc=min(settings.num_proc, len(shards)),
                    fingerprint=key,
                    writer_batch_size=WRITER_BATCH,
                )
        except DatasetGenerationError:
            if not refusal.is_file():
                raise
            raise UserError(refusal.read_text()) from None
    return dataset.with_format("numpy")


def cache_key(
    sources: Sequence[Source],
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    positions: PositionSettings,
    seed: int,
    require_rejected: bool,
) -> str:
    """Changes with everything that changes a stored row: files, tokenizer, settings, seed, this code."""
    content = {
        "version": VERSION,
        "sources": [source.identity() for source in sources],
        "data": {name: value for name, value in asdict(settings).items() if name not in NOT_STORED},
        "template": template_content(settings, tokenizer),
        "tokenizer": _tokenizer_content(tokenizer),
        "positions": asdict(positions),
        "seed": None if positions.mode == "none" else seed,
        "require_rejected": require_rejected,
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
    shards: list[tuple[int, int]], sources: Sequence[Source], builder: RowBuilder, folder: str
) -> Iterator[dict[str, Any]]:
    """Rows of some shards, counted in `folder`.

    `datasets` hides what a worker raises, so a UserError is also left there.
    """
    tally = Tally(Path(folder), str(os.getpid()))
    for start, stop in shards:
        for row in read_rows(sources, start, stop):
            try:
                yield builder(row)
            except UserError as error:
                Path(folder, REFUSAL).write_text(str(error))
                raise
            tally.add()
