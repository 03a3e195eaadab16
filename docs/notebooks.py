"""`python -m docs.notebooks` executes the notebooks of `examples/` and stores them with what they show.

They run in a copy of the folder, so that nothing of an earlier run is met. Speeds and times, which every run has its
own of, are blanked, and an output that names a path of this machine is an error.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parent.parent / "examples"
# What differs from run to run: tokens a second, seconds, a clock.
CHURNING = (
    r"[\d.,]+(?= tokens/s)",
    r"(?<=training time)([^\n\d]*)\d+(?= s)",
    r"(?<=seconds, this start)([^\n\d]*)\d+",
    r"(?<=tokens_per_second)( +)[\d.e+]+",
    r"(?<=_runtime)( +)[\d.e+]+(?: +[\d.e+]+)?",
    r"(?<=_per_second)( +)[\d.e+]+(?: +[\d.e+]+)?",
    r"\d+:\d\d(?::\d\d)?",
)


def main() -> None:
    """All of them, or those that are named."""
    for path in sorted(EXAMPLES.glob("*.ipynb")):
        if len(sys.argv) == 1 or path.stem in sys.argv[1:]:
            notebook = cleaned(execute(path))
            if machine_paths(notebook):
                sys.exit(f"{path.name}: an output names {machine_paths(notebook)[0]}")
            nbformat.write(notebook, path)
            print(path.name)


def execute(path: Path, *, timeout: int = 600) -> Any:
    """The notebook with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "examples"
        shutil.copytree(path.parent, work, ignore=shutil.ignore_patterns("outputs", "__pycache__", "*.ipynb"))
        NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": str(work)}}).execute(
            env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}
        )
    return notebook


def cleaned(notebook: Any) -> Any:
    """Without times, and with one line a line of output, as differences want it."""
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", ()):
            if "text" in output:
                output["text"] = blanked(output["text"])
            for kind, data in output.get("data", {}).items():
                if kind.startswith("text/"):
                    output["data"][kind] = blanked(data)
            output.pop("transient", None)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def blanked(text: str) -> str:
    """The same text with dots for the digits of `CHURNING`, so that tables stay straight."""
    for pattern in CHURNING:
        text = re.sub(pattern, lambda found: re.sub(r"[\d.,e+]", "·", found[0]), text)
    return text


def machine_paths(notebook: Any) -> list[str]:
    """Absolute paths in the outputs."""
    pattern = re.compile(
        r"(?<![\w.~}$<:/])/(?:home|root|Users|work|mnt|scratch|tmp|usr|opt|var|private)/[\w./-]+"
    )
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [found for output in outputs for found in pattern.findall(str(dict(output)))]


if __name__ == "__main__":
    main()
