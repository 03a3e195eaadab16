"""`pipeline=rows`: rows that exist, for `select` and the data card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from align.core.errors import UserError
from align.data.sources import open_sources, read_rows
from align.documents.loading import Document
from align.synthesis.pipeline import Summary, write_rows

if TYPE_CHECKING:
    from align.generation.stage import Workspace

KEY = "pipeline.path"


@dataclass(frozen=True)
class ExistingRows:
    """Group `pipeline`; see hydra_conf/pipeline/rows.yaml."""

    path: str | None = None

    def check(self) -> None:
        """Raises UserError where no path is given."""
        if not self.path:
            raise UserError(f"{KEY} is not set: name rows as data.path does, a file or a folder.")

    def read(self) -> list[Document]:
        """The rows as JSON, one a document."""
        rows = [
            Document(row.source, row.source, json.dumps(row.values, ensure_ascii=False, default=str))
            for row in read_rows(open_sources(self.path, key=KEY).train)
        ]
        if not rows:
            raise UserError(f"{KEY}={self.path} holds no rows.")
        return rows

    def run(self, documents: Sequence[Document], workspace: Workspace) -> Summary:
        """Writes them as JSON Lines."""
        counts = {"rows read": len(documents)}
        return Summary(write_rows(workspace.output, _rows(documents)), len(documents), counts)


def _rows(documents: Sequence[Document]) -> Iterator[dict[str, Any]]:
    for document in documents:
        yield json.loads(document.text)
