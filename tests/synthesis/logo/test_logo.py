"""The whole pipeline on a tiny model: what a row holds, and that no death of the process changes one."""

from __future__ import annotations

import json
import random

import pytest

from align.core.errors import UserError
from align.data.formats import parse_row
from align.data.sources import open_sources, read_rows
from align.documents.chunking import Chunk
from align.generation.generators import Completion, Message, Request
from align.generation.ledger import Ledger
from align.synthesis.answers import comparable, trim_cut
from align.synthesis.logo.contexts import choose_contexts
from align.synthesis.logo.relevance import Bm25
from align.synthesis.logo.rows import Asked, Questions, parse_question
from tests.forked import fork
from tests.generation.helpers import SAMPLING, KilledError, local_generator, workspace
from tests.synthesis.helpers import Scripted, pipeline, word_documents
from tests.synthesis.logo.killed import main


def run(output, *, groups=None, documents=None, seed=1, **changes):
    generator = Scripted(local_generator(), groups=groups)
    return pipeline(**changes).run(documents or word_documents(), workspace(output, generator, seed=seed))


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An unbroken run's folder."""
    output = tmp_path_factory.mktemp("made")
    run(output)
    return output


def test_rows_hold_what_an_audit_needs(made):
    documents = {document.id: document for document in word_documents()}
    rows = read(made / "train.jsonl")
    assert len(rows) == 8  # two questions of each of four documents
    for row in rows:
        text = documents[row["document"]["id"]].text
        assert len(row["context"]) == len(row["chunks"]) == 6
        assert row["asked_of"] in row["chosen_chunks"]
        assert {chunk["id"] for chunk in row["chunks"] if chunk["critical"]} == set(row["chosen_chunks"])
        places = []
        for passage, chunk in zip(row["context"], row["chunks"], strict=True):
            source = documents[chunk["document"]].text
            assert source[chunk["start"] : chunk["start"] + len(passage)] == passage
            assert not chunk["critical"] or passage in text
            places.append((chunk["document"], chunk["start"]))
        assert places == sorted(places)
        assert len(row["rejected"]) == len(row["rejected_kinds"]) == len(row["rejected_chunks"]) >= 1
        for kind, ids in zip(row["rejected_kinds"], row["rejected_chunks"], strict=True):
            assert bool(set(ids) & set(row["chosen_chunks"])) == (kind == "mixed")
            assert set(ids) <= {chunk["id"] for chunk in row["chunks"]}
        assert comparable(row["chosen"]) not in [comparable(text) for text in row["rejected"]]
        assert row["settings"]["scorer"].startswith("bm25") and row["settings"]["seed"] == 1


def test_the_reader_of_training_rows_takes_them_as_they_are(made):
    for raw in read_rows(open_sources(str(made / "train.jsonl")).train):
        example = parse_row(raw, require_rejected=True).example
        assert list(example.chunks) == raw.values["context"]
        assert example.turns[0].chosen == raw.values["chosen"]
        assert list(example.turns[0].rejected) == raw.values["rejected"]


def test_killed_after_any_number_of_groups_and_resumed_gives_the_same_file(tmp_path):
    documents = word_documents(2)
    run(tmp_path / "whole", documents=documents)
    expected = (tmp_path / "whole" / "train.jsonl").read_bytes()
    groups = 0
    while True:
        output = tmp_path / str(groups)
        try:
            run(output, groups=groups, documents=documents)
            break
        except KilledError:
            assert not (output / "train.jsonl").exists()
            run(output, documents=documents)
            assert (output / "train.jsonl").read_bytes() == expected
            groups += 1
    assert groups >= 5


