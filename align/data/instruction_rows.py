"""Rows with an `instruction`: alpaca's, as LLaMA-Factory reads them, and LongDPO's steps."""

from __future__ import annotations

import re

from align.data import faults
from align.data.columns import Columns, Message
from align.data.contents import as_text
from align.data.examples import Example
from align.data.turns import chat_example, text_example

# Markers of widespread chat templates: a text that holds one has been put through such a template already.
RENDERED = re.compile(
    r"<\|[^<>|\s]{1,60}\|>|<｜[^<>｜\n]{1,60}｜>|\[/?INST\]|<(?:start|end)_of_turn>|<bos>|<s>|\[gMASK\]"
)


def instruction_row(columns: Columns) -> Example:
    """`instruction` with `input`, `history` and `system`, and `chosen` with `rejected`, or `output`.

    The user's message is instruction and input, a line break between them. An instruction that holds the markers of a
    chat template is the whole prompt as text, with the text so far: LongDPO's steps.
    """
    name = columns.first("chosen", "output", "completion")
    answers = [columns.answer(name, columns.get(name)), *columns.answers("rejected")]
    instruction, given = columns.text("instruction"), columns.optional_text("input")
    if RENDERED.search(instruction):
        if given is not None:
            raise columns.error(
                "column input beside an instruction with a chat template's markers is not read: put both into "
                "prompt, as the model is to see them."
            )
        if _history(columns):
            raise columns.error(
                "column history beside an instruction with a chat template's markers is not read: put both into "
                "prompt, as the model is to see them."
            )
        return text_example(columns, instruction, answers)
    question = instruction if given is None else f"{instruction}\n{given}"
    prompt = [*_history(columns), {"role": "user", "content": question}]
    return chat_example(columns, prompt, answers)


def _history(columns: Columns) -> list[Message]:
    """`history`: pairs of earlier questions and answers, `[["Who?", "Ada."]]`; a table's field may say `[]`."""
    pairs = columns.values.get("history", [])
    rows = pairs if isinstance(pairs, list) else []
    texts = [[as_text(text) for text in pair] for pair in rows if isinstance(pair, list) and len(pair) == 2]
    whole = pairs in ("", "[]") or (isinstance(pairs, list) and len(texts) == len(pairs))
    if not whole or not all(isinstance(text, str) for pair in texts for text in pair):
        raise columns.error(
            "column history must be a list of pairs, each a question and its answer.",
            reason=faults.WRONG_TYPE,
        )
    return [
        {"role": role, "content": text}
        for pair in texts
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
