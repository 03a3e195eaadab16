"""Files of damaged rows and texts in every form that is read, and files that are damaged themselves."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.values import TEXTS, odd, some_rows

Content = tuple[str, bytes]  # a file's name and what is in it


def rows_file(random: Random) -> Content:
    """A file that `data.path` may name."""
    name, content = random.choice(_ROW_FILES)(random)
    return (name, bytes_damaged(random, content)) if random.random() < 0.25 else (name, content)


def document_file(random: Random) -> Content:
    """A file that `pipeline.documents` may name."""
    name, content = random.choice(_DOCUMENT_FILES)(random)
    return (name, bytes_damaged(random, content)) if random.random() < 0.5 else (name, content)


def question_file(random: Random) -> Content:
    """A file that a suite's `path` may name."""
    name, content = random.choice((_json_lines, _zipped_lines))(random)
    return (name, bytes_damaged(random, content)) if random.random() < 0.25 else (name, content)


def dumped(value: Any) -> bytes:
    """JSON, lone surrogates written as they are in a third of all files by whoever escaped nothing."""
    return json.dumps(value, ensure_ascii=True).encode()


def _json_lines(random: Random) -> Content:
    lines = [dumped(row) for row in some_rows(random)]
    if random.random() < 0.3:
        lines.insert(random.randint(0, len(lines)), random.choice(_LINES))
    if random.random() < 0.3:
        lines = [json.dumps(json.loads(line), ensure_ascii=False).encode("utf-8", "surrogatepass") if line[:1] == b"{"
                 and line[-1:] == b"}" and _is_json(line) else line for line in lines]  # fmt: skip
    return "rows.jsonl", random.choice((b"\n", b"\n", b"\r\n", b"\n\n")).join(lines)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


_LINES = (
    b"",
    b"   ",
    b"null",
    b"[]",
    b"{",
    b"{}{}",
    b'"text"',
    b"NaN",
    b"[" * 100_000,
    b'{"prompt": ' + b"9" * 5000 + b"}",
    b'{"prompt": "a", "prompt": "b"}',
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    b"{'prompt': 1}",
    b"\x00",
    b'{"prompt": "w8", "chosen": "w9", "rejected": "w10"}, ',
)


def _zipped_lines(random: Random) -> Content:
    return "rows.jsonl.gz", gzip.compress(_json_lines(random)[1], mtime=0)


def _json_list(random: Random) -> Content:
    rows = some_rows(random)
    whole = random.choice(
        (rows, rows, {"data": rows}, rows[0], {str(i): row for i, row in enumerate(rows)}, odd(random))
    )
    return "rows.json", dumped(whole)


def _json_with_lines(random: Random) -> Content:
    return "rows.json", _json_lines(random)[1]


def _parquet(random: Random) -> Content:
    """Columns as pyarrow takes them, and some of types that text does not have."""
    rows = [row for row in some_rows(random) if isinstance(row, dict)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {_utf8(name): _array(random, [row.get(name) for row in rows]) for name in names}
    if random.random() < 0.3:
        columns[random.choice(("prompt", "x", "chosen"))] = random.choice(_ARRAYS)(len(rows))
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return "rows.parquet", buffer.getvalue()


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _array(random: Random, values: list[Any]) -> Any:
    try:
        if random.random() < 0.2:
            raise pa.ArrowInvalid
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError, ValueError, TypeError):
        return pa.array([None if value is None else _utf8(str(value))[:1000] for value in values])


_ARRAYS: tuple[Callable[[int], Any], ...] = (
    lambda n: pa.array([2**50] * n, pa.timestamp("s")),
    lambda n: pa.array([-(2**31)] * n, pa.date32()),
    lambda n: pa.array([b"\xff\xfe"] * n, pa.binary()),
    lambda n: pa.array(["w8"] * n).dictionary_encode(),
    lambda n: pa.array([1.5] * n, pa.float16()),
    lambda n: pa.array([None] * n, pa.null()),
    lambda n: pa.array([[("a", 1)]] * n, pa.map_(pa.string(), pa.int64())),
    lambda n: pa.array([2**64 - 1] * n, pa.uint64()),
    lambda n: pa.array([5] * n, pa.duration("ns")),
    lambda n: pa.array(["w8"] * n, pa.large_string()),
    lambda n: pa.array([[1, 2]] * n, pa.list_(pa.int32(), 2)),
    lambda n: pa.array([{"a": {"b": None}}] * n),
)


def _csv(random: Random) -> Content:
    rows = [row for row in some_rows(random) if isinstance(row, dict)]
    names = list(rows[0]) if rows else []
    lines = [
        ",".join(names),
        *(",".join(json.dumps(str(row.get(name)))[:200] for name in names) for row in rows),
    ]
    return "rows.csv", "\n".join(lines).encode("utf-8", "surrogatepass")


