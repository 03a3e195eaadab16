"""Results of `make gpu`: one file a card, `benchmarks/results/gpu/CARD.json`, one entry a stage. Needs no torch.

    {"card": "NVIDIA H100 80GB HBM3",
     "stages": {"kernels": {"result": {…}, "seconds": 41.2, "commit": "abc1234", "date": "2026-12-01",
                            "versions": {"torch": "2.11.0"}, "scale": "full"}, …}}

An entry may have `error`, the last lines of the traceback that ended its stage; `skipped`, a sentence; `unfinished`,
while its stage runs and where the whole run was ended in it.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from align.core.files import write_json

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "results" / "gpu"
CARRIED = ".whl/*/commit"  # collect.sh writes it, for machines to which `.git` is not carried
STAGES = ("environment", "kernels", "step", "speed", "length", "planner", "miniature")

Entry = dict[str, Any]


def slug(card: str) -> str:
    """A file name of a card's: `NVIDIA H100 80GB HBM3` is `nvidia-h100-80gb-hbm3`."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")


def file_of(folder: Path, card: str) -> Path:
    """Where a card's results lie."""
    return folder / f"{slug(card)}.json"


def read(path: Path) -> dict[str, Entry]:
    """Stage → entry, of one file; empty where there is none, or where the file is another kind of result."""
    if not path.is_file():
        return {}
    found: dict[str, Entry] = json.loads(path.read_text()).get("stages", {})
    return found


def replace_stage(path: Path, card: str, stage: str, entry: Mapping[str, Any]) -> None:
    """Writes one stage's entry and leaves the others as they are; the file is whole whenever the process dies."""
    write_json(path, {"card": card, "stages": read(path) | {stage: dict(entry)}})


def newest(stage: str, folder: Path = FOLDER) -> tuple[str, Entry] | None:
    """The card and the entry that was measured last, at full scale and without an error; None where none was."""
    found = [
        (entry["date"], card, entry)
        for card, stages in _cards(folder)
        for name, entry in stages.items()
        if name == stage and entry["scale"] == "full" and not entry.keys() & {"error", "skipped"}
    ]
    if not found:
        return None
    _, card, entry = max(found, key=lambda one: one[:2])
    return card, entry


def _cards(folder: Path) -> Iterator[tuple[str, dict[str, Entry]]]:
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        if "stages" in content:
            yield content["card"], content["stages"]


def commit() -> str:
    """The checkout's commit, with a `+` where files differ from it; what was carried along where there is no git."""
    try:
        head, changed = (
            _git(*words) for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.CalledProcessError):
        carried = {path.read_text().strip() for path in ROOT.glob(CARRIED)} - {""}
        return " or ".join(sorted(carried)) or "unknown"
    return f"{head}{'+' * bool(changed)}"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
