"""`Example` → `TokenizedExample`: the prompt encoded once, answers on their own, cuts in the context."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from align.core.errors import UserError
from align.core.readable import counted
from align.data import faults
from align.data.chat_template import ChatTemplate
from align.data.cuts import Prompt, chunks_of, cut_out, removed_of
from align.data.encoding import Encoder
from align.data.examples import Answer, Example, TokenizedExample, Turn
from align.data.faults import RowError, as_row_error
from align.data.row_messages import answer_messages, asked, bare_messages
from align.data.template import (
    PLAIN_SEPARATOR,
    Fragment,
    Message,
    PlainTemplate,
    Rendering,
    Template,
    end_of_text,
)
from align.data.template_file import check_syntax
from align.data.weighing import RowWeights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.data.settings import DataSettings

ROW_TEMPLATES = 64  # templates that are kept, one for each set of variables that rows bring


class ExampleTokenizer:
    """Turns rows into tokens under one tokenizer and one set of data settings.

    Args:
        tokenizer: a fast tokenizer.
        settings: group `data`.
        chunk_tokens: tokens a chunk where a row's context does not come in chunks (`positions.chunk_tokens`).
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, settings: DataSettings, *, chunk_tokens: int
    ) -> None:
        if not tokenizer.is_fast:
            raise UserError("the tokenizer has no fast version, which character offsets need.")
        own = settings.chat_template is None
        if own and settings.chat == "always" and tokenizer.chat_template is None:
            raise UserError(
                "data.chat=always needs a chat template, which this tokenizer does not have: name one with "
                "data.chat_template."
            )
        self.tokenizer = tokenizer
        self.settings = settings
        self.chunk_tokens = chunk_tokens
        self.encoder = Encoder(tokenizer)
        self.chat = None if own and tokenizer.chat_template is None else self._chat_template({})
        self._of_rows: dict[str, ChatTemplate] = {}

    def _chat_template(self, variables: Mapping[str, Any]) -> ChatTemplate:
        """The template with variables that go over those of `data.template_kwargs`."""
        source = self.settings.template_source()
        if source is not None:
            check_syntax("data.chat_template", source)
        return ChatTemplate(
            self.tokenizer,
            self.encoder.specials,
            thinking=self.settings.thinking,
            chat_template=source,
            template_kwargs={**(self.settings.template_kwargs or {}), **variables},
            today=self.settings.today(),
        )

    def __call__(self, example: Example, weights: RowWeights | None = None) -> TokenizedExample:
        """The row as tokens, positions 0 … P−1.

        Args:
            example: the row.
            weights: weighs the tokens of its answers; None leaves all at 1.

        Raises:
            UserError: the template cannot render it, or question, template and longest answer alone exceed
                `data.max_length`.
        """
        short = [
            self._short(example, turn, None if weights is None else weights.of_turn(number))
            for number, turn in enumerate(example.turns)
            if turn.short_prompt
        ]
        return replace(self._tokenize(example, weights), short=tuple(short))

    def _tokenize(self, example: Example, weights: RowWeights | None) -> TokenizedExample:
        template = self._template(example)
        plain = isinstance(template, PlainTemplate)
        as_it_stands = plain and example.text is not None
        example, moved = _space_to_answers(example) if as_it_stands else (example, False)
        try:
            rendering = template.render(
                example.source,
                self._messages(example),
                [asked(turn) for turn in example.turns[1:]],
                [answer_messages(turn) for turn in example.turns],
                tools=example.tools,
            )
        except UserError as error:
            raise as_row_error(error, example.source, reason=faults.TEMPLATE) from error
        # Whoever writes special tokens into a string prompt has put it through a template: they count, as in TRL.
        rendered = as_it_stands and self.encoder.specials.search(example.text or "") is not None
        prompt = self._encode_prompt(rendering, plain=plain, rendered=rendered)
        answers = self._encode_answers(rendering, weights, rendered=rendered)
        fitted = self._fit(example.source, prompt, answers)
        return replace(
            fitted,
            rendered=rendered,
            moved_space=moved,
            as_text=as_it_stands,
            joined=plain and example.text is None,
            dropped_reasoning=rendering.dropped_reasoning,
            dropped_messages=example.dropped_messages,
            inferred=example.inferred,
        )

    def _short(self, example: Example, turn: Turn, weights: RowWeights | None) -> TokenizedExample:
        """One turn on its short context: a row of its own, which never gets synthesised positions."""
        alone = replace(example, turns=(replace(turn, short_prompt=None),))
        short = turn.short_prompt or ""
        if example.chunks:
            alone = replace(alone, chunks=(short,))
        elif example.messages:
            alone = replace(alone, messages=(*example.messages[:-1], {"role": "user", "content": short}))
        else:
            alone = replace(alone, text=short)
        return replace(self._tokenize(alone, weights), chunk_spans=())

    def _template(self, example: Example) -> Template:
        """The chat template or plain text, by `data.chat`."""
        chat = self.settings.chat
        wanted = chat == "always" or (chat == "auto" and example.text is None)
        if wanted and self.chat is not None:
            return self._with_variables(self.chat, example)
        if example.template_kwargs:
            raise RowError(
                example.source,
                "column chat_template_kwargs is not read where no chat template is used: leave it out, or hide it "
                "with data.columns={chat_template_kwargs: null}.",
                reason=faults.TEMPLATE,
            )
        separator = "" if example.text is not None else PLAIN_SEPARATOR
        return PlainTemplate(end_of_text(self.tokenizer), separator)

    def _with_variables(self, chat: ChatTemplate, example: Example) -> ChatTemplate:
        """The chat template with the row's own variables."""
        if not example.template_kwargs:
            return chat
        key = json.dumps(example.template_kwargs, sort_keys=True, default=repr)
        if key not in self._of_rows:
            if len(self._of_rows) >= ROW_TEMPLATES:
                self._of_rows.clear()
            self._of_rows[key] = self._chat_template(example.template_kwargs)
        return self._of_rows[key]

    def _messages(self, example: Example) -> list[Message]:
        """The prompt as messages whose contents are fragments.

        Raises:
            RowError: a system message beside a prompt that is text as it stands.
        """
        if example.messages:
            messages = bare_messages(example)
        elif example.chunks:
            messages = [Message("user", self._context_fragments(example))]
        else:
            messages = [Message("user", (Fragment(example.text or "", "bare"),))]
        system = example.system or self.settings.system
        # A plain string prompt is complete as it is.
        plain_text = example.text is not None and self.settings.chat != "always"
        if plain_text and example.system:
            raise RowError(
                example.source,
                "column system is not read beside a prompt that is plain text: write it into prompt, or set "
                "data.chat=always.",
                reason=faults.UNKNOWN_LAYOUT,
            )
        if system and not plain_text and messages[0].role != "system":
            messages.insert(0, Message("system", (Fragment(system, "text"),)))
        return messages

    def _context_fragments(self, example: Example) -> tuple[Fragment, ...]:
        """`data.template` filled with the chunks and the first question."""
        separator = Fragment(self.settings.chunk_separator, "template")
        context = [one for chunk in example.chunks for one in (separator, Fragment(chunk, "chunk"))][1:]
        question = [Fragment(example.turns[0].question or "", "text")]
        fragments: list[Fragment] = []
        for text in _split_places(self.settings.template):
            places = {"{context}": context, "{question}": question}
            fragments.extend(places.get(text, [Fragment(text, "template")]))
        return tuple(fragments)

    def _encode_prompt(self, rendering: Rendering, *, plain: bool, rendered: bool) -> Prompt:
        encoded = self.encoder.encode(_trusted(rendering.prompt) if rendered else rendering.prompt)
        # A chat template writes the beginning-of-text token itself (TRL's rule).
        start = self.encoder.start_ids
        if not plain or (rendered and np.array_equal(encoded.ids[: len(start)], start)):
            start = start[:0]
        pairs = list(zip(rendering.prompt, encoded.spans, strict=True))
        chunks = [span for fragment, span in pairs if fragment.kind == "chunk" and span[0] < span[1]]
        for fragment, (first, last) in pairs:
            if fragment.kind == "bare":
                chunks = [(first, max(first, last - self.settings.keep_tail))]
        if len(chunks) == 1:
            chunks = chunks_of(chunks[0], self.chunk_tokens)
        shifted = tuple((first + len(start), last + len(start)) for first, last in chunks)
        return Prompt(np.concatenate([start, encoded.ids]), shifted)

    def _encode_answers(
        self, rendering: Rendering, weights: RowWeights | None, *, rendered: bool
    ) -> tuple[Answer, ...]:
        """Each answer with its end; of several turns also template and question, unscored, before the next answer."""
        answers = []
        for number, segments in enumerate(rendering.answers):
            parts = [_trusted(one.fragments) if rendered else one.fragments for one in segments]
            encoded = [self.encoder.encode(part, continues=True) for part in parts]
            scored = [np.full(len(own.ids), one.scored) for own, one in zip(encoded, segments, strict=True)]
            answer = Answer(np.concatenate([own.ids for own in encoded]), np.concatenate(scored))
            if weights is not None:
                both = list(zip(segments, encoded, strict=True))
                answer = weights.weigh(answer, number, both, self.encoder.specials)
            answers.append(answer)
        return tuple(answers)

    def _fit(self, source: str, prompt: Prompt, answers: tuple[Answer, ...]) -> TokenizedExample:
        """Cuts the context so that prompt and longest answer fit `data.max_length`."""
        longest = max(len(answer.input_ids) for answer in answers)
        limit = self.settings.max_length
        excess = 0 if limit is None else max(0, len(prompt.ids) + longest - limit)
        if excess:
            first, last = (prompt.chunks[0][0], prompt.chunks[-1][1]) if prompt.chunks else (0, 0)
            if excess > last - first:
                raise RowError(
                    source,
                    f"the longest answer has {counted(longest, 'token')} and the prompt without its context "
                    f"{len(prompt.ids) - (last - first)}, together more than data.max_length={limit}: "
                    "raise it or leave the row out.",
                    reason=faults.TOO_LONG,
                )
            prompt = cut_out(prompt, removed_of((first, last), excess, self.settings.cut))
        return TokenizedExample(
            source=source,
            prompt_ids=prompt.ids,
            position_ids=np.arange(len(prompt.ids), dtype=np.int64),
            answers=answers,
            chunk_spans=prompt.chunks,
            cut_tokens=excess,
        )


def _trusted(fragments: Sequence[Fragment]) -> list[Fragment]:
    """The same text, all of it the template's: special tokens in it count."""
    return [replace(fragment, kind="template") for fragment in fragments]


def _space_to_answers(example: Example) -> tuple[Example, bool]:
    """A string prompt without the space at its end, which goes to the answers, and whether there was one.

    A word and the space before it are one token, as a rule: `Answer: ` and `Blue` are read as `Answer:` and ` Blue`.
    """
    text = example.text or ""
    if not text.endswith(" ") or not text.strip():
        return example, False
    first = example.turns[0]
    first = replace(first, chosen=f" {first.chosen}", rejected=tuple(f" {one}" for one in first.rejected))
    return replace(example, text=text[:-1], turns=(first, *example.turns[1:])), True


def _split_places(template: str) -> list[str]:
    """`data.template` cut at its two places.

    Of `Text: {context} Q: {question}` it is `Text: `, `{context}`, ` Q: `,
    `{question}`, and nothing.
    """
    first, second = sorted(("{context}", "{question}"), key=template.index)
    before, rest = template.split(first)
    middle, after = rest.split(second)
    return [before, first, middle, second, after]
