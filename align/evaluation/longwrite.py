"""Long writing: S_l and S_q of LongBench-Write, the ruler curve, repetition (LongWriter, arXiv:2408.07055)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.core.errors import UserError
from align.evaluation.ask import Sample, answer, user_request
from align.evaluation.haystacks import read_rows
from align.evaluation.intervals import Interval, mean_interval
from align.evaluation.pictures import curve
from align.evaluation.suite import Evaluation, Result, at_least, grouped, plain
from align.scores.length import count_words, length_score
from align.synthesis.filters import repeated_ngrams
from align.synthesis.longwriter.candidates import Candidate
from align.synthesis.longwriter.instructions import Instruction
from align.synthesis.longwriter.quality import QualityScorer

if TYPE_CHECKING:
    from align.generation.generators import Completion

NGRAM = 8  # words; one that comes again within an answer is repetition


@dataclass(frozen=True)
class LongWrite:
    """Group `suite`; see hydra_conf/suite/longwrite.yaml."""

    path: str | None = None
    limit: int | None = None
    max_new_tokens: int = 32768
    temperature: float = 0.5
    top_p: float = 1.0
    quality: QualityScorer | None = None

    def check(self) -> None:
        """Raises UserError for a value out of range or a missing file."""
        if self.path is None:
            raise UserError(
                "suite.path is not set: name a .jsonl file of {prompt, length} rows, such as LongBench-Write or "
                "LongWrite-Ruler of THUDM/LongWriter."
            )
        if not Path(self.path).expanduser().is_file():
            raise UserError(f"suite.path={self.path} does not exist: name a .jsonl file.")
        at_least({"max_new_tokens": self.max_new_tokens, "limit": self.limit or 1}, 1)
        at_least({"temperature": self.temperature}, 0)
        if self.quality is not None:
            self.quality.check()

    def run(self, evaluation: Evaluation) -> Result:
        """Writes, counts words, scores lengths; draws required against written words."""
        samples = self._samples(evaluation.workspace.seed)
        completions = answer("longwrite", samples, evaluation)
        records = [_record(*pair) for pair in zip(samples, completions, strict=True)]
        failed = self._judge(records, evaluation)
        seed = evaluation.workspace.seed
        written = ruler(records)
        return Result(
            records=records,
            scores=_means(records, seed=seed),
            details={
                "judgements_failed": failed,
                "cut_at_the_limit": sum(record["cut"] for record in records),
                "by_required_words": plain(grouped(records, "length_score", "bucket", seed=seed)),
                "written_by_required": plain({str(length): value for length, value in written.items()}),
            },
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

    def _samples(self, seed: int) -> list[Sample]:
        rows = read_rows(str(self.path), ("prompt", "length"))[: self.limit]
        samples = []
        for i, row in enumerate(rows):
            if not isinstance(row["length"], int) or row["length"] < 1:
                raise UserError(f"{self.path}:{i + 1}: `length` has to be a number of words from 1 on.")
            request = user_request(
                f"longwrite/{i}",
                str(row["prompt"]),
                seed=seed,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
            )
            facts = {"prompt": row["prompt"], "type": row.get("type"), "required_words": row["length"]}
            samples.append(Sample(request, facts))
        return samples

    def _judge(self, records: Sequence[dict[str, Any]], evaluation: Evaluation) -> int:
        """Adds S_q to the records of written answers; returns how many judgements could not be had.

        An empty answer has no judge: it scores 0, as LongBench-Write's S_l does for it.
        """
        if self.quality is None:
            return 0
        written = [record for record in records if record["text"].strip()]
        items = [
            (
                record["id"],
                Instruction(record["id"], record["id"], record["prompt"], record["required_words"]),
                Candidate(record["text"], "sampled", not record["cut"]),
            )
            for record in written
        ]
        for record in records:
            record["quality_score"] = 0.0
        for record, quality in zip(
            written, self.quality.score("longwrite", items, evaluation.workspace), strict=True
        ):
            record |= {"quality_score": quality.score, "quality_by": quality.by, **quality.details}
        return sum(record["quality_score"] is None for record in records)


def _means(records: Sequence[Mapping[str, Any]], *, seed: int) -> dict[str, Interval]:
    """Of every score that the records have; S_q over the judgements that could be had."""
    found = {}
    for name in ("length_score", "quality_score", "written_words", "repetition"):
        values = [record[name] for record in records if record.get(name) is not None]
        if values:
            found[name] = mean_interval(values, seed=seed)
    return found


def ruler(records: Sequence[Mapping[str, Any]]) -> dict[float, Interval]:
    """Words written for each number of words required."""
    groups: dict[float, list[float]] = {}
    for record in records:
        groups.setdefault(float(record["required_words"]), []).append(float(record["written_words"]))
    return {length: mean_interval(groups[length]) for length in sorted(groups)}


def required_bucket(words: int) -> str:
    """LongBench-Write's ranges of required words."""
    for name, stop in (("0-500", 500), ("500-2k", 2000), ("2k-4k", 4000)):
        if words < stop:
            return name
    return "4k-20k"


def _record(sample: Sample, completion: Completion) -> dict[str, Any]:
    required = int(sample.facts["required_words"])
    written = count_words(completion.text)
    return {
        "id": sample.id,
        **sample.facts,
        "bucket": required_bucket(required),
        "written_words": written,
        "length_score": length_score(required, written),
        "repetition": repeated_ngrams(completion.text, size=NGRAM),
        "cut": completion.finish == "length",
        "tokens": completion.tokens,
        "text": completion.text,
    }
