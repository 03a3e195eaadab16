"""Where the text comes from: Python's language reference, text, PDF, rows with a `text` column, folders, zips."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from align.core.errors import AlignWarning, UserError
from align.core.surrogates import whole_text
from align.data.sources import SUFFIXES, open_sources, read_rows
from align.documents.archives import Room, read_pdf, unpacked
from align.documents.left_out import LeftOut, say

EMBEDDED = "embedded"
TEXT_SUFFIXES = (".txt", ".md", ".markdown", ".rst")
ZIP, PDF = ".zip", ".pdf"
KEY = "pipeline.documents"


@dataclass(frozen=True)
class Document:
    """One text to ask questions about.

    Attributes:
        id: unique in the run: the row's `id` where it has one, neither null nor empty, else its place.
        source: where it stands: `notes.md`, `corpus.jsonl:17`, `pydoc_data.topics:with`.
        text: not empty.
    """

    id: str
    source: str
    text: str


@dataclass
class Reading:
    """One call of `load_documents`: the key for complaints, what archives may take, and what is left out."""

    key: str
    room: Room = field(default_factory=Room)
    left_out: LeftOut = field(default_factory=LeftOut)


def load_documents(path: str | None, *, key: str = KEY) -> list[Document]:
    """The documents of a file or folder, in a fixed order; what gives none is said in a line on stderr.

    Args:
        path: `embedded`, a text, Markdown or PDF file (one document), JSON Lines, JSON, Parquet or a folder
            saved by `datasets` with a column `text` (a document a row), a zip, or a folder of these.
        key: of the configuration, for complaints.

    Raises:
        UserError: nothing is there, it holds no text, a row has no `text`, or two rows share an `id`.
    """
    if not path:
        raise UserError(f"{key} is not set: name a file or a folder, or `{EMBEDDED}`.")
    if path == EMBEDDED:
        return _python_reference()
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"{key}={path} does not exist: name a file or a folder, or `{EMBEDDED}`.")
    reading = Reading(key)
    documents = list(_read_all(place, "", reading))
    if not documents:
        left_out = reading.left_out.sentence()
        raise UserError(f"{key}={path} holds no text{f' ({left_out})' if left_out else ''}.")
    _check_unique(documents)
    say(key, path, reading.left_out)
    return documents


def fingerprint(documents: Sequence[Document]) -> str:
    """SHA-256 of ids and texts: says whether a resumed run still reads the same documents."""
    digest = hashlib.sha256()
    for document in documents:
        for part in (document.id, document.text):
            encoded = part.encode("utf-8", "surrogatepass")
            digest.update(f"{len(encoded)}:".encode() + encoded)
    return digest.hexdigest()


def _python_reference() -> list[Document]:
    """Python's language reference, which every CPython carries (PSF licence); never imported otherwise."""
    from pydoc_data.topics import topics

    return [Document(name, f"pydoc_data.topics:{name}", text) for name, text in sorted(topics.items())]


def _read_all(place: Path, prefix: str, reading: Reading) -> Iterator[Document]:
    """The documents of a file or folder; `prefix` stands before every name, so that a zip's can be told."""
    if place.is_dir() and any((place / name).is_file() for name in ("dataset_dict.json", "state.json")):
        yield from _read_rows(place, f"{prefix}{place.name}", reading)
        return
    for file in _files(place, reading):
        name = prefix + (file.name if file == place else file.relative_to(place).as_posix())
        kind = file.suffix.lower()
        if kind == ZIP:
            yield from _read_zip(file, name, reading)
        elif kind in SUFFIXES:
            yield from _read_rows(file, name, reading)
        else:
            whole, empty = read_pdf(file) if kind == PDF else (_read_text(file), 0)
            text = _cleaned(whole)
            if text.strip():
                reading.left_out.pages += empty
                yield Document(name, name, text)
            else:
                reading.left_out.files.append(name)


def _read_zip(file: Path, name: str, reading: Reading) -> Iterator[Document]:
    """The documents of a zip; complaints name its files under the zip's own name, since the folder is gone by then."""
    with unpacked(file, reading.room) as folder:
        try:
            yield from _read_all(folder, f"{name}/", reading)
        except UserError as error:
            raise UserError(str(error).replace(str(folder), name)) from error


def _cleaned(text: str) -> str:
    """Without the mark of its byte order at the beginning, with lines that end alike, and all of it text."""
    text, halves = whole_text(text)
    if halves:
        warnings.warn(
            "a document holds halves of surrogate pairs, which are no text: U+FFFD stands in their place.",
            AlignWarning,
            stacklevel=1,
        )
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _files(place: Path, reading: Reading) -> list[Path]:
    known = (*TEXT_SUFFIXES, *SUFFIXES, PDF, ZIP)
    if place.is_dir():
        found = [path for path in place.rglob("*") if path.is_file() and not _hidden(path.relative_to(place))]
        files = sorted(path for path in found if path.suffix.lower() in known)
        if not files:
            raise UserError(f"{reading.key}={place} holds no file ending in {', '.join(known)}.")
        others = (path.suffix.lower() for path in found)
        reading.left_out.endings.update(ending for ending in others if ending not in known)
        return files
    if place.suffix.lower() not in known:
        raise UserError(f"{reading.key}={place} has an unknown ending: use {', '.join(known)}.")
    return [place]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: convert it.") from error


def _read_rows(place: Path, name: str, reading: Reading) -> Iterator[Document]:
    """A document a row; what a data set or a folder holds out is read too, since nothing is trained yet."""
    sources = open_sources(str(place), key=reading.key)
    for row in read_rows((*sources.train, *sources.held_out)):
        if not isinstance(row.values.get("text"), str):
            raise UserError(f"{row.source}: a document needs a column `text` with a string.")
        text = _cleaned(row.values["text"])
        if text.strip():
            line = row.source.rpartition(":")[2]
            where = row.source if place.is_dir() else f"{name}:{line}"  # a saved data set names its split
            name_of = row.values.get("id")
            yield Document(where if name_of in (None, "") else str(name_of), where, text)
        else:
            reading.left_out.rows += 1


def _check_unique(documents: Sequence[Document]) -> None:
    first: dict[str, str] = {}
    for document in documents:
        if document.id in first:
            raise UserError(
                f"{document.source}: the id {document.id} is already that of {first[document.id]}: "
                "give each document an id of its own."
            )
        first[document.id] = document.source
