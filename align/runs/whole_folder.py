"""A folder that is whole or absent, whenever the process that writes it dies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from align.runs.exclusive import exclusive


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the name `output` when the block ends; after an exception it never does.

    It lies in a folder beside `output` that is this process's own and goes at the end; whatever else the block puts
    there goes with it. What a killed process has left there is removed by the next one for the same `output`.

    Args:
        output: is not there, or is an empty folder.

    Raises:
        UserError: another process is writing a folder of this name.
    """
    around = output.with_name(f".{output.name}.unfinished")
    with exclusive(around):
        try:
            for left in around.iterdir():
                if left.is_dir():
                    shutil.rmtree(left)
            staging = around / output.name
            staging.mkdir()
            yield staging
            os.rename(staging, output)
        finally:
            shutil.rmtree(around, ignore_errors=True)
