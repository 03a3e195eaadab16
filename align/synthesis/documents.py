"""Where the text comes from: Python's language reference, text files, rows with a `text` column, folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.data.sources import SUFFIXES, open_sources, read_rows
from align.errors import UserError

EMBEDDED = "embedded"
TEXT_SUFFIXES = (".txt", ".md", ".markdown", ".rst")
KEY = "pipeline.documents"


@dataclass(frozen=True)
class Document:
    """One text to ask questions about.

    Attributes:
        id: unique in the run: the row's `id` where it has one, else its place.
        source: where it stands: `notes.md`, `corpus.jsonl:17`, `pydoc_data.topics:with`.
        text: not empty.
    """

    id: str
    source: str
    text: str


def load_documents(path: str | None) -> list[Document]:
    """The documents behind `pipeline.documents`, in a fixed order.

    Args:
        path: `embedded`, a text or Markdown file (one document), JSON Lines, JSON or Parquet with a column
            `text` (a document a row), or a folder of these.

    Raises:
        UserError: nothing is there, it holds no text, a row has no `text`, or two rows share an `id`.
    """
    if not path:
        raise UserError(f"{KEY} is not set: name a file or a folder, or `{EMBEDDED}`.")
    if path == EMBEDDED:
        return _python_reference()
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"{KEY}={path} does not exist: name a file or a folder, or `{EMBEDDED}`.")
    documents = [document for file in _files(place) for document in _read(file, place)]
    if not documents:
        raise UserError(f"{KEY}={path} holds no text.")
    _check_unique(documents)
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


def _files(place: Path) -> list[Path]:
    known = (*TEXT_SUFFIXES, *SUFFIXES)
    if place.is_dir():
        found = [path for path in place.rglob("*") if path.is_file() and path.suffix.lower() in known]
        files = sorted(path for path in found if not _hidden(path.relative_to(place)))
        if not files:
            raise UserError(f"{KEY}={place} holds no file ending in {', '.join(known)}.")
        return files
    if place.suffix.lower() not in known:
        raise UserError(f"{KEY}={place} has an unknown ending: use {', '.join(known)}.")
    return [place]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read(file: Path, root: Path) -> Iterator[Document]:
    """The documents of one file; `root` is what the user named, so that ids do not hold its place."""
    name = file.name if file == root else file.relative_to(root).as_posix()
    if file.suffix.lower() in TEXT_SUFFIXES:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not UTF-8 text: convert it.") from error
        if text.strip():
            yield Document(name, name, text)
        return
    for row in read_rows(open_sources(str(file), key=KEY).train):
        if not isinstance(row.values.get("text"), str):
            raise UserError(f"{row.source}: a document needs a column `text` with a string.")
        text = row.values["text"]
        if text.strip():
            where = f"{name}:{row.source.rpartition(':')[2]}"
            yield Document(str(row.values.get("id", where)), where, text)


def _check_unique(documents: Sequence[Document]) -> None:
    first: dict[str, str] = {}
    for document in documents:
        if document.id in first:
            raise UserError(
                f"{document.source}: the id {document.id} is already that of {first[document.id]}: "
                "give each document an id of its own."
            )
        first[document.id] = document.source
