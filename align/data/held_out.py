"""The split into rows to train on and rows held out, where nobody has made one."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from align.core.errors import UserError
from align.core.readable import counted
from align.data.totals import column_of


def split_held_out(dataset: Dataset, size: float, *, seed: int) -> tuple[Dataset, Dataset | None]:
    """Splits rows at random so that rows of the same prompt, and pieces of the same document, stay on one side.

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
    names = pc.dictionary_encode(column_of(dataset, "prompt_hash"))
    prompt_of_row = names.indices.to_numpy()  # prompts are numbered by their first row
    prompts = len(names.dictionary)
    order = np.random.default_rng(seed).permutation(prompts)
    sizes = np.bincount(prompt_of_row, minlength=prompts)
    taken = int(np.searchsorted(np.cumsum(sizes[order]), wanted)) + 1
    is_held = np.isin(prompt_of_row, order[:taken])
    if is_held.all():
        raise UserError(
            f"data.eval_size={size:g} holds out all there is, {counted(len(dataset), 'row')} of "
            f"{counted(prompts, 'prompt or document')} (at least one is held out, with all its rows): set "
            "data.eval_size=0, or name held-out rows with data.eval_path."
        )
    return dataset.select(np.flatnonzero(~is_held)), dataset.select(np.flatnonzero(is_held))
