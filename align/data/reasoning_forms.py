"""An answer with reasoning in the forms in which templates take it: between tags in its content, or in a field."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from align.data.conversation import REASONING_FIELDS
from align.data.template import Message, text_message
from align.data.thinking import Tags, find_thought


def brings_reasoning(message: Message, known: Sequence[Tags]) -> bool:
    """Whether a message brings reasoning in a way that this template may know."""
    if any(str(message.fields.get(name) or "").strip() for name in REASONING_FIELDS):
        return True
    thought = find_thought(message.content, known)
    return thought is not None and not thought.is_empty(message.content)


def forms(answer: Message, known: Sequence[Tags], *, takes_field: bool) -> Iterator[Message]:
    """An answer with reasoning in the ways in which templates take it, the row's own first; none without reasoning.

    Tags that the template does not know are text, unless it takes reasoning in a field of its own.
    """
    thought = find_thought(answer.content, known)
    if any(str(answer.fields.get(name) or "").strip() for name in REASONING_FIELDS):
        yield answer
    elif thought is not None:
        if thought.answer is None or thought.is_empty(answer.content):
            return
        yield answer
    apart = in_field(answer, known)
    if takes_field and apart is not answer:
        yield apart
    between = inline(answer, known)
    if between is not None:
        yield between


def in_field(answer: Message, known: Sequence[Tags]) -> Message:
    """The answer with the reasoning at the head of its content in a field; the same object where there is none."""
    content = answer.content
    thought = find_thought(content, known) or find_thought(content)
    if thought is None or thought.answer is None or thought.is_empty(content):
        return answer
    if thought.tags not in known and not thought.opened:
        return answer
    reasoning, text = content[slice(*thought.reasoning)].strip(), content[thought.answer :].lstrip()
    return text_message(answer.role, text, {**answer.fields, REASONING_FIELDS[0]: reasoning})


def inline(answer: Message, known: Sequence[Tags]) -> Message | None:
    """The answer with its reasoning in its content, between the template's tags; None where it knows none."""
    fields = {name: value for name, value in answer.fields.items() if name not in REASONING_FIELDS}
    reasoning = next((str(answer.fields[n]) for n in REASONING_FIELDS if answer.fields.get(n)), None)
    thought = find_thought(answer.content, known)
    if reasoning is None and thought is not None and thought.opened:
        return answer
    if not known or (reasoning is None and thought is None):
        return None
    opening, closing = known[0] if reasoning is not None or thought is None else thought.tags
    if reasoning is None:
        return text_message(answer.role, f"{opening}\n{answer.content.lstrip()}", fields)
    # A call alone stands behind it on a line of its own, which is the template's.
    behind = f"\n{answer.content}" if answer.content else ""
    return text_message(answer.role, f"{opening}\n{reasoning.strip()}\n{closing}\n{behind}", fields)
