"""The beginning of an answer at a server that cannot be made to continue one."""

from __future__ import annotations

from collections.abc import Callable

from align.data.thinking import GENERATED, find_thought

SHORT_LEAD = 20  # words: a longer one is a text to go on with, not a beginning to copy


def ask_for(lead: str) -> str:
    """Has a model begin with the lead, which it cannot be made to continue."""
    if len(lead.split()) <= SHORT_LEAD:
        return f'\n\nBegin your answer with "{lead}".'
    return f"\n\nYour answer begins with this text. Go on where it ends, and do not repeat it:\n\n{lead}"


def with_lead(lead: str, text: str) -> str:
    """The lead and what follows, whether the answer repeats the lead or goes on from it."""
    wanted, given = " ".join(lead.split()).casefold(), " ".join(text.split()).casefold()
    if given.lstrip("\"'“‘*_# ").startswith(wanted):
        return text
    apart = lead[-1:].isspace() or text[:1].isspace() or text[:1] in ".,;:!?)]}" or not lead.isascii()
    return f"{lead}{'' if apart else ' '}{text}"


def continued(lead: str, text: str) -> str:
    """The lead and what a server says that goes on where the lead ends."""
    return lead + text


def behind_thinking(lead: str, text: str, join: Callable[[str, str], str]) -> str:
    """An answer with its lead behind the thinking block that a server has left in: `<think>So.</think>What is it?`

    Of nothing nothing is made, nor of an answer that was cut while it still thought.

    Args:
        lead: how the answer was to begin.
        text: what the server said.
        join: puts lead and answer together where there is no block; behind one an answer goes on from nothing.
    """
    thought = find_thought(text, GENERATED)
    if thought is None:
        return join(lead, text) if text.strip() else ""
    if thought.answer is None:
        return text
    answer = text[thought.answer :].lstrip()
    return text[: len(text) - len(answer)] + with_lead(lead, answer) if answer else text
