"""The miniature's driver: what a kill leaves goes on, what is done is not done again, commands that compose."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from benchmarks.miniature.__main__ import run_missing, wanted
from benchmarks.miniature.cells import Cell, Place, Step, grid
from benchmarks.miniature.run import claimed, result_path, run_cell

ROOT = Path(__file__).parents[2]


def steps(cell: Cell, place: Place) -> list[Step]:
    """Two processes that note that they ran; the second one of cell `b` waits for a file."""
    note = f"open(r'{place.work}/ran', 'a').write('{cell.name}' + sys.argv[1] + ' ')"
    wait = f"\nwhile not os.path.exists(r'{place.work}/go'): time.sleep(0.02)" if cell.name == "b" else ""
    code = f"import os, sys, time; {note}"
    return [
        Step("one", (sys.executable, "-c", code, "1")),
        Step("two", (sys.executable, "-c", code + wait, "2")),
    ]


class Made(Cell):
    """A cell that is asked nothing."""

    scored = False


CELLS = [Made("find", "a", 1, steps=steps), Made("find", "b", 1, ("find/a/seed1",), steps)]


def start(folder: Path, budget: float = float("inf")) -> None:
    arguments = argparse.Namespace(results=folder / "results", budget_minutes=budget, threads=1)
    run_missing(CELLS, Place(folder, folder), arguments)


def wait_for(condition, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def free(folder: Path) -> bool:
    """Whether no process holds cell `b`."""
    with claimed(Place(folder, folder).folder("find/b/seed1")) as lock:
        return lock is not None


def test_a_killed_driver_goes_on_where_it_stopped(tmp_path):
    """SIGKILL while the second cell's second step runs: three steps are not run again, its JSON comes at last."""
    code = f"from pathlib import Path; from tests.miniature.test_run import start; start(Path(r'{tmp_path}'))"
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
    ran = tmp_path / "ran"
    wait_for(lambda: ran.exists() and "b2" in ran.read_text())
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    wait_for(lambda: free(tmp_path))  # its step was killed too, but dies when it may
    done, open_ = (result_path(tmp_path / "results", cell) for cell in CELLS)
    assert done.is_file() and not open_.exists()
    (tmp_path / "go").touch()
    start(tmp_path)
    assert ran.read_text().split() == ["a1", "a2", "b1", "b2", "b2"]
    found = json.loads(open_.read_text())
    assert [(cost["step"], cost["finished"]) for cost in found["costs"]] == [("one", True), ("two", True)]
    before = open_.stat().st_mtime_ns
    start(tmp_path)
    assert open_.stat().st_mtime_ns == before


def test_a_step_that_outlives_its_driver_is_not_run_twice(tmp_path):
    """SIGKILL reaches the driver alone: while its step still runs the cell stays claimed, then it goes on."""
    code = f"from pathlib import Path; from tests.miniature.test_run import start; start(Path(r'{tmp_path}'))"
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    ran = tmp_path / "ran"
    wait_for(lambda: ran.exists() and "b2" in ran.read_text())
    driver.kill()
    driver.wait()
    start(tmp_path)
    assert ran.read_text().split() == ["a1", "a2", "b1", "b2"]
    (tmp_path / "go").touch()
    wait_for(lambda: free(tmp_path))
    start(tmp_path)
    assert result_path(tmp_path / "results", CELLS[1]).is_file()


def test_a_step_that_fails_leaves_the_others(tmp_path):
    """The failure is named, has its log and its cost, and the same call tries it again."""
    code = f"import os, sys; sys.exit(not os.path.exists(r'{tmp_path}/go'))"
    cell = Made(
        "find",
        "a",
        1,
        steps=lambda cell, place: [Step("one", (sys.executable, "-c", code))],
        temporary=("trash",),
    )
    place = Place(tmp_path, tmp_path)
    with pytest.raises(RuntimeError, match=r"find/a/seed1: one ended with an error, see .*one\.log"):
        run_cell(cell, place, tmp_path / "results", threads=1)
    (tmp_path / "go").touch()
    (place.folder(cell.id) / "trash").mkdir()
    (place.folder(cell.id) / "rows.jsonl").write_text("{}\n")
    found = json.loads(run_cell(cell, place, tmp_path / "results", threads=1).read_text())
    assert [cost["finished"] for cost in found["costs"]] == [False, True]
    assert found["rows_sha256"] == hashlib.sha256(b"{}\n").hexdigest()
    assert not (place.folder(cell.id) / "trash").exists()


def test_no_cell_starts_after_the_budget(tmp_path):
    start(tmp_path, budget=0)
    assert not (tmp_path / "ran").exists()


def test_a_cell_that_another_process_runs_is_left_to_it(tmp_path):
    (tmp_path / "go").touch()
    with claimed(Place(tmp_path, tmp_path).folder("find/a/seed1")) as lock:
        assert lock is not None
        start(tmp_path)
    assert not (tmp_path / "ran").exists()  # nor `b`, which needs it
    start(tmp_path)
    assert (tmp_path / "ran").read_text().split() == ["a1", "a2", "b1", "b2"]


def test_named_cells_bring_what_they_need():
    assert [cell.id for cell in wanted(grid(), ["write/dpo/seed2"])] == [
        "write/base/seed2",
        "write/sft/seed2",
        "write/pairs/seed2",
        "write/dpo/seed2",
    ]
    assert wanted(grid(), [""]) == grid()
    with pytest.raises(SystemExit, match="no cell begins with nothing"):
        wanted(grid(), ["nothing"])


@pytest.mark.parametrize("cell", grid((1,)), ids=lambda cell: cell.id)
def test_every_command_composes(cell, tmp_path):
    """Each `align` command of the grid against the shipped configuration."""
    for step in cell.steps(cell, Place(tmp_path, tmp_path)):
        module = step.command[2]
        if not module.startswith("align."):
            continue
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(ROOT / "hydra_conf"), version_base="1.3"):
            config = compose(config_name=module.removeprefix("align."), overrides=list(step.command[3:]))
        if module == "align.train":
            assert config.data.eval_size == 0
            assert ("_target_" in config.positions) == cell.name.endswith("_positions")