def test_killed_while_writing_any_byte_and_resumed_gives_the_same_files(made, tmp_path):
    """The ledger of a killed process is a beginning of the whole one, cut at any byte."""
    expected = (made / "train.jsonl").read_bytes()
    whole = {name: (made / "work" / f"{name}.jsonl").read_bytes() for name in ("questions", "answers")}
    rng = random.Random(0)
    for cut in [0, 1, len(whole["answers"]) - 1, *rng.sample(range(len(whole["answers"])), 5)]:
        output = tmp_path / str(cut)
        (output / "work").mkdir(parents=True)
        (output / "work" / "questions.jsonl").write_bytes(whole["questions"])
        (output / "work" / "answers.jsonl").write_bytes(whole["answers"][:cut])
        run(output)
        assert (output / "train.jsonl").read_bytes() == expected
        assert sorted((output / "work" / "answers.jsonl").read_bytes().splitlines()) == sorted(
            whole["answers"].splitlines()
        )


def test_a_finished_run_asks_nothing_again(made):
    before = (made / "train.jsonl").read_bytes()
    run(made, groups=0)  # any call would raise
    assert (made / "train.jsonl").read_bytes() == before


def test_another_seed_or_prompt_makes_other_calls(made, tmp_path):
    rows = read(made / "train.jsonl")
    run(tmp_path / "seed", seed=2)
    assert [row["chosen"] for row in read(tmp_path / "seed" / "train.jsonl")] != [
        row["chosen"] for row in rows
    ]


def test_a_short_document_is_filled_from_others_and_recorded(tmp_path):
    documents = word_documents(paragraphs=3)
    run(tmp_path, documents=documents, questions_per_document=1, critical_chunks=1)
    for row in read(tmp_path / "train.jsonl"):
        own = [chunk for chunk in row["chunks"] if chunk["document"] == row["document"]["id"]]
        assert len(row["chunks"]) == 6 and len(own) <= 3
        assert all(not chunk["critical"] for chunk in row["chunks"] if chunk not in own)


def test_max_documents_asks_about_that_many(tmp_path):
    summary = run(tmp_path, max_documents=2, questions_per_document=1)
    assert summary.counts["chunks asked about"] == 2 == summary.rows


def test_without_a_second_chunk_anywhere_there_is_nothing_to_ask(tmp_path):
    with pytest.raises(UserError, match=r"pipeline\.documents=embedded: no document has 2 chunks"):
        run(tmp_path, documents=word_documents(paragraphs=1))


def chunk(index, text, document=0):
    return Chunk(document, index, f"{document}#{index}", text, 0, 4)


def test_contexts_keep_wrong_answers_wrong():
    """Critical chunks over the limit and relevant chunks of other documents stand in no context."""
    own = [chunk(i, text) for i, text in enumerate(["cat cat", "dog", "cat", "bird", "cat fish"])]
    foreign = [chunk(0, "cat cat cat", 1), chunk(1, "snow", 1)]
    contexts = choose_contexts(
        "Which cat?",
        own[2],
        own,
        foreign,
        Bm25(critical_share=0.1),
        critical_chunks=2,
        chunks_per_prompt=5,
        rejected=3,
        rng=random.Random(0),
    )
    assert contexts.critical == (own[0], own[2])
    assert contexts.irrelevant == (own[1], own[3], foreign[1])
    assert contexts.prompt == (own[0], own[1], own[2], own[3], foreign[1])
    assert [kind for kind, _ in contexts.rejected] == ["irrelevant", "mixed", "irrelevant"]
    assert [len(chunks) for _, chunks in contexts.rejected] == [2, 2, 2]


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("What is a list?", "What is a list?"),
        ("Question: What is a list? Answer: a thing. Why?", "What is a list?"),
        ('Here is one.\n1. "What is a list?"', "What is a list?"),
        ("The text is long. What does it say?", "What does it say?"),
        ("What is `a.b` in Python 3.12?", "What is `a.b` in Python 3.12?"),
        ("什么是列表？", "什么是列表？"),
        ("I do not know.", None),
        ("Why?", None),
        ("", None),
    ],
)
def test_the_first_question_is_taken_alone(text, question):
    assert parse_question(text) == question


