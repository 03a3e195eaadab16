"""Rows on disk → tokenised, memory-mapped data sets with a held-out split.

data = load_preference_data(settings, tokenizer, positions=positions, seed=42)
batch = align.training.collate.Collator(tokens_per_row=8192)([data.train[0], data.train[1]])["batch"]
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from align.core.errors import AlignWarning, UserError
from align.core.moved import renamed
from align.core.readable import counted
from align.data.build import build_dataset
from align.data.mixture import Ingredient, mix
from align.data.remarks import remarks
from align.data.settings import DataSettings, PositionSettings
from align.data.sources import Source, open_sources
from align.data.stored_rows import to_example, to_row

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


@dataclass(frozen=True)
class PreferenceData:
    """Tokenised rows, ready for a Trainer with `Collator` (and `remove_unused_columns=False`).

    Attributes:
        train: rows in file order; `to_example` turns one into a `TokenizedExample`.
        eval: the held-out rows; None where none are held out.
        counts: over both: `rows`, `train_rows`, `eval_rows`, `tokens` (each prompt once), `padded_tokens`
            (1 + M rows a prompt, each as long as the longest), `longest_sequence` (prompt + answer),
            `largest_position`, `cut_rows`, `cut_tokens`, `dropped_rejected` (equal to the chosen answer),
            `dropped_reasoning` (answers without their reasoning, `data.thinking=drop`), `dropped_messages` (behind the
            last answer).
        ingredients: what the training rows were mixed from, `data.path` first; empty without `data.mix`.
    """

    train: Dataset
    eval: Dataset | None
    counts: dict[str, int]
    ingredients: tuple[Ingredient, ...] = ()


def load_preference_data(
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    positions: PositionSettings,
    seed: int,
    require_rejected: bool = False,
    require_short: bool = False,
) -> PreferenceData:
    """Reads, tokenises, places and splits the rows of `data.path`; a second call finds them in the cache.

    Args:
        settings: group `data`.
        tokenizer: a fast tokenizer; part of the cache's key by its content.
        positions: group `positions`; row i draws from (seed, i).
        seed: of the held-out split, of what `data.mix` draws and of position synthesis.
        require_rejected: rows without a rejected answer are an error.
        require_short: rows without a short context are an error.

    Raises:
        UserError: data missing or empty, or a row that cannot be used; names file and row.
    """
    settings = replace(settings, date=str(settings.today()))  # the same for every file, whenever midnight is
    sources = open_sources(settings.path)
    held_out = sources.held_out
    if settings.eval_path is not None:
        held_out = open_sources(settings.eval_path, key="data.eval_path").train

    def build(files: Sequence[Source], key: str, name: str) -> Dataset:
        dataset = build_dataset(
            files, settings, tokenizer, positions=positions, seed=seed, require_rejected=require_rejected
        )
        if not len(dataset):
            raise UserError(f"{key}={name} holds no rows.")
        if require_short:
            _check_short(dataset)
        return dataset

    train = build(sources.train, "data.path", str(settings.path))
    if held_out:
        key = "data.path" if settings.eval_path is None else "data.eval_path"
        held = build(held_out, key, str(settings.eval_path or settings.path))
    else:
        train, held = split_held_out(train, settings.eval_size, seed=seed)
    ingredients: tuple[Ingredient, ...] = ()
    if settings.mix:
        keys = [f"data.mix[{i}].path" for i in range(len(settings.mix))]
        others = [
            build(open_sources(entry.path, key=key).train, key, entry.path)
            for entry, key in zip(settings.mix, keys, strict=True)
        ]
        mixed = list(zip(settings.mix, others, strict=True))
        train, ingredients = mix(train, str(settings.path), mixed, seed=seed)
    counts = _counts(train, held)
    for sentence in remarks(settings, tokenizer, counts):
        warnings.warn(sentence, AlignWarning, stacklevel=2)
    return PreferenceData(train, held, counts, ingredients)


def _check_short(dataset: Dataset) -> None:
    """Raises UserError naming the first row without a short context."""
    columns = dataset.select_columns(["source", "short_prompt_lengths"]).with_format("arrow")
    for rows in columns.iter(batch_size=1000):
        without = pc.index(pc.list_value_length(rows["short_prompt_lengths"]), 0).as_py()
        if without >= 0:
            raise UserError(
                f"{rows['source'][without]}: the method reads the context made short, which this row does not "
                "have: add short_prompt (short_prompts, one a turn)."
            )


def split_held_out(dataset: Dataset, size: float, *, seed: int) -> tuple[Dataset, Dataset | None]:
    """Splits rows at random so that rows of the same prompt stay on one side.

    100 rows of 50 prompts, two rows each, with a size of 0.1: five prompts are held out, with 10 rows.

    Args:
        dataset: rows with a `prompt_hash`.
        size: rows to hold out: a share where it is below 1, else their number; 0 holds out none. At least
            one is held out; prompts are taken whole until the number is reached.
        seed: of the shuffle.

    Returns:
        `(train, held out)`, each in the rows' order.

    Raises:
        UserError: nothing would be left to train on.
    """
    if size == 0:
        return dataset, None
    wanted = max(1, round(size * len(dataset)) if size < 1 else int(size))
    prompts: dict[str, list[int]] = {}
    for row, name in enumerate(dataset["prompt_hash"]):
        prompts.setdefault(name, []).append(row)
    rows_of_prompt = list(prompts.values())
    held: set[int] = set()
    for prompt in np.random.default_rng(seed).permutation(len(rows_of_prompt)):
        if len(held) >= wanted:
            break
        held.update(rows_of_prompt[prompt])
    if len(held) == len(dataset):
        raise UserError(
            f"data.eval_size={size:g} holds out all there is, {counted(len(dataset), 'row')} of "
            f"{counted(len(rows_of_prompt), 'prompt')} (at least one prompt is held out, with all its rows): set "
            "data.eval_size=0, or name held-out rows with data.eval_path."
        )
    train = [row for row in range(len(dataset)) if row not in held]
    return dataset.select(train), dataset.select(sorted(held))


def _counts(train: Dataset, held: Dataset | None) -> dict[str, int]:
    """See `PreferenceData.counts`."""
    both = [train] if held is None else [train, held]

    def column(name: str) -> np.ndarray:
        return np.concatenate([np.asarray(rows[name][:], dtype=np.int64) for rows in both])

    cut, longest = column("cut_tokens"), column("longest_sequence")
    return {
        "rows": sum(len(rows) for rows in both),
        "train_rows": len(train),
        "eval_rows": 0 if held is None else len(held),
        "tokens": int(column("num_tokens").sum()),
        "padded_tokens": int((longest * column("num_answers")).sum()),
        "longest_sequence": int(longest.max()),
        "largest_position": int(column("largest_position").max()),
        "cut_rows": int((cut > 0).sum()),
        "cut_tokens": int(cut.sum()),
        "dropped_rejected": int(column("dropped_rejected").sum()),
        "dropped_reasoning": int(column("dropped_reasoning").sum()),
        "dropped_messages": int(column("dropped_messages").sum()),
    }
