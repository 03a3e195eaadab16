"""Rows that are made without a model, on the disk as they come: a killed run goes on behind the last whole one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from align.core.display import progress_bar
from align.core.errors import UserError
from align.generation.ledger import cut_torn_line
from align.generation.stage import WORK
from align.synthesis.pipeline import write_rows

if TYPE_CHECKING:
    from typing import Self, TextIO

    from transformers import PreTrainedTokenizerBase

    from align.generation.stage import Workspace

SYNCED = 8_000_000  # characters that are written between two waits for the disk


class RowLog:
    """A JSON Lines file of rows, each with the state of the work behind it.

    with RowLog(folder / "rows.jsonl", maker=tokenizer_digest(tokenizer)) as log:
        place = log.state["place"] if log.state else 0      # go on there
        log.append({"id": "r1", …}, {"place": 17})

    Args:
        path: of the file; its folder is made where it does not exist.
        maker: what tells the tokenizer; rows of another one are not gone on with.

    Attributes:
        state: of the last whole row; None where there is none.
        count: whole rows.

    Raises:
        UserError: another tokenizer has made its rows, or a whole line cannot be read.
    """

    def __init__(self, path: Path, *, maker: str) -> None:
        self.path, self.maker = path, maker
        self.state: dict[str, Any] | None = None
        self.count = 0
        self._file: TextIO | None = None
        self._waiting = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            cut_torn_line(path)
            for line in self._lines():
                self.state, self.count = line["state"], self.count + 1

    def __enter__(self) -> Self:
        """Opens the file to append to."""
        self._file = self.path.open("a", encoding="utf-8", errors="surrogatepass", newline="\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""
        if self._file is not None:
            self._file.close()

    def append(self, row: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Stores a row; a process that is killed afterwards has it, a machine that loses its power may not."""
        assert self._file is not None
        line = json.dumps({"maker": self.maker, "state": state, "row": row}, ensure_ascii=False)
        self._file.write(f"{line}\n")
        self._file.flush()
        self.state, self.count = dict(state), self.count + 1
        self._waiting += len(line)
        if self._waiting > SYNCED:
            os.fsync(self._file.fileno())
            self._waiting = 0

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row, in order."""
        for line in self._lines():
            yield line["row"]

    def _lines(self) -> Iterator[dict[str, Any]]:
        with self.path.open(encoding="utf-8", errors="surrogatepass", newline="\n") as file:
            for number, text in enumerate(file, start=1):
                try:
                    line = json.loads(text)
                    maker = line["maker"]
                    line["state"], line["row"]
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(
                        f"{self.path}:{number} is no stored row: make all rows again with resume=never."
                    ) from error
                if maker != self.maker:
                    raise UserError(
                        f"{self.path}:{number} was made with another tokenizer than model.path has now: name another "
                        "output folder, or make all rows again with resume=never."
                    )
                yield line


class Work(Protocol):
    """What makes rows one after the other, and can be taken up anywhere."""

    @property
    def place(self) -> int:
        """How many documents are behind it, for the bar."""

    @property
    def state(self) -> dict[str, Any]:
        """All that decides on later rows and counts, as plain values."""

    def go_on(self, state: dict[str, Any]) -> None:
        """Takes up the state of an earlier start."""

    def rows(self, number: int) -> Iterator[dict[str, Any]]:
        """The rows behind the first `number`; when one is given, `state` is the one behind it."""


def make_rows(work: Work, workspace: Workspace, *, documents: int) -> tuple[Path, int]:
    """`train.jsonl` with all rows of the work, and how many; those of an earlier start are kept.

    Args:
        work: at its beginning.
        workspace: of the run.
        documents: how many the work goes through.
    """
    path = workspace.output / WORK / "rows.jsonl"
    with (
        RowLog(path, maker=tokenizer_digest(workspace.tokenizer)) as log,
        progress_bar(workspace.console) as progress,
    ):
        if log.state is not None:
            work.go_on(log.state)
        task = progress.add_task("documents", total=documents, completed=work.place)
        for row in work.rows(log.count):
            log.append(row, work.state)
            progress.update(task, completed=work.place)
        progress.update(task, completed=work.place)
        return write_rows(workspace.output, log.rows()), log.count


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Changes with the tokens that a text gets, and with the names of special ones."""
    content = [tokenizer.backend_tokenizer.to_str(), str(tokenizer.special_tokens_map)]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()