_ROW_FILES: tuple[Callable[[Random], Content], ...] = (
    *(_json_lines,) * 4,
    _zipped_lines,
    *(_json_list,) * 2,
    _json_with_lines,
    *(_parquet,) * 2,
    _csv,
)


def _text(random: Random) -> Content:
    name = random.choice(("notes.txt", "notes.md", "notes.rst", "NOTES.TXT"))
    text = "\n\n".join(random.choice(TEXTS) for _ in range(random.randint(0, 4)))
    encoding = random.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
    return name, text.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")


def _documents(random: Random) -> Content:
    name, content = random.choice((_json_lines, _json_list, _parquet, _zipped_lines))(random)
    return name, content


def plain_pdf(text: str, *, pages: int = 1) -> bytes:
    """A PDF of a few lines, written out by hand: one font, a line of text a page."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(pages))
    parts = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {pages} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i in range(pages):
        stream = f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET"
        parts.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /Contents {5 + 2 * i} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        parts.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    out, offsets = "%PDF-1.4\n", []
    for number, part in enumerate(parts, start=1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{part}\nendobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size = len(parts) + 1
    trailer = f"trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    return (out + f"xref\n0 {size}\n0000000000 65535 f \n{table}{trailer}").encode("latin-1")


def _pdf(random: Random) -> Content:
    content = plain_pdf(random.choice(("w8 w9", "", "a(b", "\\251")), pages=random.randint(1, 3))
    if random.random() < 0.7:
        content = _swapped(random, content)
    if random.random() < 0.3:
        from pypdf import PdfReader, PdfWriter

        try:
            writer = PdfWriter(clone_from=PdfReader(io.BytesIO(content)))
            writer.compress_identical_objects()
            if random.random() < 0.5:
                writer.encrypt(random.choice(("", "secret")), algorithm="RC4-128")
            buffer = io.BytesIO()
            writer.write(buffer)
            content = buffer.getvalue()
        except Exception:  # the file was damaged before: it is kept as it is
            return "book.pdf", content
    return "book.pdf", content


_PDF_WORDS = (
    b"/Type",
    b"/Kids",
    b"/Count",
    b"/Length",
    b"obj",
    b"stream",
    b"xref",
    b"/Root",
    b"/Font",
    b"/Page",
    b"Tf",
)
_PDF_VALUES = (
    b"",
    b"/Filter /FlateDecode",
    b"/Filter /Nothing",
    b"-1",
    b"1 0 R",
    b"2 0 R",
    b"99 0 R",
    b"<<",
    b">>",
    b"[",
)


def _swapped(random: Random, content: bytes) -> bytes:
    """A word of the file's grammar replaced, so that its structure is wrong and not only a byte."""
    word = random.choice(_PDF_WORDS)
    return content.replace(word, word + b" " + random.choice(_PDF_VALUES) + b" ", random.randint(1, 2))


def _zip(random: Random, depth: int = 0) -> Content:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", random.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED))) as archive:
        for _ in range(random.randint(0, 3)):
            kinds = [_text, _documents, _pdf] + ([lambda r: _zip(r, depth + 1)] if depth < 2 else [])
            name, content = random.choice(kinds)(random)
            archive.writestr(zipfile.ZipInfo(random.choice(_NAMES) + name), content)
    return "books.zip", buffer.getvalue()


_NAMES = (
    "",
    "",
    "",
    "a/",
    "../",
    "../../",
    "/tmp/",
    "C:\\",
    "a\\..\\",
    ".hidden/",
    "a" * 300 + "/",
    "x\x00",
    "con/",
    "ü/",
)

_DOCUMENT_FILES: tuple[Callable[[Random], Content], ...] = (
    *(_text,) * 2,
    *(_documents,) * 2,
    *(_pdf,) * 3,
    *(_zip,) * 3,
)


def bytes_damaged(random: Random, content: bytes) -> bytes:
    """Cut, flipped, doubled, or with bytes put in."""
    kind = random.randrange(6)
    at = random.randint(0, len(content))
    if kind == 0:
        return content[:at]
    if kind == 1:
        mutable = bytearray(content)
        for _ in range(random.choice((1, 3, 20)) if content else 0):
            mutable[random.randrange(len(mutable))] ^= 1 << random.randrange(8)
        return bytes(mutable)
    if kind == 2:
        return content[:at] + random.randbytes(random.choice((1, 4, 64))) + content[at:]
    if kind == 3:
        return (
            random.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"PK\x03\x04", b"PAR1", b"%PDF-"))
            + content
        )
    if kind == 4:
        return content + content[at:]
    stop = min(len(content), at + random.choice((1, 8, 100)))
    return content[:at] + content[stop:]


def put(content: Content, folder: Path) -> Path:
    """The file in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / content[0]
    path.write_bytes(content[1])
    return path
