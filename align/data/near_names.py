"""Columns of other names: what they may be meant as, and the sentences that say so."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence

from align.data.layout_columns import LAYOUT_COLUMNS

SHOWN = 12  # columns that a sentence names
# What others call the columns of a layout.
_CALLED = {
    "prompt": "question query input instruction problem user text prompts human user_prompt user_input",
    "chosen": "accepted accept preferred preferred_response winner win better good positive chosen_response",
    "rejected": "refused reject dispreferred loser lose worse bad negative rejected_response",
    "completion": "response answer output completions reply",
    "messages": "conversation dialog dialogue chat",
    "context": "document documents passage long_context",
    "text": "content document body raw_content contents",
}
CALLED = {ours: frozenset(names.split()) for ours, names in _CALLED.items()}
_LAYOUTS = (
    ("prompt", "chosen", "rejected"),
    ("context", "question", "chosen", "rejected"),
    ("context", "questions", "chosens", "rejecteds"),
    ("conversations", "chosen", "rejected"),
    ("prompt", "completion"),
    ("messages",),
    ("instruction", "chosen", "rejected"),
    ("instruction", "output"),
)
_DOCUMENT = ("text",)


def is_like(name: str, ours: str) -> bool:
    """Whether a column is called nearly as `ours`: `promt`, `Prompt` and ` prompt` for prompt, `prompt_id` is not."""
    plain = _plain(name)
    return name != ours and (plain == ours or difflib.SequenceMatcher(None, plain, ours).ratio() > 0.8)


def may_be(name: str, ours: str) -> bool:
    """Whether a column may be meant as `ours`: nearly that name, or what others call it."""
    return is_like(name, ours) or (name != ours and _plain(name) in CALLED.get(ours, ()))


def shown(names: Collection[str]) -> str:
    """The names of columns, the first dozen of them."""
    quoted = [in_settings(name) for name in names]
    more = f" and {len(quoted) - SHOWN} more" if len(quoted) > SHOWN else ""
    return f"{', '.join(quoted[:SHOWN])}{more}" or "none"


def in_settings(name: str) -> str:
    """A name as `data.columns` takes it: in quotes where it is not a word."""
    return name if re.fullmatch(r"[\w.-]+", name) else repr(name)


def unknown_layout(found: Sequence[str]) -> str:
    """What is said of a row of no known layout."""
    sentence = f"unknown layout with the columns {shown(found)}"
    matches = [(layout, _matched(layout, found)) for layout in _LAYOUTS]
    layout, matched = max(matches, key=lambda one: len(one[1]) / len(one[0]))
    if len(matched) < 2 and "text" not in found and _matched(_DOCUMENT, found):
        layout, matched = _DOCUMENT, _matched(_DOCUMENT, found)
    if not matched:
        return f"{sentence}: name them as a layout does, such as data.columns={{prompt: …, chosen: …, rejected: …}}."
    named = ", ".join(f"{ours}: {in_settings(matched[ours]) if ours in matched else '…'}" for ours in layout)
    return f"{sentence}; the nearest is {' + '.join(layout)}: data.columns={{{named}}}."


def missing(names: Sequence[str], found: Sequence[str]) -> str:
    """What is said of a row without any of the columns `names`."""
    sentence = f"column {' or '.join(names)} is missing"
    known = [ours for ours in names if ours in LAYOUT_COLUMNS]
    others = [name for name in found if name not in LAYOUT_COLUMNS or name == "text"]  # a layout of its own
    if not known or not others:
        return f"{sentence}."
    near = [(ours, in_settings(name)) for ours in known for name in others if may_be(name, ours)]
    cure = "{{{}: {}}}".format(*(near or [(known[0], "…")])[0])
    return f"{sentence} beside {shown(found)}: data.columns={cure} names it."


def _matched(layout: Iterable[str], found: Sequence[str]) -> dict[str, str]:
    """Our column → the rows' column that may be meant, each taken once; those of the same name first."""
    matched: dict[str, str] = {}
    for ours in layout:
        taken = matched.values()
        names = [name for name in found if name not in taken and (name == ours or may_be(name, ours))]
        if names:
            matched[ours] = ours if ours in names else names[0]
    return matched


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())
