"""Perplexity of real text: by position in the window, and with a sliding window."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.core.display import progress_bar
from align.core.errors import UserError
from align.core.files import write_atomically
from align.documents.loading import load_documents
from align.evaluation.intervals import Interval, mean_interval
from align.evaluation.pictures import curve
from align.evaluation.suite import Evaluation, Result, at_least, plain
from align.generation.stage import WORK


@dataclass(frozen=True)
class Perplexity:
    """Group `suite`; see hydra_conf/suite/perplexity.yaml."""

    documents: str = "embedded"
    max_documents: int | None = 20
    length: int = 8192
    window: int = 4096
    stride: int = 2048
    edges: list[int] = field(
        default_factory=lambda: [0, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]
    )

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        at_least({"length": self.length, "window": self.window}, 2)
        at_least({"stride": self.stride, "max_documents": self.max_documents or 1}, 1)
        if self.stride >= self.window:
            raise UserError(
                f"suite.stride={self.stride} must be below suite.window={self.window}: a token needs something "
                "before it in its window."
            )
        if list(self.edges) != sorted(set(self.edges)) or not self.edges or self.edges[0] != 0:
            raise UserError(f"suite.edges={list(self.edges)} has to rise from 0.")

    def run(self, evaluation: Evaluation) -> Result:
        """Scores every document twice; a document is a sample, its mean negative log-prob the score."""
        texts = self._documents(evaluation)
        records = _measure(self, texts, evaluation)
        seed = evaluation.workspace.seed
        scores = {
            "nll": mean_interval([record["nll"] for record in records], seed=seed),
            "nll_sliding": mean_interval([record["nll_sliding"] for record in records], seed=seed),
        }
        by_position = self._by_position(records)
        return Result(
            records=records,
            scores=scores,
            details={
                "perplexity": {name: math.exp(value.mean) for name, value in scores.items()},
                "nll_by_position": plain({str(int(edge)): value for edge, value in by_position.items()}),
            },
            pictures={
                "positions.png": curve(
                    by_position,
                    labels=("position of the token, from", "negative log-prob, nats a token"),
                    title=f"{len(records)} documents, window of {self.length} tokens",
                )
            },
        )

    def _documents(self, evaluation: Evaluation) -> list[tuple[str, list[int]]]:
        """Ids and tokens of the longest documents, cut at `length`."""
        tokenizer = evaluation.workspace.tokenizer
        encoded = [
            (document.id, tokenizer(document.text, split_special_tokens=True, verbose=False)["input_ids"])
            for document in load_documents(self.documents, key="suite.documents")
        ]
        encoded = sorted(
            (pair for pair in encoded if len(pair[1]) > 1), key=lambda pair: (-len(pair[1]), pair[0])
        )
        if not encoded:
            raise UserError(f"suite.documents={self.documents}: no document has two tokens.")
        return [(name, ids[: self.length]) for name, ids in encoded[: self.max_documents]]

    def _by_position(self, records: Sequence[dict[str, Any]]) -> dict[float, Interval]:
        """The mean over documents for each range of positions, by its first position."""
        found: dict[float, list[float]] = {}
        for record in records:
            for edge, value in record["by_position"].items():
                found.setdefault(float(edge), []).append(value)
        return {edge: mean_interval(found[edge]) for edge in sorted(found)}


def _measure(
    suite: Perplexity, texts: Sequence[tuple[str, list[int]]], evaluation: Evaluation
) -> list[dict[str, Any]]:
    """A record a document, in order; each is stored when it is done, and several processes share them."""
    import torch
    from accelerate import PartialState

    from align.evaluation.token_logps import score_document

    state = PartialState()
    folder = evaluation.workspace.output / WORK / "perplexity"
    places = {name: folder / f"{i:05}.json" for i, (name, _) in enumerate(texts)}
    missing = [(name, ids) for name, ids in texts if not places[name].is_file()]
    own = missing[state.process_index :: state.num_processes]
    if own:
        model = evaluation.load().eval()
        with progress_bar(evaluation.workspace.console) as progress:
            for name, ids in progress.track(own, description="perplexity"):
                scored = score_document(
                    model,
                    torch.tensor(ids, device=state.device),
                    window=suite.window,
                    stride=suite.stride,
                    edges=suite.edges,
                )
                record = {"id": name, **scored}
                write_atomically(places[name], json.dumps(record))
    state.wait_for_everyone()
    return [_read(places[name]) for name, _ in texts]


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))
