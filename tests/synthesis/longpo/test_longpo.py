"""The LongPO pipeline on a tiny model: what a row holds, what is left out, and that no kill changes a row."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import ClassVar

import pytest

from align.core.errors import UserError
from align.data.formats import parse_row
from align.data.sources import open_sources, read_rows
from align.documents.loading import Document, load_documents
from align.generation.generators import Completion, Message, Request, Sampling
from align.generation.prompts import encoder_of
from align.synthesis.longpo.pipeline import LongPOPipeline
from align.synthesis.longpo.windows import WindowSizes, cut_windows
from tests.generation.helpers import KilledError
from tests.synthesis.scripted import save_model, settings_of, word_tokenizer, workspace, write_documents

SMALL = {
    "target_length": 600,
    "context_min_tokens": 40,
    "chunk_min_tokens": 20,
    "chunk_max_tokens": 36,
    "turns": 3,
    "short_window": 200,
    "max_question_tokens": 32,
    "max_new_tokens": 12,
    "answer_temperature": 1.0,
    "block_rows": 2,
}


def pipeline(documents, **changes):
    return LongPOPipeline(**(settings_of("longpo") | SMALL | {"documents": str(documents)} | changes))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    return write_documents(tmp_path_factory.mktemp("documents") / "documents.jsonl")


@pytest.fixture(scope="module")
def made(tmp_path_factory, model, documents):
    """An unbroken run: its folder and its summary."""
    output = tmp_path_factory.mktemp("made")
    made = pipeline(documents)
    return output, made.run(made.read(), workspace(output, model))


def rows_of(output):
    return [json.loads(line) for line in (output / "train.jsonl").read_text().splitlines()]


def test_a_row_holds_a_context_and_a_turn_for_each_chunk_asked_about(made, documents):
    output, summary = made
    texts = {document.id: document.text for document in load_documents(str(documents))}
    rows = rows_of(output)
    assert summary.rows == len(rows) >= 4
    lead_ins = tuple(settings_of("longpo")["lead_ins"])
    for row in rows:
        ids = [chunk["id"] for chunk in row["chunks"]]
        assert 2 <= len(row["context"]) == len(ids) <= 4
        for passage, chunk in zip(row["context"], row["chunks"], strict=True):
            text = texts[row["document"]["id"]]
            assert text[chunk["start"] : chunk["start"] + len(passage)] == passage
            assert 20 <= chunk["tokens"] <= 36
        turns = [row[name] for name in ("questions", "chosens", "rejecteds", "short_prompts", "asked_of")]
        assert len({len(column) for column in turns}) == 1 and 1 <= len(turns[0]) <= 3
        for question, chosen, rejected, short, asked_of in zip(*turns, strict=True):
            assert question.startswith(lead_ins) and question.endswith("?")
            assert short == row["context"][ids.index(asked_of)]  # the leak that inspect looks for
            assert chosen.strip() and rejected.strip() and chosen != rejected
        assert turns[4] == sorted(turns[4], key=ids.index)
    assert sum(len(row["questions"]) for row in rows) == summary.counts["turns"]
    lost = summary.counts["chunks asked about"] - summary.counts["turns"]
    assert lost == sum(
        number
        for reason, number in summary.dropped.items()
        if "chunk" not in reason and "context" not in reason
    )
    assert summary.dropped["no 4 numbered questions"] > 0


def test_the_reader_of_training_rows_takes_them_as_they_are(made):
    output, _ = made
    for raw in read_rows(open_sources(str(output / "train.jsonl")).train):
        example = parse_row(raw, require_rejected=True).example
        assert list(example.chunks) == raw.values["context"]
        assert [turn.short_prompt for turn in example.turns] == raw.values["short_prompts"]
        assert [turn.question for turn in example.turns] == raw.values["questions"]


def test_prompts_that_share_a_text_begin_with_it(made, documents, model, tmp_path):
    """The chunk stands first in its question's and its chosen answer's prompt; the document in the rejected one's."""
    seen = []
    watched = workspace(tmp_path, model)
    generate = watched.generator.generate
    watched.generator.generate = lambda requests, finished: (
        seen.extend(requests),
        generate(requests, finished=finished),
    )[1]
    made = pipeline(documents)
    made.run(made.read(), watched)
    prompts = {request.id: request.messages[0].content for request in seen}
    for row in rows_of(tmp_path):
        for asked_of, short in zip(row["asked_of"], row["short_prompts"], strict=True):
            assert prompts[f"{asked_of}/questions"].startswith(short)
            assert prompts[f"{asked_of}/chosen"].startswith(short)
            assert prompts[f"{asked_of}/rejected"].startswith("\n\n".join(row["context"]))


def test_killed_after_any_number_of_groups_and_resumed_gives_the_same_file(made, documents, model, tmp_path):
    output, _ = made
    expected = (output / "train.jsonl").read_bytes()
    groups = 0
    while True:
        broken = pipeline(documents)
        try:
            broken.run(broken.read(), workspace(tmp_path / str(groups), model, groups=groups))
            break
        except KilledError:
            assert not (tmp_path / str(groups) / "train.jsonl").exists()
            broken.run(broken.read(), workspace(tmp_path / str(groups), model))
            assert (tmp_path / str(groups) / "train.jsonl").read_bytes() == expected
            groups += 4
    assert groups >= 8


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("", "some words here", "chosen answer: empty"),
        ("some words here", "I'm sorry, I can't help.", "rejected answer: refusal"),
        ("some words here", "Some words here.", "chosen equal to rejected"),
        ("some words here", "other words there", None),
    ],
)
def test_filters(chosen, rejected, reason, documents):
    answers = [Completion(text, 3, "stop") for text in (chosen, rejected)]
    assert pipeline(documents)._problem(100, *answers) == reason


