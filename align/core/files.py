"""Files that are whole or absent, and the folder of what can be made again."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO


def write_atomically(path: Path, text: str) -> None:
    """Writes a UTF-8 file that is either whole or absent, whenever the process dies."""
    with writing_atomically(path) as file:
        file.write(text)


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Writes a file, a picture say, that is either whole or absent, whenever the process dies."""
    with _staged(path) as staging, staging.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def writing_atomically(path: Path) -> Iterator[TextIO]:
    """A UTF-8 file to write to, which takes its name when the block ends; after an exception it never does."""
    with (
        _staged(path) as staging,
        staging.open("w", encoding="utf-8", newline="\n", errors="surrogatepass") as file,
    ):
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """A file beside `path` to fill, which takes its name when the block ends; after an exception it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Containers that share a folder may have the same process id.
    staging = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        yield staging
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where converted copies live: `$ALIGN_CACHE`, else `align` in the user's cache folder."""
    if "ALIGN_CACHE" in os.environ:
        return Path(os.environ["ALIGN_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "align"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes sorted keys, atomically: a kill leaves the old file or the new one; NaN and infinity become null."""
    write_atomically(path, json.dumps(jsonable(content), indent=2, sort_keys=True, allow_nan=False) + "\n")


def jsonable(content: Any) -> Any:
    """The same with null in the place of numbers that JSON does not have: `{"loss": nan}` is `{"loss": None}`."""
    return numbers_only(content)[0]


def numbers_only(value: Any) -> tuple[Any, int]:
    """A JSON value with null for NaN and infinity, which JSON does not have, and how many there were."""
    if isinstance(value, float) and not math.isfinite(value):
        return None, 1
    if isinstance(value, Mapping):
        found = {key: numbers_only(own) for key, own in value.items()}
        return {key: own for key, (own, _) in found.items()}, sum(count for _, count in found.values())
    if isinstance(value, list | tuple):
        entries = [numbers_only(own) for own in value]
        return [own for own, _ in entries], sum(count for _, count in entries)
    return value, 0
