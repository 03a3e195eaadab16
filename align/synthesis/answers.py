"""What pipelines make of an answer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.generation.generators import Completion, Request

# White space follows a sentence, except where a script writes none.
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s|$)|[。！？][\"'”’」』）)]*")


def trim_cut(completion: Completion) -> str:
    """An answer that was cut at the token limit ends at its last whole sentence, where it has one.

    One that a server broke off, as a content filter does, is empty: what is left of it answers nothing.
    """
    if completion.finish == "stop":
        return completion.text
    if completion.finish == "broken":
        return ""
    ends = [match.end() for match in _SENTENCE_END.finditer(completion.text)]
    return completion.text[: ends[-1]] if ends else completion.text


def comparable(text: str) -> str:
    """The text by which two answers are told apart: case, white space and punctuation at the ends do not count.

    `"  The  red house. "` and `the red house` are the same answer: both give `the red house`.
    """
    return re.sub(r"\s+", " ", text).strip(" .,;:!?\"'").casefold()


def describe_call(request: Request, completion: Completion) -> dict[str, Any]:
    """`seed` draws the answer again; `finish` is `length` where it was cut and trimmed to a sentence."""
    return {"seed": request.seed, "tokens": completion.tokens, "finish": completion.finish}
