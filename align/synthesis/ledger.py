"""Finished calls on disk: appended as they come, so that a killed run loses at most the batch in hand."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from align.errors import UserError
from align.synthesis.generators import Completion, Request


class Ledger:
    """One JSON Lines file of a stage: request digest, id for people, completion.

    A line that was being written when the process died has no line break; it is cut off on opening.

    Raises:
        UserError: a whole line is no completion.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.finished: dict[str, Completion] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            _cut_torn_line(path)
            self._read()

    def append(self, group: Iterable[tuple[Request, Completion]]) -> None:
        """Stores a group; it is on the disk when this returns. Calls already stored are left as they are."""
        new = [(request, completion) for request, completion in group if request.digest not in self.finished]
        lines = [
            json.dumps(
                {"request": request.digest, "id": request.id, **asdict(completion)}, ensure_ascii=False
            )
            for request, completion in new
        ]
        with self.path.open("a", encoding="utf-8", errors="surrogatepass", newline="\n") as file:
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        self.finished.update((request.digest, completion) for request, completion in new)

    def _read(self) -> None:
        text = self.path.read_bytes().decode("utf-8", "surrogatepass")
        for number, line in enumerate(text.split("\n")[:-1], start=1):
            try:
                values = json.loads(line)
                completion = Completion(values["text"], values["tokens"], values["finish"])
                self.finished[values["request"]] = completion
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{self.path}:{number} is no stored answer: remove that line, and its call is made again."
                ) from error


def _cut_torn_line(path: Path) -> None:
    with path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
            os.fsync(file.fileno())
