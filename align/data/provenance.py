"""Whether a row's prompt holds what its chosen answer was made from, by what data pipelines record."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_PARAGRAPHS = re.compile(r"\n[ \t]*\n\s*")


def leaks(values: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each leak of a raw row; none where the row records nothing of its making.

    Checked are, where the columns are there: that the chunk which was asked of stands in the context and among
    the chosen answer's chunks (`asked_of`, `chunks`, `chosen_chunks`: LOGO, LongPO); that no context of
    irrelevant chunks holds it (`rejected_chunks`, `rejected_kinds`: LOGO); that a short context is part of the
    long one (`short_prompt`, `short_prompts`: LongPO, SoLoPO). A short context that no pipeline of ours has made
    may be worded anew: it leaks only where not one of its paragraphs is in the context.
    """
    context = _texts(values.get("context"))
    if not context:
        return
    asked = _texts(values.get("asked_of"))
    chunks = values.get("chunks")
    if asked and isinstance(chunks, list):
        ids = [chunk.get("id") for chunk in chunks if isinstance(chunk, dict)]
        if len(ids) != len(context):
            yield f"it describes {len(ids)} chunks, but its context has {len(context)}"
        for name in asked:
            if name not in ids:
                yield f"the chunk that was asked of ({name}) is not in the context"
        yield from _contexts_of_answers(values, set(asked))
    whole = _plain("\n\n".join(context))
    for place, short in enumerate(_texts(values.get("short_prompts", values.get("short_prompt"))), start=1):
        paragraphs = [_plain(text) for text in _PARAGRAPHS.split(short) if text.strip()]
        found = sum(text in whole for text in paragraphs)
        if found < (len(paragraphs) if asked else min(1, len(paragraphs))):
            lost = f"{len(paragraphs) - found} of {len(paragraphs)} paragraphs"
            yield f"{lost} of short context {place} are not in the context"


def _contexts_of_answers(values: Mapping[str, Any], asked: set[str]) -> Iterator[str]:
    """The chunk asked of belongs to the chosen answer's chunks and to no irrelevant context."""
    chosen = values.get("chosen_chunks")
    if isinstance(chosen, list) and not asked <= set(_texts(chosen)):
        yield "the chosen answer was made without the chunk that was asked of"
    rejected, kinds = values.get("rejected_chunks"), values.get("rejected_kinds")
    if isinstance(rejected, list) and isinstance(kinds, list):
        critical = asked | set(_texts(chosen))
        for place, (own, kind) in enumerate(zip(rejected, kinds, strict=False), start=1):
            seen = sorted(critical & set(_texts(own)))
            if kind == "irrelevant" and seen:
                yield f"rejected answer {place} counts as made from irrelevant chunks, but saw {seen[0]}"


def _texts(value: Any) -> list[str]:
    """A string, or a list of strings; anything else holds none."""
    values = [value] if isinstance(value, str) else value
    return [text for text in values if isinstance(text, str)] if isinstance(values, list) else []


def _plain(text: str) -> str:
    """White space makes no difference."""
    return " ".join(text.split())
