"""Documents in files that have to be opened by a library: zip archives and PDF."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from align.core.errors import UserError

MOST_BYTES = 8 * 2**30  # of all archives unpacked: more is taken for a mistake, or for a trap
MOST_DEPTH = 4  # archives in each other; one that holds itself has no end


@dataclass
class Room:
    """What archives may still take, shared by all that are read together.

    Attributes:
        left: bytes of unpacked files.
        depth: archives that the next one lies in.
    """

    left: int = MOST_BYTES
    depth: int = 0


@contextmanager
def unpacked(path: Path, room: Room) -> Iterator[Path]:
    """A folder with the archive's files, for as long as the context lasts.

    Args:
        path: of the archive.
        room: what it may take; it takes it.

    Raises:
        UserError: no zip, encrypted, damaged, larger than what is left, or too deep in others.
    """
    if room.depth == MOST_DEPTH:
        raise UserError(
            f"{path} lies in {MOST_DEPTH} archives in each other: unpack them and name the folder."
        )
    with TemporaryDirectory(prefix="align-zip-") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
                if size > room.left:
                    raise UserError(
                        f"{path} unpacks to {size / 2**30:.1f} GiB, where {room.left / 2**30:.1f} of the "
                        f"{MOST_BYTES / 2**30:.0f} GiB for all archives are left: unpack it and name the folder."
                    )
                room.left -= size
                archive.extractall(folder)  # drops drives, leading slashes and `..` from names
        except UserError:
            raise
        except Exception as error:  # of a damaged file any: its decompressors have errors of their own
            reason = str(error) or type(error).__name__
            raise UserError(
                f"{path} cannot be unpacked ({reason}): unpack it and name the folder."
            ) from error
        room.depth += 1
        try:
            yield Path(folder)
        finally:
            room.depth -= 1


def read_pdf(path: Path) -> tuple[str, int]:
    """The text of all pages, a blank line between them, and how many pages have none: blank or scanned ones.

    Raises:
        UserError: pypdf is not installed, or the file is encrypted, damaged, no PDF, or of a kind that pypdf lacks.
    """
    if importlib.util.find_spec("pypdf") is None:
        raise UserError(f"{path}: PDF needs `pip install 'long-preference[pdf]'`, or convert it to text.")
    from pypdf import PdfReader

    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise UserError(f"{path} is encrypted: save it without a password.")
        pages = [page.extract_text().strip() for page in reader.pages]
        return "\n\n".join(pages).strip(), pages.count("")
    except UserError:
        raise
    except (
        Exception
    ) as error:  # of a damaged file any: NotImplementedError, DependencyError, AttributeError, …
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read as PDF ({reason}): convert it to text.") from error
