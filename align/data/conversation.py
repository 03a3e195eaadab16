"""A conversation as the chat template has written it: the text, and whose each stretch of it is."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from align.core.errors import UserError
from align.data.calls import with_arguments
from align.data.marks import TOOLS, Part, Place, Stretch
from align.data.rendering import Rendered, Renderer
from align.data.spans import Regions
from align.data.template import Fragment, Kind, Message
from align.data.thinking import Tags, find_thought

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")  # of a message; the first is the standard's


class Region(NamedTuple):
    """`text[start:stop]` is content of this kind."""

    start: int
    stop: int
    kind: Kind


@dataclass(frozen=True)
class Conversation:
    """A rendered conversation.

    Attributes:
        messages: what was rendered.
        text: what the template wrote.
        regions: what in it is content, in their order; all else is the template's.
        extents: message → `(start, stop)` of its contents in the text; messages without content are left out.
        reasoning: message → `(start, stop)` of its reasoning, where the template has written that.
        answer: message → the same of what follows the reasoning, or of a content without any.
    """

    messages: tuple[Message, ...]
    text: str
    regions: tuple[Region, ...]
    extents: Mapping[int, tuple[int, int]]
    reasoning: Mapping[int, tuple[int, int]]
    answer: Mapping[int, tuple[int, int]]

    def before(self, message: int) -> int:
        """Where the contents before a message end."""
        nearest = next((i for i in range(message - 1, -1, -1) if i in self.extents), None)
        return 0 if nearest is None else self.extents[nearest][1]

    def after(self, message: int) -> int:
        """Where the contents after a message begin; the text's end where there are none."""
        nearest = next((i for i in range(message + 1, len(self.messages)) if i in self.extents), None)
        return len(self.text) if nearest is None else self.extents[nearest][0]

    def fragments(self, start: int, stop: int) -> tuple[Fragment, ...]:
        """A stretch of the text in fragments."""
        found, at = [], start
        for region in self.regions[bisect_right(self.regions, start, key=lambda one: one.stop) :]:
            if region.start >= stop:
                break
            first, last = max(region.start, at), min(region.stop, stop)
            if at < first:
                found.append(Fragment(self.text[at:first], "template"))
            found.append(Fragment(self.text[first:last], region.kind))
            at = last
        if at < stop:
            found.append(Fragment(self.text[at:stop], "template"))
        return tuple(found)

    def replaced(self, start: int, stop: int, text: str, regions: Sequence[Region] = ()) -> Conversation:
        """The conversation with another text, of the last message, in the place of `text[start:stop]`.

        Args:
            start, stop: all regions that are not the last message's answer end before `start`.
            text: the new text.
            regions: of it, counted from its beginning.
        """
        by = len(text) - (stop - start)
        kept = [region for region in self.regions if region.stop <= start]
        moved = [Region(a + by, b + by, kind) for a, b, kind in self.regions if a >= stop]
        own = [Region(a + start, b + start, kind) for a, b, kind in regions]
        last = len(self.messages) - 1
        first, end = self.extents[last]
        return replace(
            self,
            text=self.text[:start] + text + self.text[stop:],
            regions=(*kept, *own, *moved),
            extents={**self.extents, last: (first + by, end + by)},
        )

    def behind(self, prompt: Conversation, message: int) -> Conversation:
        """The conversation from the end of the prompt's contents on, behind another rendering of the same prompt.

        Args:
            prompt: the messages before the last one.
            message: number of the last.

        Raises:
            UserError: this conversation has no such place.
        """
        asked = max(prompt.extents, default=-1)
        ends = {i: stop for i, (_, stop) in self.extents.items() if i < message}
        if message not in self.extents or asked not in ends or ends[asked] < max(ends.values()):
            raise UserError("it moves text when an answer is added")
        floor, own = prompt.extents[asked][1], ends[asked]
        by = floor - own

        def moved(own: Mapping[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
            return {message: (own[message][0] + by, own[message][1] + by)} if message in own else {}

        return Conversation(
            messages=self.messages,
            text=prompt.text[:floor] + self.text[own:],
            regions=(
                *(one for one in prompt.regions if one.stop <= floor),
                *(Region(a + by, b + by, kind) for a, b, kind in self.regions if a >= own),
            ),
            extents={**prompt.extents, **moved(self.extents)},
            reasoning={**prompt.reasoning, **moved(self.reasoning)},
            answer={**prompt.answer, **moved(self.answer)},
        )


def converse(
    renderer: Renderer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    known: Sequence[Tags],
    *,
    answers: int,
    variables: Mapping[str, Any],
    generation: bool = False,
    checked: int = TOOLS,
) -> Conversation:
    """Has the template write a conversation.

    Args:
        renderer: with the template.
        messages: all of them.
        tools: of the row.
        known: tags of thinking blocks that the template knows: in an assistant's content they are its own.
        answers: number of the first answer, of which the place is found even if it is empty.
        variables: of the template, beside the settings' own.
        generation: whether the generation prompt follows.
        checked: number of the first message that the template may not drop, repeat or rewrite; all, unless given.

    Raises:
        UserError: the template refuses the messages, or drops, repeats or rewrites what it may not.
    """
    stretches = list(_stretches(messages, tools, known, answers))
    rendered = renderer.place(
        as_chat(messages),
        stretches,
        tools,
        trusted=_tags(messages, known),
        generation=generation,
        **variables,
    )
    for stretch in (one for one in stretches if one.message >= checked):
        _check(messages, stretch, rendered.places[stretch])
    regions = list(_regions(messages, stretches, rendered))
    extents: dict[int, tuple[int, int]] = {}
    reasoning: dict[int, tuple[int, int]] = {}
    answer: dict[int, tuple[int, int]] = {}
    for stretch in stretches:
        place = rendered.places[stretch]
        if place is None or stretch.message == TOOLS:
            continue
        start, stop = place.span or (place.mark, place.mark)
        old = extents.get(stretch.message, (start, stop))
        extents[stretch.message] = (min(start, old[0]), max(stop, old[1]))
        if place.span is not None and stretch.part != "name":
            (reasoning if stretch.part == "reasoning" else answer)[stretch.message] = place.span
    return Conversation(tuple(messages), rendered.text, tuple(sorted(regions)), extents, reasoning, answer)


def as_chat(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as templates receive them; arguments of tool calls that are JSON texts as what they say."""
    chat = []
    for message in messages:
        fields = dict(message.fields)
        if fields.get("tool_calls"):
            fields["tool_calls"] = [with_arguments(call) for call in fields["tool_calls"]]
        content = message.content if message.fragments else None
        chat.append({"role": message.role, "content": content, **fields})
    return chat


def _stretches(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    known: Sequence[Tags],
    answers: int,
) -> Iterator[Stretch]:
    """What is to be found in the text: contents, reasoning, names of the tools that are called or offered."""
    for i, message in enumerate(messages):
        content = message.content
        thought = find_thought(content, known) if message.role == "assistant" else None
        parts: list[tuple[tuple[str, ...], Part, str, tuple[int, int]]]
        if thought is None:
            parts = [(("content",), "whole", content, (0, len(content)))]
        else:
            parts = [(("content",), "reasoning", content, thought.reasoning)]
            if thought.answer is not None:
                parts.append((("content",), "answer", content, (thought.answer, len(content))))
        for name in REASONING_FIELDS:
            if isinstance(text := message.fields.get(name), str):
                parts.append(((name,), "reasoning", text, (0, len(text))))
        for path, part, text, (start, stop) in parts:
            core = text[start:stop].strip()
            if core:
                first = start + text[start:stop].index(core)
                yield Stretch(i, path, first, first + len(core), part)
        calls = message.fields.get("tool_calls") or ()
        if i >= answers and message.role == "assistant" and not content.strip() and not calls:
            yield Stretch(i, ("content",), 0, 0, "whole")
        for j, call in enumerate(calls):
            yield from _name(i, ("tool_calls", j), call)
    for j, tool in enumerate(tools or ()):
        yield from _name(TOOLS, (j,), tool)


def _tags(messages: Sequence[Message], known: Sequence[Tags]) -> dict[tuple[str | int, ...], frozenset[int]]:
    """Where tags around reasoning begin or lie in assistants' contents."""
    found: dict[tuple[str | int, ...], frozenset[int]] = {}
    for i, message in enumerate(messages):
        thought = find_thought(message.content, known) if message.role == "assistant" else None
        if thought is not None:
            start, stop = thought.reasoning
            opening = range(start - len(thought.tags.opening), start) if thought.opened else range(0)
            closing = range(stop, stop + len(thought.tags.closing))
            found[(i, "content")] = frozenset((*opening, *closing))
    return found


def _name(message: int, path: tuple[str | int, ...], value: Any) -> Iterator[Stretch]:
    """The name of a function that is called or offered."""
    if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping):
        value, path = value["function"], (*path, "function")
    name = value.get("name") if isinstance(value, Mapping) else None
    if isinstance(name, str) and name.strip() == name != "":
        yield Stretch(message, (*path, "name"), 0, len(name), "name")


def _check(messages: Sequence[Message], stretch: Stretch, place: Place | None) -> None:
    """Refuses a template that leaves out or repeats what was said; reasoning of earlier answers it may leave out."""
    if stretch.message == TOOLS:
        if place is None:
            raise UserError(
                "it has no place for the column tools: leave that out, or name a template that has one "
                "(data.chat_template)"
            )
        return
    message = messages[stretch.message]
    if stretch.part == "name":
        if place is None:
            raise UserError("it drops the tool calls of an assistant message")
        return
    whole = stretch.part != "reasoning"
    if place is None and whole and message.fields.get("tool_calls"):
        raise UserError(
            f"it drops what a message of the {message.role} says beside its tool calls: leave that out of the row"
        )
    if (place is None and whole) or (place is not None and place.count > 1):
        raise UserError(f"it drops or repeats a message, the {message.role}'s")
    if message.holds_context and place is not None and place.span is None:
        raise UserError(f"it rewrites a {message.role} message that holds context")


def _regions(
    messages: Sequence[Message], stretches: Sequence[Stretch], rendered: Rendered
) -> Iterator[Region]:
    """Whose each stretch of the text is."""
    covered = []
    for stretch in stretches:
        place = rendered.places[stretch]
        if place is None or place.span is None:
            continue
        covered.append(place.span)
        if stretch.message == TOOLS or stretch.path != ("content",):
            yield Region(*place.span, "text")
            continue
        at = place.span[0] - place.of_string[0]  # of the content's first character
        for fragment in messages[stretch.message].fragments:
            start, stop = max(at, place.span[0]), min(at + len(fragment.text), place.span[1])
            if start < stop and fragment.kind != "template":
                yield Region(start, stop, fragment.kind)
            at += len(fragment.text)
    known = Regions(covered)
    for start, stop in rendered.plain:
        if not known.holds(start, stop):
            yield Region(start, stop, "text")
