"""Long writing: S_l and S_q of LongBench-Write, the ruler curve, repetition (LongWriter, arXiv:2408.07055)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from align.core.errors import UserError
from align.core.readable import counted
from align.evaluation.ask import (
    Sample,
    adopt_answers,
    answer,
    cut_note,
    first_shows,
    own_name,
    user_request,
)
from align.evaluation.files import check_file, read_places
from align.evaluation.intervals import Measure, Score, mean_interval
from align.evaluation.pictures import curve
from align.evaluation.suite import Evaluation, Result, at_least, grouped, plain
from align.generation.shares import own_share
from align.scores.length import count_words, length_score
from align.synthesis.filters import repeated_ngrams
from align.synthesis.longwriter.candidates import Candidate
from align.synthesis.longwriter.instructions import Instruction
from align.synthesis.longwriter.quality import Quality, QualityScorer

NGRAM = 8  # words; one that comes again within an answer is repetition
LENGTH = Measure(partial(mean_interval, bounds=(0.0, 100.0)), "higher")
WORDS = Measure(mean_interval, None)  # more words are no better ones
MEASURES = {
    "length_score": LENGTH,
    "quality_score": LENGTH,
    "written_words": WORDS,
    "repetition": Measure(partial(mean_interval, bounds=(0.0, 1.0)), "lower"),
}
COLUMNS = ("prompt", "length")


@dataclass(frozen=True)
class LongWrite:
    """Group `suite`; see hydra_conf/suite/longwrite.yaml."""

    path: str | None = None
    predictions: str | None = None
    limit: int | None = None
    max_new_tokens: int = 32768
    temperature: float = 0.5
    top_p: float = 1.0
    quality: QualityScorer | None = None

    @property
    def asks(self) -> bool:
        """Whether the model writes; predictions were written elsewhere."""
        return self.predictions is None

    def check(self) -> None:
        """Raises UserError for a value out of range or a missing file."""
        if (self.path is None) == (self.predictions is None):
            raise UserError(
                "suite.path is not set: name a .jsonl file of {prompt, length} rows, such as LongBench-Write or "
                "LongWrite-Ruler of THUDM/LongWriter; or suite.predictions, answers to them that were written "
                "elsewhere, and only one of the two."
            )
        for key in ("path", "predictions"):
            if getattr(self, key) is not None:
                check_file(f"suite.{key}", getattr(self, key))
        at_least({"max_new_tokens": self.max_new_tokens, "limit": self.limit}, 1)
        at_least({"temperature": self.temperature}, 0)
        if self.quality is not None:
            self.quality.check()

    def run(self, evaluation: Evaluation) -> Result:
        """Writes, counts words, scores lengths; draws required against written words."""
        records = self._written(evaluation) if self.asks else self._read()
        failed = self._judge(records, evaluation)
        written = ruler(records)
        return Result(
            records=records,
            scores=_means(records),
            details={
                "judgements_failed": failed,
                "cut_at_the_limit": sum(bool(record["cut"]) for record in records),
                "by_required_words": plain(grouped(records, "length_score", "bucket", LENGTH)),
                "written_by_required": plain({str(length): value for length, value in written.items()}),
            },
            notes=self._notes(records),
            pictures={
                "ruler.png": curve(
                    written,
                    labels=("words required", "words written"),
                    title=f"required against written, {len(records)} prompts",
                    diagonal=True,
                    logarithmic=True,
                )
            },
        )

    def _notes(self, records: Sequence[Mapping[str, Any]]) -> list[str]:
        """What was cut, and what could not be judged."""
        judged = [record for record in records if "quality_by" in record]
        failed = sum(record["quality_score"] is None for record in judged)
        unread = f"{failed} of {counted(len(judged), 'judgement')} could not be read and are in no score."
        return [
            *cut_note(records, f"suite.max_new_tokens={self.max_new_tokens}"),
            *([unread] if failed else []),
        ]

    def _written(self, evaluation: Evaluation) -> list[dict[str, Any]]:
        """A record a prompt, of what the model writes."""
        samples = self._samples(evaluation.workspace.seed)
        completions = answer("longwrite", samples, evaluation, shorter="lower suite.max_new_tokens")
        return [
            _record(sample.id, sample.facts, said.text, tokens=said.tokens, cut=said.finish == "length")
            for sample, said in zip(samples, completions, strict=True)
        ]

    def _read(self) -> list[dict[str, Any]]:
        """A record a row of `predictions`; nobody knows of them whether a limit has cut them."""
        rows = read_places(str(self.predictions), (*COLUMNS, "response"))[: self.limit]
        records = []
        for i, (where, row) in enumerate(rows):
            if not isinstance(row["response"], str):
                raise UserError(f"{where}: `response` has to be a text.")
            facts = _facts(row, where)
            records.append(_record(f"longwrite/{i}", facts, row["response"], tokens=None, cut=None))
        return records

    def _samples(self, seed: int) -> list[Sample]:
        samples = []
        for i, (where, row) in enumerate(read_places(str(self.path), COLUMNS)[: self.limit]):
            facts = _facts(row, where)
            request = user_request(
                f"longwrite/{i}",
                facts["prompt"],
                seed=seed,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
            )
            samples.append(Sample(request, facts))
        return samples

    def _judge(self, records: Sequence[dict[str, Any]], evaluation: Evaluation) -> int:
        """Adds S_q to the records of written answers; returns how many judgements could not be had.

        An empty answer has no judge: it scores 0, as LongBench-Write's S_l does for it. Several processes share the
        judgements, so that each is asked for once.
        """
        if self.quality is None:
            return 0
        written = [record for record in records if record["text"].strip()]
        items = [
            (
                record["id"],
                Instruction(record["id"], record["id"], record["prompt"], record["required_words"]),
                Candidate(record["text"], "sampled", whole=not record["cut"]),
            )
            for record in written
        ]
        for record in records:
            record["quality_score"] = 0.0
        for record, quality in zip(written, self._shared(items, evaluation), strict=True):
            record |= {"quality_score": quality.score, "quality_by": quality.by, **quality.details}
        return sum(record["quality_score"] is None for record in records)

    def _shared(
        self, items: Sequence[tuple[str, Instruction, Candidate]], evaluation: Evaluation
    ) -> list[Quality]:
        """The judgement of every item, in order; a process has its share made and gets the others'."""
        from accelerate.utils import gather_object

        assert self.quality is not None
        of = {item[0]: item for item in items}
        own = [of[name] for name in own_share(lambda: list(of))]
        adopt_answers("judge-longwrite", evaluation.workspace)
        workspace = first_shows(evaluation.workspace)
        judged = self.quality.score(own_name("longwrite"), own, workspace) if own else []
        found = dict(gather_object([(item[0], quality) for item, quality in zip(own, judged, strict=True)]))
        return [found[item[0]] for item in items]


