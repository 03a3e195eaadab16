"""AgentWrite (LongWriter, arXiv 2408.07055, section 3): a plan, then its paragraphs one after the other."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.generation.generators import Completion, Message, Request, Sampling, derive_seed
from align.generation.prompts import check_places, fill
from align.scores.length import count_words
from align.scores.numerals import CHINESE
from align.synthesis.answers import trim_cut
from align.synthesis.longwriter.candidates import Candidate, Written
from align.synthesis.longwriter.writing_plan import (
    Step,
    is_step_line,
    parse_plan,
    render_plan,
    render_step,
    with_lengths,
)
from align.synthesis.pipeline import at_least, check_share

if TYPE_CHECKING:
    from align.generation.stage import Dialogue
    from align.synthesis.longwriter.instructions import Instruction

SOURCE = "agent_write"
_GROUP = "agent_write"
_NOTHING = "(nothing yet)"


@dataclass(frozen=True)
class AgentWrite:
    """Node `pipeline.agent_write`; hydra_conf/pipeline/longwriter.yaml comments every key."""

    plan_prompt: str
    write_prompt: str
    again_prompt: str
    plan_start: str = ""
    max_steps: int = 50
    min_step_words: int = 200
    max_step_words: int = 1000
    step_tolerance: float = 0.5
    step_tries: int = 3
    plan_tries: int = 2
    max_plan_tokens: int = 4096
    max_step_tokens: int = 4096
    temperature: float = 0.5
    top_p: float = 0.9

    def check(self) -> None:
        """Raises UserError for a value out of range, naming the key."""
        for key in (
            "max_steps",
            "min_step_words",
            "step_tries",
            "plan_tries",
            "max_plan_tokens",
            "max_step_tokens",
        ):
            at_least(f"{_GROUP}.{key}", getattr(self, key), 1)
        at_least(f"{_GROUP}.max_step_words", self.max_step_words, self.min_step_words)
        for key in ("step_tolerance", "temperature"):
            at_least(f"{_GROUP}.{key}", getattr(self, key), 0)
        check_share(f"{_GROUP}.top_p", self.top_p)
        for key, places in (
            ("plan_prompt", ("instruction", "words")),
            ("write_prompt", ("instruction", "plan", "text", "step")),
            ("again_prompt", ("written", "wanted")),
        ):
            check_places(f"pipeline.{_GROUP}.{key}", getattr(self, key), places)

    def write(self, item: Instruction, name: str, seed: int, written: Written) -> Dialogue[Candidate | None]:
        """The calls of one answer: the plan, then each step, asked again while it misses its length.

        Args:
            item: what to write.
            name: of the answer, unique in the stage.
            seed: the run's.
            written: whose counts are kept.

        Returns:
            The answer; None where no plan could be read, it has too many steps, or a step stayed empty.
        """
        steps = yield from self._plan(item, name, seed, written)
        if steps is None:
            return None
        plan = render_plan(steps)
        paragraphs: list[str] = []
        tries: list[int] = []
        for number, step in enumerate(steps, start=1):
            beginning = fill(
                self.write_prompt,
                {
                    "instruction": item.text,
                    "plan": plan,
                    "text": "\n\n".join(paragraphs) or _NOTHING,
                    "step": render_step(number, step),
                },
            )
            text, asked = yield from self._step(beginning, step, f"{name}/step{number}", seed)
            written.counts["steps written"] += 1
            written.counts["steps asked again"] += asked - 1
            if not text:
                written.dropped["agent_write: a step stayed empty"] += 1
                return None
            written.counts["steps that miss their length"] += not self._fits(text, step)
            paragraphs.append(text)
            tries.append(asked)
        record = {"plan": plan, "step_words": [count_words(text) for text in paragraphs], "step_tries": tries}
        return Candidate("\n\n".join(paragraphs), SOURCE, True, record)

    def _plan(self, item: Instruction, name: str, seed: int, written: Written) -> Dialogue[list[Step] | None]:
        """The first plan that can be read; None, counted, where none can."""
        words = "the length that the instruction asks for" if item.length is None else f"{item.length} words"
        prompt = fill(self.plan_prompt, {"instruction": item.text, "words": words})
        sampling = Sampling(self.temperature, self.top_p, 1, self.max_plan_tokens)
        reason = "agent_write: no plan could be read"
        for attempt in range(self.plan_tries):
            request = _request(f"{name}/plan{attempt}", prompt, sampling, seed, lead=self.plan_start)
            (completion,) = yield [request]
            steps = parse_plan(_whole_lines(completion))
            if steps is not None and len(steps) <= self.max_steps:
                planned = with_lengths(
                    steps, item.length, least=self.min_step_words, most=self.max_step_words
                )
                total = sum(step.words or 0 for step in planned)
                written.counts["plans shorter than asked for"] += (
                    item.length is not None and total < item.length
                )
                return planned
            if steps is not None:
                reason = f"agent_write: a plan of more than {self.max_steps} steps"
        written.dropped[reason] += 1
        return None

    def _step(self, beginning: str, step: Step, name: str, seed: int) -> Dialogue[tuple[str, int]]:
        """The step's text, of all tries the nearest to its length, and the number of tries."""
        sampling = Sampling(self.temperature, self.top_p, 1, self.max_step_tokens)
        best, prompt = "", beginning
        for attempt in range(1, self.step_tries + 1):
            (completion,) = yield [_request(f"{name}/{attempt}", prompt, sampling, seed)]
            text = clean_step(trim_cut(completion))
            if not best or (text and _miss(text, step) < _miss(best, step)):
                best = text
            if best and self._fits(best, step):
                return best, attempt
            values = {"written": str(count_words(text)), "wanted": str(step.words)}
            # Behind the same beginning, which a generator then has already read.
            prompt = f"{beginning}\n\n{fill(self.again_prompt, values)}"
        return best, self.step_tries

    def _fits(self, text: str, step: Step) -> bool:
        """Within a factor of 1 + `step_tolerance`, either way."""
        return _miss(text, step) <= math.log1p(self.step_tolerance) + 1e-9


def clean_step(text: str) -> str:
    """The paragraph without the line of the plan and the headings that models repeat before it."""
    lines = text.strip().splitlines()
    while lines and (not lines[0].strip() or is_step_line(lines[0]) or _only_label(lines[0])):
        lines.pop(0)
    return "\n".join(lines).strip()


def _only_label(line: str) -> bool:
    """`Paragraph 3:` or 第三段 alone on its line."""
    label = line.strip(" #*_:：.-").casefold()
    return (
        re.fullmatch(rf"(?:paragraph\s*)?\d{{1,3}}|paragraph\s+[a-z]+|(?:段落|第)[\d{CHINESE}]+段?", label)
        is not None
    )


def _miss(text: str, step: Step) -> float:
    """|ln(written / wanted)|; infinite where nothing is written."""
    words = count_words(text)
    return abs(math.log(words / (step.words or 1))) if words else math.inf


def _whole_lines(completion: Completion) -> str:
    """A plan that was cut loses its last line."""
    if completion.finish == "stop":
        return completion.text
    return "\n".join(completion.text.splitlines()[:-1])


def _request(name: str, prompt: str, sampling: Sampling, seed: int, lead: str = "") -> Request:
    messages: Sequence[Message] = (Message("user", prompt),)
    return Request(name, tuple(messages), sampling, derive_seed(seed, name), lead)
