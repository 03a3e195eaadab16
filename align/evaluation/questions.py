"""Questions of one's own with accepted answers; right if one of them stands in what is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.core.errors import UserError
from align.evaluation.answers import contains_answer
from align.evaluation.ask import Sample, answer, user_request
from align.evaluation.haystacks import read_rows
from align.evaluation.intervals import mean_interval
from align.evaluation.suite import Evaluation, Result, at_least, grouped

if TYPE_CHECKING:
    from align.generation.generators import Completion

COLUMNS = ("prompt", "answers")


@dataclass(frozen=True)
class Questions:
    """Group `suite`; see hydra_conf/suite/questions.yaml."""

    path: str | None = None
    limit: int | None = None
    max_new_tokens: int = 32

    def check(self) -> None:
        """Raises UserError for a value out of range or a missing file."""
        if self.path is None:
            raise UserError(
                "suite.path is not set: name a .jsonl or .jsonl.gz file of {prompt, answers} rows."
            )
        if not Path(self.path).expanduser().is_file():
            raise UserError(f"suite.path={self.path} does not exist: name a .jsonl or .jsonl.gz file.")
        at_least({"max_new_tokens": self.max_new_tokens, "limit": self.limit or 1}, 1)

    def run(self, evaluation: Evaluation) -> Result:
        """Asks every row greedily; the mean over all rows, and over the rows of each `group`."""
        seed = evaluation.workspace.seed
        samples = self._samples(seed)
        completions = answer("questions", samples, evaluation)
        records = [_record(*pair) for pair in zip(samples, completions, strict=True)]
        scores = {"found": mean_interval([record["found"] for record in records], seed=seed)}
        if any(record["group"] is not None for record in records):
            scores |= {
                f"found, {name}": interval
                for name, interval in grouped(records, "found", "group", seed=seed).items()
            }
        return Result(records=records, scores=scores)

    def _samples(self, seed: int) -> list[Sample]:
        rows = read_rows(str(self.path), COLUMNS)[: self.limit]
        samples = []
        for number, row in enumerate(rows, start=1):
            _check_row(row, f"{self.path}:{number}")
            name = f"questions/{number}"
            request = user_request(name, row["prompt"], seed=seed, max_new_tokens=self.max_new_tokens)
            samples.append(Sample(request, {"group": row.get("group"), "answers": row["answers"]}))
        return samples


def _check_row(row: Mapping[str, Any], where: str) -> None:
    answers = row["answers"]
    if not isinstance(row["prompt"], str) or not row["prompt"]:
        raise UserError(f"{where}: `prompt` has to be a text.")
    if not isinstance(answers, list) or not answers or not all(isinstance(text, str) for text in answers):
        raise UserError(f"{where}: `answers` has to be a list of texts, one at least.")


def _record(sample: Sample, completion: Completion) -> dict[str, Any]:
    found = contains_answer(completion.text, sample.facts["answers"])
    return {
        "id": sample.id,
        **sample.facts,
        "prediction": completion.text,
        "tokens": completion.tokens,
        "found": float(found),
    }
