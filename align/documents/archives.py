"""Documents in files that have to be opened by a library: zip archives and PDF."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from align.core.errors import UserError

MOST_BYTES = 8 * 2**30  # of an unpacked archive: more is taken for a mistake, or for a trap


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A folder with the archive's files, for as long as the context lasts.

    Raises:
        UserError: no zip, encrypted, damaged, or larger than `MOST_BYTES`.
    """
    with TemporaryDirectory(prefix="align-zip-") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
                if size > MOST_BYTES:
                    raise UserError(
                        f"{path} unpacks to {size / 2**30:.0f} GiB: unpack it and name the folder."
                    )
                archive.extractall(folder)  # drops drives, leading slashes and `..` from names
        except UserError:
            raise
        except Exception as error:  # of a damaged file any: its decompressors have errors of their own
            reason = str(error) or type(error).__name__
            raise UserError(
                f"{path} cannot be unpacked ({reason}): unpack it and name the folder."
            ) from error
        yield Path(folder)


def read_pdf(path: Path) -> str:
    """The text of all pages, a blank line between them; empty for scanned pages without text.

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
        return "\n\n".join(page.extract_text().strip() for page in reader.pages).strip()
    except UserError:
        raise
    except (
        Exception
    ) as error:  # of a damaged file any: NotImplementedError, DependencyError, AttributeError, …
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read as PDF ({reason}): convert it to text.") from error
