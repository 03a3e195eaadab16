"""What long work shows while it goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def progress_bar(console: Console, *more: ProgressColumn) -> Progress:
    """The bar that all long work shows: what is done of how much, since when, and how long it will take.

    A notebook needs ipywidgets for it, and has none without.

    Args:
        console: where it stands.
        more: columns behind these.
    """
    return Progress(
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        *more,
        console=console,
        disable=console.is_jupyter and find_spec("ipywidgets") is None,
    )


class Tally:
    """Counts work that several processes share, in a folder: each adds to a file of its own."""

    EVERY = 50  # counted before a file is written, so that counting costs nothing

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / f"{name}.count"
        self._count = 0

    def add(self) -> None:
        """One more is done."""
        self._count += 1
        if self._count % self.EVERY == 0:
            self._path.write_text(str(self._count))

    @staticmethod
    def total(folder: Path) -> int:
        """What all have done so far."""
        texts = [path.read_text() for path in folder.glob("*.count")]
        return sum(int(text) for text in texts if text)


@contextmanager
def watched(folder: Path, description: str, *, total: int, console: Console) -> Iterator[None]:
    """Within it a bar shows the `Tally` of a folder, once the work takes longer than a second.

    Args:
        folder: of the tally.
        description: what is counted: `rows`.
        total: how many there are; the bar ends there when the block ends well.
        console: where it stands.
    """
    done = threading.Event()
    whole = False

    def show() -> None:
        if done.wait(1.0):
            return
        with progress_bar(console) as progress:
            task = progress.add_task(description, total=total)
            while not done.wait(0.5):
                progress.update(task, completed=Tally.total(folder))
            progress.update(task, completed=total if whole else Tally.total(folder))

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
        whole = True
    finally:
        done.set()
        thread.join()