def _facts(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a record says of its row.

    Raises:
        UserError: the prompt is no text, or the length no number of words.
    """
    if not isinstance(row["prompt"], str) or not row["prompt"].strip():
        raise UserError(f"{where}: `prompt` has to be a text.")
    length = row["length"]
    if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length < 2**31:
        raise UserError(f"{where}: `length` has to be a number of words from 1 on.")
    return {"prompt": row["prompt"], "type": row.get("type"), "required_words": length}


def _means(records: Sequence[Mapping[str, Any]]) -> dict[str, Score]:
    """Of every score that the records have; S_q over the judgements that could be had."""
    found = {}
    for name, measure in MEASURES.items():
        values = [record[name] for record in records if record.get(name) is not None]
        if values:
            found[name] = measure.of(values)
    return found


def ruler(records: Sequence[Mapping[str, Any]]) -> dict[float, Score]:
    """Words written for each number of words required."""
    groups: dict[float, list[float]] = {}
    for record in records:
        groups.setdefault(float(record["required_words"]), []).append(float(record["written_words"]))
    return {length: WORDS.of(groups[length]) for length in sorted(groups)}


def required_bucket(words: int) -> str:
    """LongBench-Write's ranges of required words."""
    for name, stop in (("0-500", 500), ("500-2k", 2000), ("2k-4k", 4000)):
        if words < stop:
            return name
    return "4k-20k"


def _record(
    name: str, facts: Mapping[str, Any], text: str, *, tokens: int | None, cut: bool | None
) -> dict[str, Any]:
    required = int(facts["required_words"])
    written = count_words(text)
    return {
        "id": name,
        **facts,
        "bucket": required_bucket(required),
        "written_words": written,
        "length_score": length_score(required, written),
        "repetition": repeated_ngrams(text, size=NGRAM),
        "cut": cut,
        "tokens": tokens,
        "text": text,
    }
