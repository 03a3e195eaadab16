"""A suite of `align evaluate` for this protocol: questions by length and depth, and perplexity by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from align.core.errors import UserError
from align.evaluation.files import check_file, read_rows
from align.evaluation.intervals import Measure, Score, mean_interval
from align.evaluation.questions import Questions
from align.evaluation.stored import StoredRecords
from align.evaluation.suite import Evaluation, Result, check_edges
from align.generation.generators import digest_of
from align.generation.stage import WORK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NLL = Measure(mean_interval, "lower")  # nats a scored token
COLUMNS = ("id", "pieces")


@dataclass(frozen=True)
class Reading:
    """`suite._target_` of every cell.

    Attributes:
        questions: rows of suite=questions, answered greedily and looked at as a whole.
        documents: JSON Lines of {id, pieces}, `pieces` a list of {text, scored}.
        max_new_tokens: of an answer, at most.
        edges: positions at which the ranges of perplexity begin, from 0.
    """

    questions: str | None = None
    documents: str | None = None
    max_new_tokens: int = 8
    edges: list[int] = field(default_factory=lambda: [0])

    @property
    def _asked(self) -> Questions:
        return Questions(path=self.questions, max_new_tokens=self.max_new_tokens, counted="whole")

    def check(self) -> None:
        """Raises UserError for a missing file or edges that do not rise from 0."""
        self._asked.check()
        if self.documents is None:
            raise UserError("suite.documents is not set: name a .jsonl file of {id, pieces} rows.")
        check_file("suite.documents", self.documents)
        check_edges(self.edges)

    def run(self, evaluation: Evaluation) -> Result:
        """Asks, then scores the documents; finished answers and documents of an earlier start are kept."""
        asked = self._asked.run(evaluation)
        read = self._read(evaluation)
        nll: dict[str, Score] = {}
        for edge in self.edges:
            values = [
                record["by_position"][str(edge)] for record in read if str(edge) in record["by_position"]
            ]
            if values:
                nll[f"nll, from {edge}"] = NLL.of(values)
        return Result([*asked.records, *read], {**asked.scores, **nll}, notes=asked.notes)

    def _read(self, evaluation: Evaluation) -> list[dict[str, Any]]:
        """A record a document: its mean NLL over the scored tokens of each range of positions that has some."""
        import torch
        from accelerate import PartialState

        from align.evaluation.token_logps import sequence_logps

        stored = StoredRecords(evaluation.workspace.output / WORK / "documents", evaluation.weights())
        model, found = None, []
        for row in read_rows(str(self.documents), COLUMNS):
            ids, scored = tokens_of(row["pieces"], evaluation.workspace.tokenizer)
            digest = digest_of([ids, scored, self.edges])
            if stored.get(digest) is None:
                model = evaluation.load().eval() if model is None else model
                with torch.inference_mode():
                    logps = sequence_logps(model, torch.tensor(ids, device=PartialState().device))
                stored.put(digest, {"by_position": by_position((-logps).tolist(), scored, edges=self.edges)})
            found.append({"id": row["id"], **stored[digest]})
        return found


def tokens_of(
    pieces: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[bool]]:
    """The tokens of all pieces, each piece encoded by itself, and whether each counts."""
    ids: list[int] = []
    scored: list[bool] = []
    for piece in pieces:
        own = tokenizer(piece["text"], add_special_tokens=False, split_special_tokens=True, verbose=False)
        ids += own["input_ids"]
        scored += [bool(piece["scored"])] * len(own["input_ids"])
    return ids, scored


def by_position(nll: Sequence[float], scored: Sequence[bool], *, edges: Sequence[int]) -> dict[str, float]:
    """The mean over the scored tokens of each range that has some, by the range's first position.

    Of five tokens with the NLL 1, 2, 3, 4 (the first is not predicted), the last three scored, edges 0 and 4:
    `{"0": 2.5, "4": 4.0}`.

    Args:
        nll: `[n − 1]` of tokens 1 … n − 1, nats.
        scored: `[n]`, whether a token counts.
        edges: positions at which ranges begin, from 0 on.
    """
    found = {}
    for low, high in pairwise([*edges, len(scored) + 1]):
        own = [nll[place - 1] for place in range(max(low, 1), min(high, len(scored))) if scored[place]]
        if own:
            found[str(low)] = sum(own) / len(own)
    return found
