"""`reference.fill_only=true`: the reference reads every row once, the cache keeps what it said, nothing trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from align.reference.cache import Cached

if TYPE_CHECKING:
    from align.training.trainer import PreferenceTrainer


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
    main = trainer.is_world_process_zero()
    progress = Progress(
        TextColumn("filling the reference cache"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not main,
    )
    prompts = 0
    with progress:
        task = progress.add_task("", total=sum(map(len, present)))
        for dataset in present:
            for count in trainer.read_reference(dataset):
                prompts += count
                # The groups keep in step, so the first one's share times their number is what is done.
                progress.advance(task, count * (trainer.args.world_size // trainer.degree))
    counts = trainer.sum_over_groups([prompts, reference.usage.tokens, reference.usage.cached])
    return dict(zip(("prompts", "tokens", "cached"), map(int, counts), strict=True))
