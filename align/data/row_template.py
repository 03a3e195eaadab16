"""One row under a chat template: its conversation with one answer a turn, and where its answers stand."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from align.core.errors import UserError
from align.data.answer_places import (
    Generation,
    Start,
    ThinkingError,
    Turn,
    end_of_answer,
    own_output,
    start_of_earlier,
    start_of_plain,
    start_of_reasoned,
)
from align.data.conversation import Conversation, as_chat, converse
from align.data.reasoning_forms import brings_reasoning, forms, in_field, inline
from align.data.rendering import Renderer
from align.data.template import Fragment, Message, Segment, text_message
from align.data.thinking import TAGS, Tags, empty_block, find_thought


class Branch(NamedTuple):
    """The prompt with one answer a turn.

    Attributes:
        conversation: all of it.
        turns: where the answers stand.
        floor: where the prompt's contents end; what follows is the generation prompt.
        is_given: whether a model is given just what stands before the last answer.
    """

    conversation: Conversation
    turns: tuple[Turn, ...]
    floor: int
    is_given: bool

    def segments(self, start: int) -> tuple[Segment, ...]:
        """What follows a prompt of `start` characters."""
        segments, at = [], start
        for place, turn in enumerate(self.turns):
            if place:
                segments.append(Segment(self.conversation.fragments(at, turn.start), scored=False))
                at = turn.start
            segments.append(Segment(self.conversation.fragments(at, turn.stop), scored=True))
            at = turn.stop
        return tuple(segments)


class RowTemplate:
    """Puts answers to one prompt and its later questions.

    Args:
        renderer: with the chat template.
        messages: the prompt.
        questions: what is asked later, before each answer but the first.
        tools: of the row.
        known: tags of thinking blocks that the template knows.
        switches: its variables that switch thinking, where the settings leave them alone.
        end_of_text: what ends a last answer behind which the template writes no special token.
        variables: of the template, beside the settings' own.
        takes_field: the template writes the reasoning that a message has in a field of its own.
        closes: see `start_of_plain`.
    """

    def __init__(
        self,
        renderer: Renderer,
        messages: Sequence[Message],
        questions: Sequence[Sequence[Message]],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        known: Sequence[Tags],
        switches: Sequence[str],
        end_of_text: str,
        variables: Mapping[str, Any],
        takes_field: bool,
        closes: bool,
    ) -> None:
        self.renderer, self.tools, self.known, self.switches = renderer, tools, known, switches
        self.messages, self.questions = list(messages), list(questions)
        self.variables = dict(variables)
        self.end_of_text, self.takes_field, self.closes = end_of_text, takes_field, closes

    def branch(self, answers: Sequence[Message]) -> Branch:
        """The conversation with these answers, one a turn.

        Raises:
            UserError: see `ChatTemplate.render`.
        """
        row, places = list(self.messages), []
        for turn, answer in enumerate(answers):
            row += self.questions[turn - 1] if turn else []
            places.append(len(row))
            # The last answer's form is found out; the reasoning of others is best given apart.
            apart = self.takes_field and turn < len(answers) - 1
            row.append(in_field(answer, self.known) if apart else answer)
        first, last = places[0], places[-1]
        conversation, start, is_given = self._last(row)
        floor = conversation.before(first)
        generation = self._generation(self._prompts, conversation, floor)
        turns = [self._earlier(conversation, index, generation) for index in places[:-1]]
        stop, end = self._end(conversation, last)
        conversation = replace(conversation, text=conversation.text[:stop] + end)
        return Branch(conversation, (*turns, Turn(start, stop + len(end))), floor, is_given)

    def _earlier(self, conversation: Conversation, index: int, generation: Generation) -> Turn:
        """The place of an answer that other turns follow."""
        message = conversation.messages[index]
        reasons = brings_reasoning(message, self.known if not self.takes_field else TAGS)
        start = start_of_earlier(conversation, index, generation, self.known, reasons=reasons)
        stop, end = self._end(conversation, index)
        return Turn(start, stop + len(end))

    def _end(self, conversation: Conversation, index: int) -> tuple[int, str]:
        """Where an answer's content ends, and what ends the answer."""
        stop = conversation.extents[index][1]
        end = end_of_answer(
            conversation.text[stop : conversation.after(index)],
            self.renderer.specials,
            self.end_of_text,
            last=index == len(conversation.messages) - 1,
            calls=bool(conversation.messages[index].fields.get("tool_calls")),
        )
        return stop, end

    def _last(self, row: Sequence[Message]) -> Start:
        """The conversation and where its last answer begins."""
        answer, index = row[-1], len(row) - 1
        for form in forms(answer, self.known, takes_field=self.takes_field):
            try:
                conversation = self._write([*row[:-1], form])
            except UserError:
                continue
            generation = self._generation_of_last(row, conversation)
            found = start_of_reasoned(conversation, index, generation, self.known)
            if found is not None:
                return found
        if brings_reasoning(answer, self.known):
            return self._own_output(row)
        thought = find_thought(answer.content, self.known)
        conversation = self._write(row)
        if (
            thought is not None and thought.answer is not None
        ):  # an empty block, which the answer itself closes
            bare = text_message("assistant", answer.content[thought.answer :].lstrip(), answer.fields)
            without = self._write([*row[:-1], bare])
            written = without.text[without.before(index) : without.extents[index][0]]
            conversation = without if empty_block(written, self.known) else conversation
        generation = self._generation_of_last(row, conversation)
        return start_of_plain(
            conversation, index, generation, self.known, closes=self.closes or thought is not None
        )

    def _own_output(self, row: Sequence[Message]) -> Start:
        """The last answer with its reasoning where the template leaves that out."""
        answer, index = inline(row[-1], self.known), len(row) - 1
        thought = None if answer is None else find_thought(answer.content, self.known)
        if answer is not None and thought is not None and not answer.fields.get("tool_calls"):
            behind = "" if thought.answer is None else answer.content[thought.answer :].strip()
            text = behind or answer.content[slice(*thought.reasoning)].strip()
            conversation = self._write([*row[:-1], text_message("assistant", text, answer.fields)])
            generation = self._generation_of_last(row, conversation)
            found = own_output(conversation, index, generation, self.known, answer.content, thought)
            if found is not None:
                return found
        raise ThinkingError(
            "the chat template leaves out the reasoning of an answer, or its generation prompt has thinking switched "
            "off: set data.thinking=drop, or data.template_kwargs={enable_thinking: true} where it has this switch."
        )

    def _write(self, messages: Sequence[Message]) -> Conversation:
        """The conversation; of one answer behind what a model is given, where the template writes that otherwise.

        Mistral's templates write the system message into the last question, if that is the last message, and
        LFM2.5's the reasoning of the last answer alone: both change the prompt as soon as an answer follows it.
        """
        count = len(self.messages)
        if len(messages) != count + 1:
            return self._converse(messages)
        try:
            conversation = self._converse(messages)
            given = self._prompts[0] or ""
            if given.startswith(conversation.text[: conversation.before(count)]):
                return conversation
        except UserError:  # what is wrong is told of the two parts
            pass
        return self._converse(messages, checked=count).behind(self._given, count)

    @functools.cached_property
    def _given(self) -> Conversation:
        """What a model is given to answer the prompt."""
        return self._converse(self.messages, generation=True)

    def _converse(self, messages: Sequence[Message], **how: Any) -> Conversation:
        return converse(
            self.renderer,
            messages,
            self.tools,
            self.known,
            answers=len(self.messages),
            variables=self.variables,
            **how,
        )

    @functools.cached_property
    def _prompts(self) -> tuple[str | None, ...]:
        return self._prompts_of(self.messages)

    def _prompts_of(self, messages: Sequence[Message]) -> tuple[str | None, ...]:
        """The prompt with its generation prompt: as it is, with thinking switched on, and off."""
        chat = as_chat(messages)
        given = self.renderer.text(chat, self.tools, generation=True, **self.variables)
        if not self.switches:
            return given, None, None
        switched: list[str | None] = []
        for value in (True, False):
            variables = dict.fromkeys(self.switches, value)
            try:
                switched.append(self.renderer.text(chat, self.tools, generation=True, **variables))
            except UserError:  # Hermes 4 with thinking on wants it in all earlier answers
                switched.append(None)
        return given, *switched

    def _generation_of_last(self, row: Sequence[Message], conversation: Conversation) -> Generation:
        prompts = self._prompts if len(row) == len(self.messages) + 1 else self._prompts_of(row[:-1])
        return self._generation(prompts, conversation, conversation.before(len(row) - 1))

    def _generation(
        self, prompts: Sequence[str | None], conversation: Conversation, floor: int
    ) -> Generation:
        given, thinking, plain = (_tail(text, conversation, floor) for text in prompts)
        if given is None:
            raise UserError("it moves text when turns are added, so that turns cannot share a prompt")
        ends = any((prompts[2] or "").endswith(tags.closing) for tags in self.known)
        return Generation(given, thinking, plain, ends)


def prompt_alone(
    renderer: Renderer, messages: Sequence[Message], known: Sequence[Tags]
) -> tuple[Fragment, ...]:
    """What a model is given to answer `messages`.

    Raises:
        UserError: the template refuses them, or drops, repeats or rewrites their contents.
    """
    prompt = converse(renderer, messages, None, known, answers=len(messages), variables={}, generation=True)
    return prompt.fragments(0, len(prompt.text))


def _tail(text: str | None, conversation: Conversation, floor: int) -> str | None:
    """What a prompt has behind the last content, where all before it is as in the conversation."""
    if text is None or not text.startswith(conversation.text[:floor]):
        return None
    return text[floor:]
