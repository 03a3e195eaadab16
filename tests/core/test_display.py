"""What long work shows: counts of several processes, and a bar that ends where the work does."""

from __future__ import annotations

import io
import time
from multiprocessing import get_context

import pytest
from rich.console import Console

from align.core.display import Tally, watched


def count(folder, name: str, times: int) -> None:
    tally = Tally(folder, name)
    for _ in range(times):
        tally.add()


def test_processes_count_together(tmp_path):
    """Each in a file of its own, written every 50: 120 and 60 are seen as 100 and 50."""
    assert Tally.total(tmp_path) == 0
    spawn = get_context("spawn")
    workers = [spawn.Process(target=count, args=(tmp_path, name, n)) for name, n in (("a", 120), ("b", 60))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert Tally.total(tmp_path) == 150


def test_a_file_that_is_being_written_counts_nothing(tmp_path):
    (tmp_path / "a.count").write_text("")
    (tmp_path / "b.count").write_text("50")
    assert Tally.total(tmp_path) == 50


def shown(tmp_path, *, seconds: float, fails: bool = False) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    count(tmp_path, "a", 60)
    try:
        with watched(tmp_path, "rows", total=80, console=console):
            time.sleep(seconds)
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    return console.file.getvalue()


def test_short_work_shows_no_bar(tmp_path):
    assert shown(tmp_path, seconds=0) == ""


@pytest.mark.parametrize(("fails", "end"), [(False, "80/80"), (True, "50/80")])
def test_the_bar_of_long_work_ends_where_the_work_does(tmp_path, fails, end):
    *_, last, _ = shown(
        tmp_path, seconds=1.3, fails=fails
    ).splitlines()  # the last line shows the cursor again
    assert "rows" in last and end in last
