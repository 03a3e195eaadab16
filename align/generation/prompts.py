"""Requests as text and as tokens, with the same care for structure as training rows."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from align.core.errors import UserError
from align.data.chat_template import ChatTemplate
from align.data.encoding import Encoder
from align.data.template import Fragment, Rendering, text_message
from align.data.template import Message as TemplateMessage
from align.data.thinking import opens_block
from align.generation.markers import Escaper, plain_markers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.generation.generators import Generator, Message, Request, ScoredText


class PromptEncoder:
    """Chat messages → token ids; contents are plain text, whatever they say.

    Args:
        tokenizer: of the model.
        template_kwargs: variables of its chat template: `{"enable_thinking": False}`.
        soft: `[k]` ids of the model's soft prompt, which go before each prompt; empty without one.

    Raises:
        UserError: the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template_kwargs: Mapping[str, Any] | None = None,
        *,
        soft: Sequence[int] | np.ndarray = (),
    ) -> None:
        if tokenizer.chat_template is None:
            raise UserError(
                "model.path: its tokenizer has no chat template, so that it cannot be asked anything: "
                "choose an instruction-tuned model for making data."
            )
        self.encoder = Encoder(tokenizer)
        self.soft = np.asarray(soft, dtype=np.int64)
        # An answer that is given, or its beginning, follows a closed thinking block where the prompt opens one.
        self.template = ChatTemplate(
            tokenizer, self.encoder.specials, thinking="close", template_kwargs=template_kwargs
        )
        self.escaper = Escaper(plain_markers(str(tokenizer.chat_template), self.encoder.specials), ())

    def __call__(self, request: Request) -> np.ndarray:
        """Ids `[n]`, int64: the soft prompt, the messages, the generation prompt and the answer's lead."""
        return np.concatenate([self.soft, self._prompt(request), self.lead(request)])

    def lead(self, request: Request) -> np.ndarray:
        """Ids of the answer's lead alone."""
        return self.encoder.encode([Fragment(request.lead, "text")], continues=True).ids

    @functools.cached_property
    def opening(self) -> str:
        """The tag of a thinking block that every prompt without a lead opens, so that answers begin inside it."""
        try:
            fragments = self.template.prompt("", [text_message("user", "u")])
        except UserError:  # it wants other messages; what is wrong is told of the request
            return ""
        tags = opens_block("".join(fragment.text for fragment in fragments))
        return "" if tags is None else f"{tags.opening}\n"

    def scored(self, text: ScoredText) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the prompt and of the answer to score, as a training row would have them."""
        rendering = self._rendering(text.id, text.messages, text.answer)
        parts = list(rendering.answers[0][0].fragments)
        if not text.end:
            del parts[-1]  # the answer's end, behind its text
        prompt = self.encoder.encode(rendering.prompt).ids
        return np.concatenate([self.soft, prompt]), self.encoder.encode(parts, continues=True).ids

    def _prompt(self, request: Request) -> np.ndarray:
        """What the model is given to answer; a lead stands where an answer without reasoning does."""
        if request.form == "text":
            text = Fragment(request.messages[-1].content, "text")
            return np.concatenate([self.encoder.start_ids, self.encoder.encode([text]).ids])
        if request.lead:
            return self.encoder.encode(self._rendering(request.id, request.messages, request.lead).prompt).ids
        return self.encoder.encode(self.template.prompt(request.id, self._messages(request.messages))).ids

    def _messages(self, messages: Sequence[Message]) -> list[TemplateMessage]:
        return [text_message(one.role, self.escaper.escape(one.content)) for one in messages]

    def _rendering(self, name: str, messages: Sequence[Message], answer: str) -> Rendering:
        return self.template.render(name, self._messages(messages), [], [[text_message("assistant", answer)]])


def encoder_of(generator: Generator, tokenizer: PreTrainedTokenizerBase) -> PromptEncoder:
    """What counts prompts as a generator reads them: its own encoder, else one with its template's variables.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    inner = getattr(generator, "inner", generator)  # within a cache of calls
    own = getattr(inner, "encode", None)
    if isinstance(own, PromptEncoder):
        return own
    return PromptEncoder(tokenizer, getattr(inner, "template_kwargs", None))


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with `{name}` replaced in one pass: braces inside a value stay what they are."""
    pattern = "|".join(re.escape(f"{{{name}}}") for name in values)
    return re.sub(pattern, lambda match: values[match.group()[1:-1]], template)


def check_places(key: str, template: str, names: Sequence[str]) -> None:
    """Refuses a prompt template in which a place is missing, naming the key."""
    for name in names:
        if f"{{{name}}}" not in template:
            raise UserError(f"{key}={template!r} must contain {{{name}}}.")
