"""Perplexity of real text: by position in the window, and with a sliding window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from align.core.display import progress_bar
from align.core.errors import UserError
from align.core.readable import agreeing, counted
from align.documents.loading import load_documents
from align.evaluation.ask import first_shows, wait_for_all
from align.evaluation.intervals import Measure, Score, mean_interval
from align.evaluation.pictures import curve
from align.evaluation.remembered import details_of, scores_of
from align.evaluation.stored import StoredRecords
from align.evaluation.suite import Evaluation, Result, at_least, check_edges, plain, score_of
from align.generation.generators import derive_seed, digest_of
from align.generation.memories import Memory, NoMemory, check_memory
from align.generation.shares import own_share
from align.generation.stage import WORK

if TYPE_CHECKING:
    from torch import Tensor

NLL = Measure(mean_interval, "lower")  # nats a token


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
    memory: Memory = field(default_factory=NoMemory)

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        at_least({"length": self.length, "window": self.window}, 2)
        at_least({"stride": self.stride, "max_documents": self.max_documents}, 1)
        if self.stride >= self.window:
            raise UserError(
                f"suite.stride={self.stride} must be below suite.window={self.window}: a token needs something "
                "before it in its window."
            )
        check_edges(self.edges)
        check_memory(self.memory, "suite.memory")

    def run(self, evaluation: Evaluation) -> Result:
        """Scores every document twice; a document is a sample, its mean negative log-prob the score."""
        texts, notes = self._documents(evaluation)
        records = _measure(self, texts, evaluation)
        scores = {name: score_of(records, name, NLL) for name in ("nll", "nll_sliding")}
        by_position = self._by_position(records)
        remembers = self.memory.chunk > 0
        scores |= scores_of(records) if remembers else {}
        return Result(
            records=records,
            scores=scores,
            notes=notes,
            details={
                "perplexity": {name: _perplexity(value.mean) for name, value in scores.items()},
                "nll_by_position": plain({str(int(edge)): value for edge, value in by_position.items()}),
                **(details_of(records) if remembers else {}),
            },
            pictures={
                "positions.png": curve(
                    by_position,
                    labels=("position of the token, from", "negative log-prob, nats a token"),
                    title=f"{len(records)} documents, window of {self.length} tokens",
                )
            },
        )

    def _documents(self, evaluation: Evaluation) -> tuple[list[tuple[str, list[int]]], list[str]]:
        """Ids and tokens of the longest documents, cut at `length`; what has to be said of them."""
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
        chosen = encoded[: self.max_documents]
        texts = [(name, ids[: self.length]) for name, ids in chosen]
        read = [
            f"{len(chosen)} of {counted(len(encoded), 'document')} are measured, the longest ones "
            f"(suite.max_documents={self.max_documents})."
        ]
        cut = sum(len(ids) > self.length for _, ids in chosen)
        were = agreeing(len(chosen), "was", "were")
        ends = [
            f"{cut} of {counted(len(chosen), 'document')} {were} cut at suite.length={self.length} tokens."
        ]
        notes = [*(read if len(chosen) < len(encoded) else []), *(ends if cut else [])]
        return texts, [*notes, *self._beyond(max(len(ids) for _, ids in texts), evaluation)]

    def _beyond(self, longest: int, evaluation: Evaluation) -> list[str]:
        """A sentence where texts are longer than what the model was made to read."""
        window = evaluation.window()
        if window is None or longest <= window:
            return []
        slid = min(self.window, longest)
        both = f", and windows of suite.window={slid}" if slid > window else ""
        return [
            f"Documents of up to {longest} tokens{both} are longer than the {window} tokens that the model was made to "
            "read: what is beyond counts in every mean but those of lower positions."
        ]

    def _by_position(self, records: Sequence[dict[str, Any]]) -> dict[float, Score]:
        """The mean over documents for each range of positions, by its first position."""
        found: dict[float, list[float]] = {}
        for record in records:
            for edge, value in record["by_position"].items():
                found.setdefault(float(edge), []).append(value)
        return {edge: NLL.of(found[edge]) for edge in sorted(found)}


def _perplexity(nll: float) -> float:
    """e to the mean negative log-prob; infinite where that is no number any more."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


def _measure(
    suite: Perplexity, texts: Sequence[tuple[str, list[int]]], evaluation: Evaluation
) -> list[dict[str, Any]]:
    """A record a document, in order; each is stored when it is done, and several processes share them."""
    import torch
    from accelerate import PartialState

    from align.evaluation.token_logps import learned_positions

    stored = StoredRecords(evaluation.workspace.output / WORK / "perplexity", evaluation.weights())
    seed = evaluation.workspace.seed
    digests = [_digest(suite, ids, seed=seed) for _, ids in texts]
    documents = {digest: ids for digest, (_, ids) in zip(digests, texts, strict=True)}
    own = own_share(lambda: [digest for digest in documents if stored.get(digest) is None])
    if own:
        model, device = evaluation.load().eval(), PartialState().device
        most, longest = learned_positions(model), max(map(len, documents.values()))
        if most is not None and longest > most:
            raise UserError(
                f"suite.length={suite.length}: the model has learned {most} positions, and the longest document has "
                f"{longest} tokens: take suite.length={most}."
            )
        with progress_bar(first_shows(evaluation.workspace).console) as progress:
            for digest in progress.track(own, description="perplexity"):
                ids = torch.tensor(documents[digest], device=device)
                stored.put(digest, _scored(suite, model, ids, seed=derive_seed(seed, digest)))
    wait_for_all()
    return [{"id": name, **stored[digest]} for digest, (name, _) in zip(digests, texts, strict=True)]


def _digest(suite: Perplexity, ids: list[int], *, seed: int) -> str:
    """What decides on a document's record; the seed does where a memory draws."""
    read = [ids, suite.window, suite.stride, list(suite.edges)]
    memory: Any = suite.memory
    return digest_of([*read, asdict(memory), seed] if memory.chunk else read)


def _scored(suite: Perplexity, model: Any, ids: Tensor, *, seed: int) -> dict[str, Any]:
    """A document's record; with a memory also chunk by chunk."""
    from align.evaluation.token_logps import score_document

    record = score_document(model, ids, window=suite.window, stride=suite.stride, edges=list(suite.edges))
    if suite.memory.chunk:
        from align.evaluation.chunks import score_chunks

        record |= score_chunks(model, ids, suite.memory, seed=seed)
    return record
