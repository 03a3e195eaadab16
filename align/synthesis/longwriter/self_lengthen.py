"""Self-Lengthen (arXiv 2410.23933): a model extends its own answer, half by half, without a teacher."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.generation.generators import Message, Request, Sampling, derive_seed
from align.generation.prompts import check_places, fill
from align.scores.length import count_words
from align.synthesis.answers import trim_cut
from align.synthesis.filters import repeated_ngrams
from align.synthesis.longwriter.candidates import Candidate, Written
from align.synthesis.pipeline import at_least, check_share

if TYPE_CHECKING:
    from align.generation.stage import Dialogue
    from align.synthesis.longwriter.instructions import Instruction

SOURCE = "self_lengthen"
_GROUP = "self_lengthen"
# Coarsest first; the pieces of a text with its own separators, so that joining them gives it back.
_SEPARATORS = (r"(?<=\n\n)(?=\S)", r"(?<=\n)(?=\S)", r"(?<=[.!?。！？])(?=\s)|(?<=[。！？])")


@dataclass(frozen=True)
class SelfLengthen:
    """Node `pipeline.self_lengthen`; hydra_conf/pipeline/longwriter.yaml comments every key."""

    extend_prompt: str
    rounds: int = 3
    least_gain: float = 1.2
    ngram: int = 13
    max_new_tokens: int = 8192
    temperature: float = 0.5
    top_p: float = 0.9

    def check(self) -> None:
        """Raises UserError for a value out of range, naming the key."""
        for key in ("rounds", "least_gain", "max_new_tokens"):
            at_least(f"{_GROUP}.{key}", getattr(self, key), 1)
        at_least(f"{_GROUP}.ngram", self.ngram, 2)
        at_least(f"{_GROUP}.temperature", self.temperature, 0)
        check_share(f"{_GROUP}.top_p", self.top_p)
        check_places(f"pipeline.{_GROUP}.extend_prompt", self.extend_prompt, ("instruction", "answer"))

    def lengthen(
        self, item: Instruction, first: Candidate, name: str, seed: int, written: Written
    ) -> Dialogue[Candidate | None]:
        """The calls of one answer: each round extends the first half, keeps two thirds of it, and completes it.

        A round counts where it is longer than the best so far, ends whole, and repeats no n-gram.

        Args:
            item: what to write.
            first: the answer to start from.
            name: of the answer, unique in the stage.
            seed: the run's.
            written: whose counts are kept.

        Returns:
            The longest answer; None where it has not become `least_gain` times as long.
        """
        best = first.text
        for attempt in range(self.rounds):
            half = _portion(best, 1, 2)
            (extended,) = yield [self._request(item, half, f"{name}/{attempt}/half", seed)]
            kept = _portion(trim_cut(extended), 2, 3)
            if not kept.strip():
                continue
            (completed,) = yield [self._request(item, best, f"{name}/{attempt}/whole", seed, lead=kept)]
            text = completed.text.strip()
            longer = count_words(text) > count_words(best)
            clean = repeated_ngrams(text, size=self.ngram) == 0
            written.counts["self_lengthen: rounds"] += 1
            if longer and clean and completed.finish == "stop":
                best = text
                written.counts["self_lengthen: rounds that count"] += 1
        if count_words(best) <= self.least_gain * count_words(first.text):
            written.dropped[f"self_lengthen: not {self.least_gain:g} times as long"] += 1
            return None
        record = {"words_before": count_words(first.text)}
        return Candidate(best, SOURCE, True, record)

    def _request(self, item: Instruction, answer: str, name: str, seed: int, lead: str = "") -> Request:
        prompt = fill(self.extend_prompt, {"instruction": item.text, "answer": answer})
        sampling = Sampling(self.temperature, self.top_p, 1, self.max_new_tokens)
        return Request(name, (Message("user", prompt),), sampling, derive_seed(seed, name), lead)


def _portion(text: str, part: int, of: int) -> str:
    """The first `part` of `of` parts: whole paragraphs, or lines or sentences where there are too few."""
    pieces = [text]
    for separator in _SEPARATORS:
        pieces = [piece for piece in re.split(separator, text) if piece]
        if len(pieces) >= of:
            break
    return "".join(pieces[: max(1, len(pieces) * part // of)]).strip()
