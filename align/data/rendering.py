"""What a chat template makes of a real conversation, and where in it each content stands.

The conversation is rendered twice: as it is, and with a mark inside each content. With ChatML and `Why so?`:

    <|im_start|>user⏎Why so?<|im_end|>⏎              the text
    <|im_start|>user⏎Why⟨0⟩ so?<|im_end|>⏎           the same, and the mark tells where the content stands

The second without its marks must be the first. So no content is searched for, and a document that contains chat
markers cannot move anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import count
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from align.core.errors import UserError
from align.data.calls import filled_chats
from align.data.contents import strings_of
from align.data.marks import Chat, Marks, Place, Stretch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters that no row has use for (Anatolian hieroglyphs); one that the row does not hold marks. They are letters, so
# that a template which writes tools as Python prints them writes them as they are.
_RARE = range(0x14400, 0x14647)
_DATE_CALL = re.compile(r"strftime_now\(\s*(?:'([^']*)'|\"([^\"]*)\")\s*\)")
# Where in a content its mark stands. A template may look at the beginning or the end of a content, seldom inside.
_SHARES = (0.5, 0.0, 1.0)
_PROBE = "zq0qz"  # a text to look for
_REFUSALS = (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError)


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation.

    Attributes:
        text: exactly what the template writes.
        places: of each stretch; None where the template left it out.
        plain: `(start, stop)` of texts of special tokens that a message brings, increasing: they are content.
    """

    text: str
    places: Mapping[Stretch, Place | None]
    plain: tuple[tuple[int, int], ...]


class Renderer:
    """Renders conversations with a tokenizer's chat template, or with another.

    Args:
        tokenizer: its special tokens are the template's variables.
        specials: matches their texts.
        chat_template: source of a template in the place of the tokenizer's.
        template_kwargs: variables of the template, in every rendering.
        today: what templates that write the date write.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        specials: re.Pattern[str],
        *,
        chat_template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        today: date | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.specials = specials
        self.template_kwargs = dict(template_kwargs or {})
        self._given = chat_template
        self._today = today or date.today()
        self._frozen: dict[str, str] = {}
        self._forms: dict[str, Callable[[Any], Any]] = {}

    def source(self, tools: Sequence[Any] | None = None) -> str:
        """The template's source; some tokenizers have one of their own for rows with tools."""
        return self._given or str(self.tokenizer.get_chat_template(None, list(tools) if tools else None))

    def text(
        self, chat: Chat, tools: Sequence[Any] | None = None, *, generation: bool, **variables: Any
    ) -> str:
        """What the template writes; what it misses in calls of tools is filled in (calls.py).

        Args:
            chat: the messages.
            tools: JSON schemas of functions.
            generation: whether the generation prompt follows.
            variables: of the template, where `template_kwargs` does not name them.

        Raises:
            UserError: it refuses the conversation.
        """
        refusal: Exception | None = None
        source = self._with_date(self.source(tools))
        if source not in self._forms:
            self._forms[source] = content_form(self.tokenizer, source)
        for own in (chat, *filled_chats(chat)):
            try:
                return str(
                    self.tokenizer.apply_chat_template(
                        [in_form(message, self._forms[source]) for message in own],
                        tools=list(tools) if tools else None,
                        chat_template=source,
                        tokenize=False,
                        add_generation_prompt=generation,
                        **{**variables, **self.template_kwargs},
                    )
                )
            except _REFUSALS as error:
                refusal = error
        raise UserError(str(refusal).strip().rstrip(".") or type(refusal).__name__) from refusal

    def _with_date(self, source: str) -> str:
        """The template with today's date for good, in every format that it asks for; else it changes at midnight."""
        if "strftime_now" not in source:
            return source
        if source not in self._frozen:
            formats = {one or other for one, other in _DATE_CALL.findall(source)}
            dates = json.dumps({name: self._today.strftime(name) for name in formats}, ensure_ascii=False)
            # A macro goes before the function of the same name; the line break behind a block is not written.
            known = f"{dates}[format] if format in {dates} else raise_exception('it computes a date format')"
            self._frozen[source] = (
                "{%- macro strftime_now(format) -%}{{ " + known + " }}{%- endmacro %}\n" + source
            )
        return self._frozen[source]

    def place(
        self,
        chat: Chat,
        stretches: Sequence[Stretch],
        tools: Sequence[Any] | None,
        *,
        trusted: Mapping[tuple[str | int, ...], frozenset[int]],
        generation: bool = False,
        **variables: Any,
    ) -> Rendered:
        """The conversation's text, and where in it the stretches stand; `trusted` as in `Marks`, the rest as in `text`.

        Raises:
            UserError: the template refuses it, or what it writes depends on every character of a content.
        """
        text = self.text(chat, tools, generation=generation, **variables)
        strings = list(strings_of([*chat, *(tools or ())]))
        marked = any(self.specials.search(string) for string in strings)
        for guard in _guards([*strings, text]):
            for disguise in (True, False) if marked else (False,):
                for share in _SHARES:
                    marks = Marks(guard, self.specials if disguise else None, share, trusted)
                    dressed = marks.dress(chat, stretches, tools)
                    try:
                        found = marks.read(self.text(*dressed, generation=generation, **variables))
                    except UserError:  # it refuses the marks, not the row
                        continue
                    if found.text == text:
                        places = {
                            stretch: found.place(stretch.string(chat, tools), stretch, marks.offsets[i], i)
                            for i, stretch in enumerate(stretches)
                        }
                        return Rendered(text, places, found.special_texts(marks.lengths))
        raise UserError("what it writes around a message depends on the message's content")


def content_form(tokenizer: PreTrainedTokenizerBase, source: str | None = None) -> Callable[[Any], Any]:
    """How a template takes a message's text: `as_text`, or `as_parts` where it writes nothing of a text by itself.

    Processors of text and images have templates that look for parts alone (LLaVA's, Idefics-3's).

    Args:
        tokenizer: of the template.
        source: of another one in the place of the tokenizer's.
    """
    for form in (as_text, as_parts):
        messages = [{"role": "user", "content": form(_PROBE)}]
        try:
            written = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False)
        except _REFUSALS:
            continue
        if _PROBE in str(written):
            return form
    return as_text


def as_text(content: Any) -> Any:
    """A message's content as it is."""
    return content


def as_parts(content: Any) -> Any:
    """A text as the one part of a content: `[{"type": "text", "text": …}]`; anything else as it is."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def in_form(message: Mapping[str, Any], form: Callable[[Any], Any]) -> dict[str, Any]:
    """A message with its content in the form that the template takes."""
    return {name: form(value) if name == "content" else value for name, value in message.items()}


def _guards(strings: Sequence[str]) -> Iterator[str]:
    """What marks begin and end with, and no string holds: a rare character, and letters where a template escapes it."""
    for guards in (map(chr, _RARE), (f"zq{i}qz" for i in count())):
        yield next(guard for guard in guards if not any(guard in string for string in strings))
