"""Writing instructions: a dozen of our own, or rows with a `prompt` and, where it is known, a `length` in words."""

from __future__ import annotations

from dataclasses import dataclass

from align.core.errors import UserError
from align.core.surrogates import whole_text
from align.data.sources import open_sources, read_rows
from align.documents.loading import EMBEDDED, Document
from align.scores.length import required_length

KEY = "pipeline.instructions"

_EMBEDDED = (
    "Write a 200-word guide for somebody who moves into their first flat and has never cooked.",
    "Tell the story of a lighthouse keeper who finds a letter in a bottle, in about 250 words.",
    "Explain to a class of twelve-year-olds how a river shapes a valley. Use around 150 words.",
    "Write a 300-word report on how a small town could save energy in its public buildings.",
    "Describe one day in the life of a beekeeper in 180 words, from dawn until dusk.",
    "Write a persuasive letter of 220 words to a city council that wants to close the local library.",
    "Compare travelling by train and by plane in an essay of 250 words.",
    "Write a 150-word product description and care manual for a wooden kitchen table.",
    "Write a speech of 200 words for the opening of a school garden.",
    "Give a 260-word account of how bread is made, from the field to the table.",
    "Write a dialogue of about 180 words between two friends who plan a walking tour in the mountains.",
    "Write a 240-word review of an imaginary museum of clocks, room by room.",
)


@dataclass(frozen=True)
class Instruction(Document):
    """One thing to write.

    Attributes:
        length: words that are asked for; None where that is not known, or not one number.
    """

    length: int | None = None


def load_instructions(path: str | None) -> list[Instruction]:
    """The instructions behind `pipeline.instructions`, in file order.

    Args:
        path: `embedded`, or JSON Lines, JSON or Parquet with a column `prompt` (a string, or messages of which
            the last user's counts) and optionally `length`, words asked for. Without `length` it is read
            from the prompt where that states exactly one.

    Raises:
        UserError: nothing is there, or a row has no usable `prompt` or `length`.
    """
    if path == EMBEDDED:
        return [
            Instruction(f"embedded{i}", f"{EMBEDDED}:{i + 1}", text, required_length(text))
            for i, text in enumerate(_EMBEDDED)
        ]
    found = [_instruction(row.source, row.values) for row in read_rows(open_sources(path, key=KEY).train)]
    if not found:
        raise UserError(f"{KEY}={path} holds no instructions.")
    return found


def _instruction(source: str, values: dict[str, object]) -> Instruction:
    prompt = values.get("prompt")
    if isinstance(prompt, list):
        users = [m.get("content") for m in prompt if isinstance(m, dict) and m.get("role") == "user"]
        prompt = users[-1] if users else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{source}: an instruction needs a column `prompt` with text.")
    if whole_text(prompt)[1]:
        raise UserError(
            f"{source}: column `prompt` holds half of a surrogate pair, which is no text: mend that row."
        )
    length = values.get("length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
        raise UserError(f"{source}: column `length` must be a number of words from 1 on, not {length!r}.")
    return Instruction(source, source, prompt, required_length(prompt) if length is None else length)
