"""`reference.fill_only=true`: the reference reads every row once, the cache keeps what it said, nothing trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console

from align.core.display import progress_bar
from align.core.readable import counted
from align.data.dataset import PreferenceData
from align.reference.cache import Cached
from align.training.run import Run
from align.training.trainer import PreferenceTrainer


def fill_cache(trainer: PreferenceTrainer, run: Run, data: PreferenceData) -> None:
    """Fills the reference cache and says what it took."""
    counts = fill(trainer, data.train, data.eval)
    if trainer.is_world_process_zero():
        Console().print(
            f"reference cache {run.reference.cache}: {counted(counts['prompts'], 'prompt')}, "
            f"{counted(counts['tokens'], 'token')} read, {counted(counts['cached'], 'row')} found",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )


def fill(trainer: PreferenceTrainer, *datasets: Any) -> dict[str, int]:
    """Reads the rows of `datasets`, shared out over the processes; what has an entry already is not read.

    Args:
        trainer: with a `Cached` reference and its model.
        datasets: rows as the trainer's data collator takes them; None is passed over.

    Returns:
        `prompts` that were asked for, `tokens` that the reference read, `cached` prompts (turns, on short
        contexts) that had an entry; over all processes.
    """
    reference = trainer.reference
    if not isinstance(reference, Cached):
        raise ValueError("fill needs a trainer whose reference is Cached")
    present = [dataset for dataset in datasets if dataset is not None]
    console = Console(stderr=True, quiet=not trainer.is_world_process_zero())
    prompts = 0
    with progress_bar(console) as progress:
        task = progress.add_task("filling the reference cache", total=sum(map(len, present)))
        for dataset in present:
            for count in _read(trainer, dataset):
                prompts += count
                # The groups keep in step, so the first one's share times their number is what is done.
                progress.advance(task, count * (trainer.args.world_size // trainer.degree))
    counts = trainer.sum_over_groups([prompts, reference.usage.tokens, reference.usage.cached])
    return dict(zip(("prompts", "tokens", "cached"), map(int, counts), strict=True))


def _read(trainer: PreferenceTrainer, dataset: Any) -> Iterator[int]:
    """Has the reference read this process's share of `dataset`; yields each batch's number of prompts."""
    for inputs in trainer.get_test_dataloader(dataset):
        inputs = trainer._prepare_inputs(inputs)
        trainer.reference_logps(trainer.model_wrapped, inputs)
        yield int(inputs["real"].sum())
