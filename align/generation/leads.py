"""The beginning of an answer at a server that cannot be made to continue one."""

from __future__ import annotations

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
