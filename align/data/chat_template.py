"""A tokenizer's chat template: a row's prompt and answers, taken from what it writes for the real conversation.

Where the template begins and ends is known from marks (marks.py), never searched for. So a document that contains
chat markers such as `<|im_end|>` cannot move masks and spans.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from align.core.errors import UserError
from align.data.answer_places import ThinkingError, end_of_answer
from align.data.calls import unwritten
from align.data.conversation import REASONING_FIELDS, converse
from align.data.reasoning_forms import brings_reasoning
from align.data.rendering import Renderer
from align.data.row_template import Branch, RowTemplate, prompt_alone
from align.data.template import Fragment, Message, Rendering, text_message, without_end
from align.data.thinking import Tags, find_thought, tags_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Variables by which templates switch thinking: most families, DeepSeek-V3.1 and Granite.
SWITCHES = ("enable_thinking", "thinking")


class ChatTemplate:
    """A chat template and what is done about reasoning.

    Args:
        tokenizer: its template, unless `chat_template` names another.
        specials: matches its special tokens.
        thinking: `data.thinking`.
        chat_template: a template's source.
        template_kwargs: variables for every rendering.
        today: the date that templates write which ask for it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        specials: re.Pattern[str],
        *,
        thinking: str = "keep",
        chat_template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        today: date | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.specials = specials
        self.thinking = thinking
        self.renderer = Renderer(
            tokenizer, specials, chat_template=chat_template, template_kwargs=template_kwargs, today=today
        )

    def render(
        self,
        source: str,
        messages: Sequence[Message],
        questions: Sequence[Sequence[Message]],
        answers: Sequence[Sequence[Message]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Rendering:
        """See `Template.render`.

        Prompt and answer are split where the generation prompt ends. An empty thinking block that the template
        writes before an answer without reasoning belongs to the prompt; where another answer of the row brings
        reasoning, the prompt is what both have in common.

        Raises:
            UserError: the template refuses these messages, or drops, repeats or rewrites their contents, or an answer
                would stand inside a thinking block that is not its own.
        """
        try:
            return self._render(messages, questions, answers, tools)
        except ThinkingError as error:
            raise UserError(f"{source}: {error}") from error
        except UserError as error:
            said = [message for part in (messages, *questions, *answers) for message in part]
            calls = any(message.fields.get("tool_calls") for message in said)
            results = any(message.role == "tool" for message in said)
            lost = unwritten(self.renderer.source(tools), calls=calls, results=results)
            if lost is None:
                raise UserError(f"{source}: the chat template cannot render this row ({error}).") from error
            raise UserError(
                f"{source}: this model's chat template does not write {lost} ({error}): use a model whose template "
                "does, or name one with data.chat_template=FILE."
            ) from error

    def prompt(self, source: str, messages: Sequence[Message]) -> tuple[Fragment, ...]:
        """What a model is given to answer `messages`; raises UserError as `render`."""
        try:
            return prompt_alone(self.renderer, self._as_known(messages), self._known(None))
        except UserError as error:
            raise UserError(f"{source}: the chat template cannot render this ({error}).") from error

    def _render(
        self,
        messages: Sequence[Message],
        questions: Sequence[Sequence[Message]],
        answers: Sequence[Sequence[Message]],
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> Rendering:
        known = self._known(tools)
        dropped, said = 0, []
        for turns in zip(*answers, strict=True):
            kept = [self._without_reasoning(answer, known) for answer in turns]
            dropped += sum(one is not answer for one, answer in zip(kept, turns, strict=True))
            said.append([self._without_end(answer) for answer in kept])
        if dropped and any(other == said[0] for other in said[1:]):
            raise ThinkingError(
                "a rejected answer without its reasoning equals the chosen one: set data.thinking=keep, or leave "
                "the row out."
            )
        branches = self._branches(self._as_known(messages), questions, said, tools)
        texts = [one.conversation.text[: one.turns[0].start] for one in branches]
        length = _common(texts, branches[0].floor)
        return Rendering(
            prompt=branches[0].conversation.fragments(0, length),
            answers=tuple(one.segments(length) for one in branches),
            dropped_reasoning=dropped,
        )

    def _branches(
        self,
        messages: Sequence[Message],
        questions: Sequence[Sequence[Message]],
        said: Sequence[Sequence[Message]],
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> list[Branch]:
        """The conversation with each answer, thinking switched as the settings say or, where no prompt that a model is
        given comes out of that, as the answers imply.

        GLM-4.5 switches thinking off by a word in the question as well: a row without reasoning has that word.
        """
        known, switches = self._known(tools), self._switches(tools)

        def write(variables: Mapping[str, Any]) -> list[Branch]:
            row = RowTemplate(
                self.renderer,
                messages,
                questions,
                tools,
                known=known,
                switches=switches,
                end_of_text=str(self.tokenizer.eos_token or ""),
                variables=variables,
                takes_field=self._takes_field,
                closes=self.thinking != "keep",
            )
            return [row.branch(answers) for answers in said]

        thinks = {brings_reasoning(answer, known) for answers in said for answer in answers}
        branches, refusal = None, None
        try:
            branches = write({})
        except UserError as error:
            refusal = error
        if switches and len(thinks) == 1 and not (branches and all(one.is_given for one in branches)):
            try:
                switched = write(dict.fromkeys(switches, thinks.pop()))
                if branches is None or all(one.is_given for one in switched):
                    return switched
            except UserError:  # what is wrong is told of the row as the settings have it
                pass
        if branches is None:
            raise refusal or UserError("it gives no prompt")
        return branches

    def _without_reasoning(self, answer: Message, known: Sequence[Tags]) -> Message:
        """The answer as `data.thinking` wants it; the same object where nothing is left out."""
        if self.thinking != "drop":
            return answer
        fields = {name: value for name, value in answer.fields.items() if name not in REASONING_FIELDS}
        content = answer.content
        thought = find_thought(content, known) or find_thought(content)
        if thought is not None and not (thought.opened or thought.tags in known):
            thought = None
        if thought is None and len(fields) == len(answer.fields):
            return answer
        text = content
        if thought is not None:
            text = "" if thought.answer is None else content[thought.answer :].lstrip()
        if not text.strip() and not fields.get("tool_calls"):
            raise ThinkingError(
                "nothing is left of an answer without its reasoning: set data.thinking=keep, or leave the row out."
            )
        return text_message(answer.role, text, fields)

    def _without_end(self, answer: Message) -> Message:
        """The answer without an end token of its own."""
        text = without_end(answer.content, self._end)
        return answer if text == answer.content else text_message(answer.role, text, answer.fields)

    @functools.cached_property
    def _end(self) -> str:
        """What ends a last answer."""
        probe = [text_message("user", "u"), text_message("assistant", "a")]
        own = str(self.tokenizer.eos_token or "")
        try:
            conversation = converse(self.renderer, probe, None, (), answers=2, variables={})
        except UserError:  # it wants other messages; what is wrong is told of the row
            return own
        after = conversation.text[conversation.extents[1][1] :]
        if not own and not self.specials.search(after):
            return ""
        return end_of_answer(after, self.specials, own, last=True, calls=False)

    def _known(self, tools: Sequence[Mapping[str, Any]] | None) -> tuple[Tags, ...]:
        return tags_of(self.renderer.source(tools))

    def _switches(self, tools: Sequence[Mapping[str, Any]] | None) -> tuple[str, ...]:
        """The variables by which this template switches thinking; none where the settings name one of them."""
        source = self.renderer.source(tools)
        if any(name in self.renderer.template_kwargs for name in SWITCHES):
            return ()
        return tuple(name for name in SWITCHES if re.search(rf"\b{name}\b", source))

    def _as_known(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as the template knows them.

        The developer's are the system's where it has no such role, and a system message without content is left out
        where it refuses the role (Gemma).
        """
        known = []
        for message in messages:
            if message.role == "developer" and not self._knows_developer:
                message = replace(message, role="system")
            if message.role != "system" or message.content.strip() or self._takes_empty_system:
                known.append(message)
        return known

    @functools.cached_property
    def _takes_field(self) -> bool:
        """Whether the template writes reasoning that a message has in a field of its own."""
        probe = [text_message("user", "u"), text_message("assistant", "a", {REASONING_FIELDS[0]: "r"})]
        try:
            return 1 in converse(self.renderer, probe, None, (), answers=2, variables={}).reasoning
        except UserError:
            return False

    @functools.cached_property
    def _knows_developer(self) -> bool:
        return self._takes("developer", "d")

    @functools.cached_property
    def _takes_empty_system(self) -> bool:
        return self._takes("system", "")

    def _takes(self, role: str, content: str) -> bool:
        """Whether a conversation may begin with such a message."""
        probe = [text_message(role, content), text_message("user", "u")]
        try:
            converse(self.renderer, probe, None, (), answers=2, variables={})
        except UserError:
            return False
        return True


def _common(texts: Sequence[str], floor: int) -> int:
    """How many characters the prompts share, which is all of them but for what stands before the answers.

    Raises:
        UserError: they differ before `floor`, where the prompt's contents end.
    """
    length = min(map(len, texts))
    if all(text[:length] == texts[0][:length] for text in texts[1:]):
        return length
    if any(text[:floor] != texts[0][:floor] for text in texts[1:]):
        raise UserError("what it writes for the prompt depends on the answer")
    tails = zip(*(text[floor:length] for text in texts), strict=True)
    return floor + sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, tails))