def test_the_question_that_has_most_to_do_with_its_chunk_is_kept_and_the_reason_for_none_counted():
    own = [chunk(0, "cat dog cow"), chunk(1, "bird"), chunk(2, "fish")]
    questions = Questions()
    add = [
        ["Where is a bird now?", "Where is a cat now?", "Where are a cat and a dog?"],
        ["Where are a cat and a dog?"],
        ["Where is a bird now?", "No question."],
        ["No question."],
    ]
    for i, texts in enumerate(add):
        questions.add(Asked(f"r{i}", own[0]), texts, own, Bm25())
    assert [(item.id, text) for item, text in questions.kept] == [("r0", "Where are a cat and a dog?")]
    assert dict(questions.dropped) == {
        "question asked before": 1,
        "question not about its chunk": 1,
        "no question": 1,
    }


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        ("One. Two. Thr", "length", "One. Two."),
        ("One. Two. Thr", "stop", "One. Two. Thr"),
        ("no end at 3.12 here", "length", "no end at 3.12 here"),
        ('He said "no." Then', "length", 'He said "no."'),
        ("他走了。她留下来。然后他又", "length", "他走了。她留下来。"),
        ("第一段。\n第二句。第三句。第四句没有写", "length", "第一段。\n第二句。第三句。"),
        ("「行きます。」と彼は", "length", "「行きます。」"),
        ("Is it 3.5? no", "length", "Is it 3.5?"),
    ],
)
def test_a_cut_answer_ends_at_its_last_whole_sentence(text, finish, expected):
    assert trim_cut(Completion(text, 5, finish)) == expected


def scripted_answers(tmp_path, *texts, verdicts=(), **changes):
    """One row whose answers are `texts`: its summary and rows. `verdicts` are the judge's words, in turn."""

    class Answers(Scripted):
        def _groups(self, requests, finished):
            if "/judge" in requests[0].id:
                yield [
                    (call, Completion(text, 1, "stop")) for call, text in zip(requests, verdicts, strict=True)
                ]
            elif "/q/chosen" not in requests[0].id:
                yield from super()._groups(requests, finished)
            else:
                yield [
                    (call, Completion(text, 3, "stop")) for call, text in zip(requests, texts, strict=True)
                ]

    settings = pipeline(max_documents=1, questions_per_document=1, rejected=len(texts) - 1, **changes)
    summary = settings.run(word_documents(), workspace(tmp_path, Answers(local_generator())))
    return summary, read(tmp_path / "train.jsonl")


def test_filters_drop_empty_equal_and_repeated_answers_and_count_them(tmp_path):
    summary, rows = scripted_answers(tmp_path, "Yes, it is.", "yes,  it is", "", "No.", "no")
    assert rows[0]["rejected"] == ["No."]
    assert rows[0]["rejected_kinds"] == ["irrelevant"]
    assert {reason: n for reason, n in summary.dropped.items() if n} == {
        "rejected answer equal to the chosen": 1,
        "empty rejected answer": 1,
        "rejected answer met before": 1,
    }


@pytest.mark.parametrize(
    ("texts", "reason"),
    [(["", "No.", "No."], "empty chosen answer"), (["Yes.", "yes", " "], "no rejected answer left")],
)
def test_a_row_without_a_pair_is_dropped_and_counted(tmp_path, texts, reason):
    summary, rows = scripted_answers(tmp_path, *texts)
    assert rows == [] and summary.dropped[reason] == 1


def test_a_nearly_equal_answer_is_no_negative(tmp_path):
    """`answer twelve` and `answer twelv`: 25 of 25 characters but one match, ratio 0.96."""
    summary, rows = scripted_answers(tmp_path, "answer twelve", "answer twelv", "answer nine")
    assert rows[0]["rejected"] == ["answer nine"]
    assert summary.dropped["rejected answer nearly equal to the chosen"] == 1
    _, kept = scripted_answers(tmp_path / "kept", "answer twelve", "answer twelv", max_similarity=1.0)
    assert kept[0]["rejected"] == ["answer twelv"]


