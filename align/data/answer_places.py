"""Where in a rendered conversation an answer begins and ends: prompt before it, scored text from there on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from align.core.errors import UserError
from align.data.conversation import Conversation, Region
from align.data.thinking import (
    Tags,
    Thought,
    before_closed_block,
    before_open_block,
    closing_of,
    empty_block,
    opens_block,
)


class ThinkingError(UserError):
    """A row and a template disagree about reasoning; the message says what to do."""


@dataclass(frozen=True)
class Turn:
    """An answer's place: `text[start:stop]`, its end token included."""

    start: int
    stop: int


class Start(NamedTuple):
    """Where the last answer begins.

    Attributes:
        conversation: with it.
        at: its first character; what stands before it is the prompt.
        is_given: whether a model is given just this prompt.
    """

    conversation: Conversation
    at: int
    is_given: bool = True


@dataclass(frozen=True)
class Generation:
    """What a model is given to answer, from the end of the last message's content on.

    With Qwen3 `given` and `thinking` are `<|im_end|>⏎<|im_start|>assistant⏎`, and `plain` goes on with an empty block.

    Attributes:
        given: with the row's own settings.
        thinking: with thinking switched on; None where the template has no switch or the settings name it.
        plain: with thinking switched off, likewise.
        ends_with_block: with thinking switched off it ends with a closing tag, and white space behind that is the
            answer's (GLM).
    """

    given: str
    thinking: str | None = None
    plain: str | None = None
    ends_with_block: bool = False


def end_of_answer(after: str, specials: re.Pattern[str], end_of_text: str, *, last: bool, calls: bool) -> str:
    """What ends an answer, of the text that the template writes after it.

    That is all up to and with the first special token, `<|im_end|>`; where several stand side by side and the
    end-of-text token is one of them, up to that (Cohere's `<|END_RESPONSE|><|END_OF_TURN_TOKEN|>`).

    Args:
        after: up to the next message's content.
        specials: matches special tokens.
        end_of_text: the tokenizer's, which ends a last answer behind which no special token is written.
        last: no message follows.
        calls: the answer calls tools, whose marks may be special tokens; then the last end-of-text token ends it, or
            else the last token of all.
    """
    found = list(specials.finditer(after))
    if not found and not last:
        return ""
    if not found:
        if not end_of_text:
            raise UserError("it writes no special token behind an answer, and the tokenizer has no eos_token")
        return (after.rstrip() if calls else "") + end_of_text
    if calls and last:  # Command R7B writes the next generation prompt behind it in any case
        ends = [one for one in found if one.group() == end_of_text]
        return after[: (ends or found)[-1].end()]
    stop = found[0].end()
    for one, following in pairwise(found):
        if one.group() == end_of_text or one.end() != following.start():
            break
        if following.group() == end_of_text:
            stop = following.end()
    return after[:stop]


def start_of_plain(
    conversation: Conversation,
    message: int,
    generation: Generation,
    known: Sequence[Tags],
    *,
    closes: bool,
) -> Start:
    """Where the last answer, which brings no reasoning, begins; what its prompt has of an empty block is not scored.

    Args:
        conversation: with the answer.
        message: the answer's number.
        generation: what the model is given.
        known: tags of the template.
        closes: a block that the prompt opens is closed at once where the template does not do it.

    Raises:
        ThinkingError: the answer would stand inside an open block.
        UserError: the generation prompt is not what stands before the answer.
    """
    floor, content = conversation.before(message), conversation.extents[message][0]
    rest, written = conversation.text[floor:], conversation.text[floor:content]
    block = empty_block(written, known)
    if block is not None:
        behind, known_prompt = _behind_block(rest, written, block, generation)
        return Start(conversation, floor + behind, known_prompt)
    plain = generation.plain
    # A variable of that name need not be the template's switch, so that with it a block may still be open.
    if plain is not None and rest.startswith(plain) and opens_block(plain, known) is None:
        return Start(conversation, floor + len(plain))
    opened = opens_block(generation.given, known)
    if opened is not None:
        if not closes:
            raise ThinkingError(
                f"an answer without reasoning would stand inside the thinking block ({opened.opening}) that the "
                "chat template opens: set data.thinking=close, which closes the block before it, or drop, which "
                "also leaves out the reasoning of other answers."
            )
        given = generation.given + closing_of(generation.given, opened)
        length = before_open_block(written, generation.given, opened)
        if length is None and conversation.messages[message].fields.get("tool_calls"):
            raise UserError("the generation prompt is not what it writes before a tool call")
        stop = content if length is None else floor + length
        return Start(conversation.replaced(floor, stop, given), floor + len(given))
    if rest.startswith(generation.given):
        return Start(conversation, floor + len(generation.given))
    same = generation.given.rstrip() == written.rstrip()
    said = len(written) if same else before_closed_block(written, generation.given, known)
    if said is None:
        raise UserError("the generation prompt is not what it writes before an answer")
    return Start(conversation.replaced(floor, floor + said, generation.given), floor + len(generation.given))


def _behind_block(
    rest: str, written: str, block: tuple[int, int], generation: Generation
) -> tuple[int, bool]:
    """The end of the empty block in `rest`, and whether a model is given just that."""
    for prompt in (generation.plain, generation.given):
        if prompt is not None and len(prompt) >= block[1] and rest.startswith(prompt):
            return len(prompt), True
    if generation.ends_with_block:
        return block[1], False
    return len(written) - len(written[block[1] :].lstrip()), False


