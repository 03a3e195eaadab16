"""`python -m tests.fuzz`: thousands of damaged inputs, drawn by a seed, with what is left to do and every find.

A find is printed, and written to `--finds` as an entry of the corpus: give it the sentence that it should end in, and
it is a test.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.fuzz import reading
from tests.fuzz.watching import run

SHARES = {"rows": 0.6, "documents": 0.25, "questions": 0.15}  # of --files


def main() -> int:
    """1 where anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--files", type=int, default=2000, help="files of rows, documents and questions")
    parser.add_argument("--words", type=int, default=500, help="command lines")
    parser.add_argument("--seed", default="0", help="another seed draws other inputs")
    parser.add_argument("--finds", type=Path, default=Path("fuzz-finds"), help="folder for what was found")
    parser.add_argument("--only", choices=reading.KINDS, help="one kind of input")
    given = parser.parse_args()
    counts = {kind: round(given.files * share) for kind, share in SHARES.items()} | {"words": given.words}
    jobs = [
        (kind, f"{given.seed}/{i}")
        for kind, count in counts.items()
        if given.only in (None, kind)
        for i in range(count)
    ]
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="align-fuzz-") as folder:
        found, said = run(jobs, Path(folder), console)
    for (kind, seed), problem in found:
        keep(kind, seed, problem, given.finds)
    console.print(
        f"{len(jobs)} inputs: {said['sentence']} ended in a sentence, {said['result']} in a result, "
        f"{len(found)} in something else" + (f", see {given.finds}" if found else ""),
        highlight=False,
        markup=False,
    )
    return 1 if found else 0


def keep(kind: str, seed: str, problem: str, folder: Path) -> None:
    """Writes an input down as an entry of the corpus, its sentence still to be given."""
    folder.mkdir(parents=True, exist_ok=True)
    given = reading.drawn(kind, seed)
    entry: dict[str, Any] = {"kind": kind, "seed": seed, "was": problem, "sentence": ""}
    if kind == "words":
        entry |= {"command": given[0], "words": given[1]}
    else:
        entry |= {"name": given[0], **_written(given[1])}
    path = folder / f"{kind}-{seed.replace('/', '-')}.json"
    path.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")


def _written(content: bytes) -> dict[str, str]:
    """A file's content so that people can read it, where it is text."""
    try:
        return {"text": content.decode("ascii")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}


if __name__ == "__main__":
    sys.exit(main())