JUDGE = "{context}\n{question}\n{answer}\nIs it right? Yes or no."


def test_a_judge_drops_a_right_negative_and_a_wrong_positive_and_is_recorded(tmp_path):
    texts = ("good", "also good", "bad", "odd")
    summary, rows = scripted_answers(
        tmp_path, *texts, verdicts=("Yes.", "yes", "No, it is not", "well"), judge_prompt=JUDGE
    )
    assert rows[0]["rejected"] == ["bad", "odd"] and rows[0]["settings"]["judge"] == "tiny"
    assert summary.dropped["judge: rejected answer right"] == 1
    assert summary.dropped["nothing: the judge said neither yes nor no"] == 1
    summary, rows = scripted_answers(
        tmp_path / "wrong", "bad", "worse", verdicts=("no", "no"), judge_prompt=JUDGE
    )
    assert rows == [] and summary.dropped["judge: chosen answer wrong"] == 1


def test_a_question_from_elsewhere_is_judged_by_the_scorer_alone():
    own = [chunk(i, text) for i, text in enumerate(["cat", "dog", "snow", "bird"])]
    contexts = choose_contexts(
        "Which dog?",
        None,
        own,
        [],
        Bm25(),
        critical_chunks=2,
        chunks_per_prompt=3,
        rejected=1,
        rng=random.Random(0),
    )
    assert contexts.critical == (own[1],) and len(contexts.prompt) == 3


def killed(output, count):
    """`count` runs, each killed at a random moment and restarted: whether each file equals an unbroken run's."""
    process = fork(main, output, count)
    process.join(600)
    assert process.exitcode == 0
    return json.loads((output / "report.json").read_text())


def test_killed_by_the_system_at_random_moments_the_rows_are_those_of_an_unbroken_run(tmp_path):
    report = killed(tmp_path, 2)
    assert report["equal"] == 2 and report["killed"] >= 1


@pytest.mark.slow
def test_killed_at_ten_random_moments_the_rows_are_those_of_an_unbroken_run(tmp_path):
    report = killed(tmp_path, 10)
    assert report["equal"] == 10 and report["killed"] >= 8 and report["with_some_calls_done"] >= 3


def test_a_torn_line_is_cut_and_a_spoilt_one_named(tmp_path):
    path = tmp_path / "stage.jsonl"
    calls = [Request(f"r{i}", (Message("user", "x"),), SAMPLING, i) for i in range(3)]
    ledger = Ledger(path)
    ledger.append([(calls[0], Completion("a\u2028b é", 1, "stop")), (calls[1], Completion("c", 1, "length"))])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"request": "12')
    again = Ledger(path)
    assert path.read_bytes() == whole
    assert again.finished == ledger.finished
    assert again.finished[calls[0].digest].text == "a\u2028b é"
    again.append([(calls[1], Completion("changed", 1, "stop")), (calls[2], Completion("d", 1, "stop"))])
    assert Ledger(path).finished[calls[1].digest].text == "c"
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(UserError, match=r"stage\.jsonl:1 .*remove that line"):
        Ledger(path)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"chunk_tokens": 0}, "chunk_tokens"),
        ({"chunks_per_prompt": 2}, "chunks_per_prompt"),
        ({"rejected": 0}, "rejected"),
        ({"max_new_tokens": 1}, "max_new_tokens"),
        ({"top_p": 0.0}, "top_p"),
        ({"temperature": -1.0}, "temperature"),
        ({"max_documents": 0}, "max_documents"),
        ({"answer_prompt": "{question}"}, "answer_prompt"),
    ],
)
def test_bad_settings_are_named(change, key):
    with pytest.raises(UserError, match=rf"pipeline\.{key}"):
        pipeline(**change).check()
    pipeline().check()