def start_of_reasoned(
    conversation: Conversation, message: int, generation: Generation, known: Sequence[Tags]
) -> Start | None:
    """Where the last answer, which brings reasoning, begins; arguments as of `start_of_plain`.

    Returns:
        None where the template has not written reasoning and answer once each, in one block.
    """
    said, closings = conversation.messages[message], tuple(tags.closing for tags in known)
    silent = not said.content.strip() or said.content.rstrip().endswith(closings)
    calls = silent and said.fields.get("tool_calls")  # they stand where an answer would
    if message not in conversation.reasoning or not (calls or message in conversation.answer):
        return None
    floor, (first, last) = conversation.before(message), conversation.reasoning[message]
    start = conversation.extents[message][1] if calls else conversation.answer[message][0]
    head, middle = conversation.text[floor:first], conversation.text[last:start]
    if first > start or any(
        tags.closing in head or tags.opening in middle or head.count(tags.opening) > 1 for tags in known
    ):
        return None
    rest = conversation.text[floor:]
    for given in filter(None, (generation.given, generation.thinking)):
        if rest.startswith(given) and len(given) <= len(head):
            own = _in_own_block(head.removeprefix(given), known) and not _stays_open(head, middle, known)
            return Start(conversation, floor + len(given)) if own else None
        opened = opens_block(given, known)
        if (
            opened is not None
        ):  # written without the opening tag (Nemotron), or with other white space behind it
            tagless = given[: given.rindex(opened.opening)]
            if head.startswith(tagless) and head.removeprefix(tagless).strip() in ("", opened.opening):
                return Start(conversation.replaced(floor, first, given), floor + len(given))
    return None


def _in_own_block(head: str, known: Sequence[Tags]) -> bool:
    """Whether only white space stands before a block's opening tag; Command R7B writes one inside its response."""
    return not any(tags.opening in head and head.partition(tags.opening)[0].strip() for tags in known)


def _stays_open(head: str, middle: str, known: Sequence[Tags]) -> bool:
    """Whether one of the two tags of the block is missing."""
    return any(
        (tags.opening in head) != (tags.closing in middle)
        for tags in known
        if tags.opening in head or tags.closing in middle
    )


def own_output(
    conversation: Conversation,
    message: int,
    generation: Generation,
    known: Sequence[Tags],
    content: str,
    thought: Thought,
) -> Start | None:
    """The last answer as a model itself puts it out, for templates that leave reasoning out of what they write.

    With DeepSeek-R1's distilled models the prompt ends with `<think>⏎`, and the answer is `So.⏎</think>⏎⏎Ada.`

    Args:
        conversation: with the answer's text behind its reasoning alone; of an answer that has none, its reasoning.
        message, generation, known: as of `start_of_plain`.
        content: the whole answer.
        thought: it, taken apart.
    """
    given = next(
        (one for one in (generation.given, generation.thinking) if one and opens_block(one, known)), None
    )
    closed = thought.answer is not None and content[thought.answer :].strip() != ""
    if given is None and (closed or not thought.opened):
        return None
    floor, (first, last) = conversation.before(message), conversation.extents[message]
    start, stop = thought.reasoning
    reasoning = content[start:stop]
    before = "" if given is not None else thought.tags.opening
    if given is not None and given[-1:].isspace():
        reasoning = reasoning.lstrip()
    given = given if given is not None else generation.given
    at = len(given) + len(before)
    if closed:
        core = len(content) - len(content[thought.answer :].lstrip())
        written = conversation.text[floor:first]
        said = before_open_block(written, given + before, thought.tags)
        mark = "" if said is None else written[said:]
        text = f"{given}{before}{reasoning}{content[stop:core]}{mark}"
        reasoned = [Region(at, at + len(reasoning), "text")]
        return Start(conversation.replaced(floor, first, text, reasoned), floor + len(given))
    text = f"{given}{before}{reasoning}{content[stop:].rstrip()}"
    reasoned = [Region(at, at + len(reasoning), "text")]
    return Start(conversation.replaced(floor, last, text, reasoned), floor + len(given))


def start_of_earlier(
    conversation: Conversation,
    message: int,
    generation: Generation,
    known: Sequence[Tags],
    *,
    reasons: bool,
) -> int:
    """Where an answer begins that other turns follow: the template writes it as history.

    Args:
        conversation, message, known: as of `start_of_plain`.
        generation: what the model is given at the first turn.
        reasons: the answer brings reasoning.

    Raises:
        ThinkingError: the template leaves the reasoning of earlier answers out, or writes it behind a closed block.
    """
    floor, content = conversation.before(message), conversation.extents[message][0]
    rest, written = conversation.text[floor:], conversation.text[floor:content]
    block = empty_block(written, known)
    if reasons and (message not in conversation.reasoning or block is not None):
        raise ThinkingError(
            "the chat template leaves out the reasoning of all answers but the last, so that an earlier answer "
            "cannot be trained with its own: set data.thinking=drop, or make a row of each turn."
        )
    if block is not None:
        return floor + _behind_block(rest, written, block, generation)[0]
    fitting = [
        len(one)
        for one in (generation.given, generation.thinking, generation.plain)
        if one and rest.startswith(one) and len(one) <= len(written)
    ]
    if fitting:
        return floor + max(fitting)
    tags = [written.find(one.opening) for one in known if reasons and one.opening in written]
    return floor + min(tags, default=len(written))
