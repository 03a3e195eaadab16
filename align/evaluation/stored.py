"""What a suite has measured without asking: a file a piece of work, so that a later start measures the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from align.core.errors import UserError
from align.core.files import write_atomically


class StoredRecords:
    """Records by the digest of what was measured: another text has another digest, and is measured.

    Args:
        folder: of the files.
        weights: what tells the weights that are measured, see `Evaluation.weights`.
    """

    def __init__(self, folder: Path, weights: str) -> None:
        self.folder = folder
        self.weights = weights

    def get(self, digest: str) -> dict[str, Any] | None:
        """The record; None where there is none.

        Raises:
            UserError: other weights were measured here, or the file holds no record.
        """
        path = self._path(digest)
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            weights, record = found["weights"], dict(found["record"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no stored record: remove it, and it is measured again.") from error
        if weights != self.weights:
            raise UserError(
                f"{path} was measured with other weights than the model has now: name another output folder, or "
                "measure again with resume=never."
            )
        return record

    def __getitem__(self, digest: str) -> dict[str, Any]:
        """The record, which is there."""
        record = self.get(digest)
        if record is None:
            raise KeyError(digest)
        return record

    def put(self, digest: str, record: dict[str, Any]) -> None:
        """Stores a record; it is whole on the disk when this returns."""
        write_atomically(self._path(digest), json.dumps({"weights": self.weights, "record": record}))

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest[:32]}.json"