def test_a_short_row_over_the_window_is_left_out(documents):
    """196 + 3 + the end token are 200; one more is too many."""
    answers = [Completion(text, 3, "stop") for text in ("some words here", "other words there")]
    assert pipeline(documents)._problem(196, *answers) is None
    assert pipeline(documents)._problem(197, *answers) == "short row over short_window"


class Deaf:
    """A server by its variables alone, which no call may reach."""

    name = identity = "server"
    template_kwargs: ClassVar = {"enable_thinking": False}

    def waves(self, openings):
        return [range(len(openings))]

    def generate(self, requests, *, finished):
        pytest.fail("a call was made")


def test_a_tokenizer_that_counts_no_prompts_is_refused_before_any_call(documents, model, tmp_path):
    """Only where rows are counted at all."""
    tokenizer = word_tokenizer()
    tokenizer.chat_template = None
    here = dataclasses.replace(workspace(tmp_path, model), tokenizer=tokenizer, generator=Deaf())
    made = pipeline(documents)
    with pytest.raises(UserError, match=r"model\.path: its tokenizer has no chat template"):
        made.run(made.read(), here)
    made = pipeline(documents, short_window=None)
    with pytest.raises(pytest.fail.Exception, match="a call was made"):
        made.run(made.read(), here)


def test_prompts_are_counted_with_the_variables_that_a_server_is_sent():
    tokenizer = word_tokenizer()
    tokenizer.chat_template += "{% if enable_thinking is false %}bardel fingor{% endif %}"
    asked = Request("q", (Message("user", "bardel"),), Sampling(0.0, 1.0, 1, 1), 1)
    assert len(encoder_of(Deaf(), tokenizer)(asked)) == len(encoder_of(object(), tokenizer)(asked)) + 2


def test_windows_keep_to_their_sizes():
    """Twelve chunks of 10 tokens: windows of 3 chunks by count, of 2 by tokens; per document at most one."""
    text = "\n\n".join(
        " ".join(["bardel"] * 9) for _ in range(12)
    )  # a paragraph and its line breaks: 11 tokens
    documents = [Document("a", "a", text), Document("b", "b", "bardel"), Document("c", "c", text)]

    def cut(**changes):
        sizes = {"chunk_min_tokens": 5, "chunk_max_tokens": 12, "max_chunks": 3, "context_min_tokens": 1}
        dropped: Counter[str] = Counter()
        limit = changes.pop("limit", None)
        settings = WindowSizes(**(sizes | {"context_max_tokens": 1000} | changes))
        windows = list(cut_windows(documents, word_tokenizer(), settings, dropped, limit=limit))
        return [(window.id, len(window.chunks)) for window in windows], dropped

    found, dropped = cut()
    assert found == [(f"{name}@{first}", 3) for name in "ac" for first in (0, 3, 6, 9)]
    assert dropped["chunk shorter than chunk_min_tokens"] == 1
    assert cut(per_document=1)[0] == [("a@0", 3), ("c@0", 3)]
    assert {count for _, count in cut(context_max_tokens=25)[0]} == {2}
    assert cut(limit=1)[0] == found[:4]
    assert cut(max_chunks=None)[0] == [("a@0", 12), ("c@0", 12)]


def test_a_window_has_consecutive_chunks():
    """Chunks of 11, 11, 3, 11 and 11 tokens, of which the third is too short: it parts two windows."""
    paragraphs = [" ".join(["bardel"] * count) for count in (9, 9, 1, 9, 9)]
    sizes = WindowSizes(5, 12, None, 1, 1000)
    document = Document("a", "a", "\n\n".join(paragraphs))
    windows = list(cut_windows([document], word_tokenizer(), sizes, Counter()))
    assert [[chunk.index for chunk in window.chunks] for window in windows] == [[0, 1], [3, 4]]
    for window in windows:
        first, last = window.chunks[0], window.chunks[-1]
        between = document.text[first.start : last.start + len(last.text)]
        assert between.split() == " ".join(chunk.text for chunk in window.chunks).split()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"chunk_max_tokens": 10}, r"pipeline\.chunk_max_tokens=10"),
        ({"target_length": 300}, r"pipeline\.context_min_tokens=40 leaves no context"),
        ({"answer_top_p": 0.0}, r"pipeline\.answer_top_p=0\.0"),
        ({"lead_ins": []}, r"pipeline\.lead_ins"),
        ({"question_prompt": "Ask!"}, r"pipeline\.question_prompt.*\{chunk\}"),
        ({"max_chunks": 1}, r"pipeline\.max_chunks=1"),
    ],
)
def test_contradictions_are_named(changes, sentence, documents):
    with pytest.raises(UserError, match=sentence):
        pipeline(documents, **changes).check()


def test_documents_that_are_too_short_end_in_one_sentence(documents, model, tmp_path):
    short = pipeline(documents, context_min_tokens=200, target_length=2000, max_chunks=2)
    with pytest.raises(UserError, match=r"no document has two chunks of 20 to 36 tokens and 200 in all"):
        short.run(short.read(), workspace(tmp_path, model))
    assert not (tmp_path / "train.jsonl").exists()


def test_the_longest_recipe_fits_its_target():
    """The paper's defaults leave 126,336 tokens of context in a row of 131,072: 4 × 30,000 fit."""
    paper = LongPOPipeline(**settings_of("longpo"))
    paper.check()
    assert paper._sizes.context_max_tokens == 131072 - 4 * (1024 + 160)
