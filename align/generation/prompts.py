"""Requests as text and as tokens, with the same care for structure as training rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from align.core.errors import UserError
from align.data.encoding import Encoder
from align.data.template import ChatTemplate, Fragment, Rendering
from align.data.template import Message as TemplateMessage
from align.generation.markers import Escaper, plain_markers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.generation.generators import Message, Request, ScoredText


class PromptEncoder:
    """Chat messages → token ids; contents are plain text, whatever they say.

    Raises:
        UserError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.chat_template is None:
            raise UserError(
                "model.path: its tokenizer has no chat template, so that it cannot be asked anything: "
                "choose an instruction-tuned model for making data."
            )
        self.encoder = Encoder(tokenizer)
        self.template = ChatTemplate(tokenizer, self.encoder.specials)
        self.escaper = Escaper(plain_markers(str(tokenizer.chat_template), self.encoder.specials), ())

    def __call__(self, request: Request) -> np.ndarray:
        """Ids `[n]`, int64: the messages, the generation prompt and the answer's lead."""
        return np.concatenate([self._prompt(request), self.lead(request)])

    def lead(self, request: Request) -> np.ndarray:
        """Ids of the answer's lead alone."""
        return self.encoder.encode([Fragment(request.lead, "text")], continues=True).ids

    def scored(self, text: ScoredText) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the prompt and of the answer to score, as a training row would have them."""
        rendering = self._rendering(text.id, text.messages, text.answer)
        parts = [Fragment(rendering.answers[0][0], "text")]
        parts += [Fragment(rendering.end, "template")] if text.end else []
        prompt = self.encoder.encode(rendering.prompt).ids
        return prompt, self.encoder.encode(parts, continues=True).ids

    def _prompt(self, request: Request) -> np.ndarray:
        if request.form == "text":
            text = Fragment(request.messages[-1].content, "text")
            return np.concatenate([self.encoder.start_ids, self.encoder.encode([text]).ids])
        return self.encoder.encode(self._rendering(request.id, request.messages, request.lead).prompt).ids

    def _rendering(self, name: str, messages: Sequence[Message], answer: str) -> Rendering:
        texts = [self.escaper.escape(message.content) for message in messages]
        parts = [
            TemplateMessage(m.role, (Fragment(text, "text"),))
            for m, text in zip(messages, texts, strict=True)
        ]
        return self.template.render(name, parts, [], [[answer]])


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with `{name}` replaced in one pass: braces inside a value stay what they are."""
    pattern = "|".join(re.escape(f"{{{name}}}") for name in values)
    return re.sub(pattern, lambda match: values[match.group()[1:-1]], template)


def check_places(key: str, template: str, names: Sequence[str]) -> None:
    """Refuses a prompt template in which a place is missing, naming the key."""
    for name in names:
        if f"{{{name}}}" not in template:
            raise UserError(f"{key}={template!r} must contain {{{name}}}.")
