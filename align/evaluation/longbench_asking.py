"""How LongBench's rows are asked: in our way, or as the published `pred.py` does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

from align.core.errors import UserError
from align.evaluation.ask import Sample
from align.evaluation.window import Window, cut_middle
from align.generation.generators import Message, Request, Sampling
from align.generation.prompts import check_places, fill

# The published settings, as facts: config/dataset2maxlen.json and the exceptions of pred.py.
PUBLISHED_NEW_TOKENS = {
    **dict.fromkeys(("narrativeqa", "qasper", "dureader", "samsum"), 128),
    **dict.fromkeys(("multifieldqa_en", "multifieldqa_zh", "trec", "lsht", "lcc", "repobench-p"), 64),
    **dict.fromkeys(("hotpotqa", "2wikimqa", "musique", "triviaqa"), 32),
    **dict.fromkeys(("passage_count", "passage_retrieval_en", "passage_retrieval_zh"), 32),
    **dict.fromkeys(("gov_report", "qmsum", "multi_news", "vcsum"), 512),
}
WITHOUT_TEMPLATE = frozenset({"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"})
ONE_LINE = frozenset({"samsum"})


class Asking(Protocol):
    """A way to ask.

    Attributes:
        most_tokens: what limits an answer, for a sentence.
    """

    most_tokens: ClassVar[str]

    def check(self, tasks: Iterable[str]) -> None:
        """Raises UserError where `max_length` leaves no prompt beside an answer, or for a bad file of prompts."""

    def sample(self, index: int, task: str, row: Mapping[str, Any], window: Window) -> Sample:
        """A row as a call; its facts say whether the prompt was cut."""

    def content(self) -> dict[str, Any]:
        """What was set, for the summary."""

    def note(self) -> str:
        """What has to be known when scores are compared."""


@dataclass(frozen=True)
class _Prompts:
    """What both ways need: the group's keys, see hydra_conf/suite/longbench.yaml."""

    prompts: Mapping[str, str]
    prompts_path: str | None
    new_tokens: Mapping[str, int]
    max_length: int

    def filled(self, task: str, row: Mapping[str, Any]) -> str:
        """The task's prompt with the row's texts."""
        prompt = self.given.get(task) or self.prompts.get(task, self.prompts["default"])
        return fill(prompt, {"context": row["context"], "input": row["input"]})

    @cached_property
    def given(self) -> dict[str, str]:
        """The benchmark's own wording, where a file of it is named."""
        if self.prompts_path is None:
            return {}
        try:
            found = json.loads(Path(self.prompts_path).expanduser().read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise UserError(f"suite.prompts_path={self.prompts_path} is no JSON: {error}.") from error
        if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
            raise UserError(
                f"suite.prompts_path={self.prompts_path} has to map tasks to prompts, as LongBench's "
                "config/dataset2prompt.json does."
            )
        for name, prompt in found.items():
            check_places(f"{self.prompts_path}: {name}", prompt, ("context",))
        return found

    def wording(self) -> str:
        """Whose prompts they are, for a sentence."""
        return (
            "this toolkit's prompts" if self.prompts_path is None else f"the prompts of {self.prompts_path}"
        )


@dataclass(frozen=True)
class Own(_Prompts):
    """Every task through the chat template; prompt, template and answer together have at most `max_length` tokens."""

    name: ClassVar[str] = "own"
    most_tokens: ClassVar[str] = "suite.max_new_tokens"

    def check(self, tasks: Iterable[str]) -> None:
        """See `Asking.check`; the template is measured when the tokenizer is there."""
        _ = self.given
        for task in tasks:
            self._check_room(task, 0)

    def sample(self, index: int, task: str, row: Mapping[str, Any], window: Window) -> Sample:
        """The middle of a prompt is cut out where it is too long."""
        name = task.removesuffix("_e")
        self._check_room(name, window.template)
        sampling = Sampling(0.0, 1.0, 0, self._answer(name))

        def make(content: str) -> Request:
            return Request(f"{task}/{index}", (Message("user", content),), sampling, seed=0)

        request, cut = window.fitted(make, self.filled(name, row), self.max_length - self._answer(name))
        return Sample(request, {"task": task, "prompt_cut": cut})

    def _answer(self, task: str) -> int:
        return self.new_tokens.get(task, self.new_tokens["default"])

    def _check_room(self, task: str, template: int) -> None:
        """Refuses where there are no tokens left for a prompt's text."""
        room = self.max_length - self._answer(task) - template
        if room < 2:
            key = task if task in self.new_tokens else "default"
            around = f" and the chat template's {template}" if template else ""
            raise UserError(
                f"suite.max_length={self.max_length} leaves no room for a prompt of {task} beside its answer of "
                f"suite.max_new_tokens.{key}={self._answer(task)} tokens{around}: raise the one or lower the other."
            )

    def content(self) -> dict[str, Any]:
        """See `Asking.content`."""
        return {
            "settings": self.name,
            "chat_template": "all tasks",
            "prompts": self.prompts_path or "own",
            "max_length": self.max_length,
            "max_new_tokens": dict(self.new_tokens),
        }

    def note(self) -> str:
        """See `Asking.note`."""
        return (
            f"asked with suite.settings=own ({self.wording()}, the chat template for every task, own lengths of "
            "answers): not comparable with published figures, for which suite.settings=published asks."
        )


@dataclass(frozen=True)
class Published(_Prompts):
    """As the released pred.py: no chat template for few-shot and code tasks, its lengths of answers, samsum up to a
    line break, and prompts cut to `max_length` tokens by themselves, whatever template and answer add.
    """

    name: ClassVar[str] = "published"
    most_tokens: ClassVar[str] = "the published lengths of answers"

    def check(self, tasks: Iterable[str]) -> None:
        """See `Asking.check`: nothing is reserved here."""
        _ = self.given

    def sample(self, index: int, task: str, row: Mapping[str, Any], window: Window) -> Sample:
        """See `Asking.sample`."""
        name = task.removesuffix("_e")
        whole = self.filled(name, row)
        content = cut_middle(whole, window.tokenizer, self.max_length, add_special_tokens=True)
        stop = ("\n",) if name in ONE_LINE else ()
        request = Request(
            f"{task}/{index}",
            (Message("user", content),),
            Sampling(0.0, 1.0, 0, PUBLISHED_NEW_TOKENS[name], stop),
            seed=0,
            form="text" if name in WITHOUT_TEMPLATE else "chat",
        )
        return Sample(request, {"task": task, "prompt_cut": content != whole})

    def content(self) -> dict[str, Any]:
        """See `Asking.content`."""
        return {
            "settings": self.name,
            "chat_template": f"all tasks but {', '.join(sorted(WITHOUT_TEMPLATE))}",
            "prompts": self.prompts_path or "own",
            "max_length": self.max_length,
            "max_new_tokens": PUBLISHED_NEW_TOKENS,
        }

    def note(self) -> str:
        """See `Asking.note`."""
        said = (
            f"asked with suite.settings=published (max_length {self.max_length}, {self.wording()}): comparable with "
            "figures of the same max_length and wording alone."
        )
        if self.prompts_path is not None:
            return said
        return f"{said} LongBench's own wording is its config/dataset2prompt.json: suite.prompts_path=FILE."


ASKING: dict[str, Callable[[Mapping[str, str], str | None, Mapping[str, int], int], Asking]] = {
    "own": Own,
    "published": Published,
}
