"""Finished calls on disk: appended as they come, so that a killed run loses at most the batch in hand."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from align.core.errors import UserError
from align.generation.generators import Completion, stored_completion

Value = TypeVar("Value")


class Call(Protocol):
    """What is recorded: a request, or a text to score."""

    @property
    def id(self) -> str:
        """For people."""

    @property
    def digest(self) -> str:
        """By which it is recognised."""


class LinesFile(Generic[Value]):
    """One JSON Lines file of a stage: digest of the call, its id for people, whose it is, and what came of it.

    A line that was being written when a process died has no line break; it is cut off on opening. So only the process
    that writes a file may open it: others call `read`.

    Args:
        path: of the file; its folder is made where it does not exist.
        weights: what tells the weights that answer, see `weights_of`; None where that is not known, and then
            nothing is compared.

    Raises:
        UserError: a whole line cannot be read, or other weights have answered.
    """

    def __init__(self, path: Path, *, weights: str | None = None) -> None:
        self.path = path
        self.weights = weights
        self.finished: dict[str, Value] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            cut_torn_line(path)
            self._read()

    @classmethod
    def read(cls, path: Path, *, weights: str | None = None) -> dict[str, Value]:
        """What is finished in a file that another process may be writing; a line without its end is passed over."""
        file = cls.__new__(cls)
        file.path, file.weights, file.finished = path, weights, {}
        file._read()
        return file.finished

    def append(self, group: Iterable[tuple[Call, Value]]) -> None:
        """Stores a group; it is on the disk when this returns. Calls already stored are left as they are."""
        new = {call.digest: (call, value) for call, value in group if call.digest not in self.finished}
        lines = [
            json.dumps(
                {"request": digest, "id": call.id, "weights": self.weights, **self.fields(value)},
                ensure_ascii=False,
            )
            for digest, (call, value) in new.items()
        ]
        with self.path.open("a", encoding="utf-8", errors="surrogatepass", newline="\n") as file:
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        self.finished.update((digest, value) for digest, (_, value) in new.items())

    def fields(self, value: Value) -> Mapping[str, Any]:
        """The value as plain values of a line."""
        raise NotImplementedError

    def value(self, fields: Mapping[str, Any]) -> Value:
        """The value of a line; ValueError, KeyError or TypeError where it is none."""
        raise NotImplementedError

    def _read(self) -> None:
        for number, line in enumerate(self.path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                fields = json.loads(line.decode("utf-8", "surrogatepass"))
                self.finished[fields["request"]] = self.value(fields)
                weights = fields.get("weights")
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(
                    f"{self.path}:{number} is no stored answer: remove that line, and its call is made again."
                ) from error
            if self.weights is not None and weights != self.weights:
                raise UserError(
                    f"{self.path}:{number} was answered by other weights than the model has now: name another output "
                    "folder, or make every call again with resume=never."
                )


class Ledger(LinesFile[Completion]):
    """Completions."""

    def fields(self, value: Completion) -> Mapping[str, Any]:
        """Text, tokens, finish."""
        return asdict(value)

    def value(self, fields: Mapping[str, Any]) -> Completion:
        """The completion of a line."""
        return stored_completion(fields)


class LogProbLedger(LinesFile[list[float]]):
    """Log-probs of given texts."""

    def fields(self, value: list[float]) -> Mapping[str, Any]:
        """One list."""
        return {"log_probs": value}

    def value(self, fields: Mapping[str, Any]) -> list[float]:
        """The list of a line."""
        return [float(number) for number in fields["log_probs"]]


def cut_torn_line(path: Path) -> None:
    """Takes a last line without its line break off the file: of `a⏎b⏎c` it leaves `a⏎b⏎`."""
    with path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
            os.fsync(file.fileno())
