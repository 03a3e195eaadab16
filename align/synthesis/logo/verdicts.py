"""Verdicts on answers, right or wrong by the passages that the chosen one was made from; they drop pairs.

A row whose chosen answer is called wrong is dropped, and so is a rejected answer that is called right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from align.generation.generators import Message, Request, Sampling, derive_seed
from align.generation.prompts import fill
from align.generation.stage import Workspace, run_stage

_VERDICT = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_LONGEST = 8  # tokens of a verdict


@dataclass(frozen=True)
class AnswersToJudge:
    """What the judge is shown.

    Attributes:
        id: of the row.
        context: the critical passages.
        question: what was asked.
        answers: the chosen one first.
    """

    id: str
    context: str
    question: str
    answers: tuple[str, ...]


def judge_answers(
    items: Sequence[AnswersToJudge], prompt: str, workspace: Workspace
) -> list[tuple[bool | None, ...]]:
    """Whether each answer of each row is right; None where the judge said neither yes nor no.

    Args:
        items: the rows.
        prompt: with the places {context}, {question} and {answer}; asks for yes or no.
        workspace: its generator judges, drawing the likeliest tokens.
    """
    sampling = Sampling(0.0, 1.0, 1, _LONGEST)
    requests = []
    for item in items:
        for j, answer in enumerate(item.answers):
            values = {"context": item.context, "question": item.question, "answer": answer}
            name = f"{item.id}/judge{j}"
            content = fill(prompt, values)
            requests.append(
                Request(name, (Message("user", content),), sampling, derive_seed(workspace.seed, name))
            )
    texts = iter(completion.text for completion in run_stage("judge", requests, workspace))
    return [tuple(parse_verdict(text) for text in islice(texts, len(item.answers))) for item in items]


def parse_verdict(text: str) -> bool | None:
    """The first yes or no, as True or False: `No, it is not.` is False. None where there is neither."""
    found = _VERDICT.search(text)
    return None if found is None else found[1].lower() == "yes"
