"""String prompts: text that its author has put through a template, and a space before the answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from align.data import faults
from align.data.examples import Example, TokenizedExample, Turn
from align.data.faults import RowError
from align.data.settings import DataSettings
from align.data.tokens import ExampleTokenizer
from tests.data.helpers import END, START, byte_tokenizer

RENDERED = f"{START}user\nWhy?{END}\n{START}assistant\n"


def tokenize(
    text: str, *answers: str, tokenizer: PreTrainedTokenizerBase | None = None, **settings: Any
) -> TokenizedExample:
    chosen, *rejected = answers
    example = Example("r:1", (Turn(None, chosen, tuple(rejected)),), text=text)
    return ExampleTokenizer(tokenizer or byte_tokenizer(), DataSettings(**settings), chunk_tokens=512)(
        example
    )


def test_a_rendered_prompt_is_what_the_template_makes_of_the_conversation() -> None:
    """The same ids as the row of messages has, and each answer ends with one end token, given or not."""
    tokenizer = byte_tokenizer()
    rendered = tokenize(RENDERED, f"Light.{END}", "Dog.")
    messages = Example(
        "r:1", (Turn(None, "Light.", ("Dog.",)),), messages=({"role": "user", "content": "Why?"},)
    )
    expected = ExampleTokenizer(tokenizer, DataSettings(), chunk_tokens=512)(messages)
    assert rendered.rendered and not expected.rendered
    assert np.array_equal(rendered.prompt_ids, expected.prompt_ids)
    for ours, theirs in zip(rendered.answers, expected.answers, strict=True):
        assert np.array_equal(ours.input_ids, theirs.input_ids)
    assert (
        rendered.prompt_ids.tolist() == tokenizer(RENDERED, add_special_tokens=False)["input_ids"]
    )  # as TRL


def test_special_tokens_in_the_answers_of_a_rendered_prompt_count() -> None:
    end = byte_tokenizer().convert_tokens_to_ids(END)
    (chosen,) = tokenize(RENDERED, f"a{END}\n{START}user\nb").answers
    assert list(chosen.input_ids).count(end) == 2
    (plain,) = tokenize("Why?", f"a{END}\nb").answers
    assert list(plain.input_ids).count(end) == 1


def test_what_is_content_stays_text() -> None:
    """data.chat=always makes the prompt a user's message; a context is content whatever it holds."""
    start = byte_tokenizer().convert_tokens_to_ids(START)
    always = tokenize(RENDERED, "a", chat="always")
    assert not always.rendered and list(always.prompt_ids).count(start) == 2  # the template's own
    example = Example("r:1", (Turn("q", "a", ()),), chunks=(RENDERED,))
    for chat in ("auto", "never"):
        context = ExampleTokenizer(byte_tokenizer(), DataSettings(chat=chat), chunk_tokens=512)(example)
        assert not context.rendered and list(context.prompt_ids).count(start) == (2 if chat == "auto" else 0)


@pytest.mark.parametrize("given", [True, False])
def test_one_beginning_of_text(given: bool) -> None:
    """A tokenizer that begins texts with a token does not double the one that the text has written out."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer(special=(START, "<s>"))
    begin = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begin)]
    )
    ids = tokenize(f"{'<s>' if given else ''}{RENDERED}", "a", tokenizer=tokenizer).prompt_ids.tolist()
    assert ids[0] == begin and ids.count(begin) == 1


@pytest.mark.parametrize(
    ("text", "answer", "prompt", "begins"),
    [
        ("Answer: ", "Blue", "Answer:", " Blue"),
        ("Answer:  ", "Blue", "Answer: ", " Blue"),
        ("Answer:", " Blue", "Answer:", " Blue"),
        ("Answer:\n", "Blue", "Answer:\n", "Blue"),
    ],
)
def test_the_space_before_an_answer_is_the_answers(text: str, answer: str, prompt: str, begins: str) -> None:
    """Prompt and answer together are the same text either way."""
    found = tokenize(text, answer, "Red")
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(found.prompt_ids) == prompt
    assert tokenizer.decode(found.answers[0].input_ids) == f"{begins}{END}"
    assert found.moved_space == (text != prompt)
    short = Example("r:1", (Turn(None, answer, (), short_prompt=text),), text="a long prompt: ")
    row = ExampleTokenizer(tokenizer, DataSettings(), chunk_tokens=512)(short)
    assert tokenizer.decode(row.short[0].prompt_ids) == prompt


def test_the_seam_has_the_tokens_of_the_joined_text() -> None:
    """With SmolLM2's words: `Answer: ` and `Because` are read as `Answer:` and ` Because`."""
    from align.models.embedded import embedded_model
    from align.models.loading import load_tokenizer

    tokenizer = load_tokenizer(str(embedded_model()))
    found = tokenize("Why is the sky blue? Answer: ", "Because light scatters.", tokenizer=tokenizer)
    joined = tokenizer("Why is the sky blue? Answer: Because light scatters.", add_special_tokens=False)[
        "input_ids"
    ]
    assert [*found.prompt_ids, *found.answers[0].input_ids[:-1]] == joined


def test_a_system_message_beside_plain_text_is_refused() -> None:
    """It would be left out without a word; data.chat=always puts it where it belongs."""
    example = Example("r:1", (Turn(None, "a", ()),), text="p", system="Be brief.")
    with pytest.raises(
        RowError, match=r"column system is not read beside a prompt that is plain text"
    ) as caught:
        ExampleTokenizer(byte_tokenizer(), DataSettings(), chunk_tokens=512)(example)
    assert caught.value.reason == faults.UNKNOWN_LAYOUT
    always = ExampleTokenizer(byte_tokenizer(), DataSettings(chat="always"), chunk_tokens=512)
    assert "Be brief." in byte_tokenizer().decode(always(example).prompt_ids)
