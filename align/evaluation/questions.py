"""Questions of one's own with accepted answers, held against what is said as `suite.score` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from align.core.config import check_choice
from align.core.errors import UserError
from align.evaluation.answer_scores import SCORES, AnswerScore
from align.evaluation.answers import first_line
from align.evaluation.ask import Sample, answer, cut_note, user_request
from align.evaluation.files import check_file, read_places
from align.evaluation.suite import Evaluation, Result, at_least, grouped, score_of

if TYPE_CHECKING:
    from align.generation.generators import Completion

COLUMNS = ("prompt", "answers")
COUNTED = ("first_line", "whole")  # what of an answer is looked at


@dataclass(frozen=True)
class Questions:
    """Group `suite`; see hydra_conf/suite/questions.yaml."""

    path: str | None = None
    limit: int | None = None
    max_new_tokens: int = 32
    score: str = "contains"
    counted: str | None = None

    def check(self) -> None:
        """Raises UserError for a value out of range or a missing file."""
        if self.path is None:
            raise UserError(
                "suite.path is not set: name a .jsonl or .jsonl.gz file of {prompt, answers} rows."
            )
        check_file("suite.path", self.path)
        at_least({"max_new_tokens": self.max_new_tokens, "limit": self.limit}, 1)
        check_choice("suite.score", self.score, tuple(SCORES))
        if self.counted is not None:
            check_choice("suite.counted", self.counted, COUNTED)
        self._score.check()

    @property
    def _score(self) -> AnswerScore:
        return SCORES[self.score]

    def run(self, evaluation: Evaluation) -> Result:
        """Asks every row greedily; the mean over all rows, and over the rows of each `group`, where they have one."""
        samples = self._samples(evaluation.workspace.seed)
        completions = answer(
            "questions", samples, evaluation, shorter="shorten its prompt or lower suite.max_new_tokens"
        )
        records = [self._record(*pair) for pair in zip(samples, completions, strict=True)]
        name, measure = self._score.name, self._score.measure
        scores = {name: score_of(records, name, measure)}
        of_a_group = [record for record in records if record["group"] is not None]
        scores |= {
            f"{name}, {group}": interval
            for group, interval in grouped(of_a_group, name, "group", measure).items()
        }
        limit = f"suite.max_new_tokens={self.max_new_tokens}"
        return Result(records, scores, notes=[*cut_note(records, limit), *self._score.notes(records)])

    def _samples(self, seed: int) -> list[Sample]:
        rows = read_places(str(self.path), COLUMNS)[: self.limit]
        samples = []
        for number, (where, row) in enumerate(rows, start=1):
            _check_row(row, where)
            name = f"questions/{number}"
            request = user_request(name, row["prompt"], seed=seed, max_new_tokens=self.max_new_tokens)
            samples.append(Sample(request, {"group": row.get("group"), "answers": row["answers"]}))
        return samples

    def _record(self, sample: Sample, completion: Completion) -> dict[str, Any]:
        counted = self.counted or self._score.counted
        said = first_line(completion.text) if counted == "first_line" else completion.text
        return {
            "id": sample.id,
            **sample.facts,
            "prediction": completion.text,
            "tokens": completion.tokens,
            # Where the first line counts, what is cut behind it makes no difference.
            "cut": completion.finish == "length" and said == completion.text,
            self._score.name: self._score.of(said, sample.facts["answers"]),
        }


def _check_row(row: Mapping[str, Any], where: str) -> None:
    if not isinstance(row["prompt"], str) or not row["prompt"]:
        raise UserError(f"{where}: `prompt` has to be a text.")
    check_answers(row["answers"], where)


def check_answers(answers: Any, where: str) -> None:
    """Raises UserError for accepted answers that are no list of texts."""
    if not isinstance(answers, list) or not answers or not all(isinstance(text, str) for text in answers):
        raise UserError(f"{where}: `answers` has to be a list of texts, one at least.")
