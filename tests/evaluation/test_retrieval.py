"""Needles, key-value pairs and passages: prompts of the right length, the thing at its depth, found or not."""

from __future__ import annotations

import json
import re
from itertools import product

import pytest

from align.core.errors import UserError
from align.evaluation.haystacks import NEEDLE, KeyValue, MultiDocument, Needles, fit, token_counter
from align.evaluation.retrieval import TEMPLATE_MARGIN, Retrieval
from align.evaluation.suite import write_result
from tests.evaluation.helpers import Answers, evaluation
from tests.tiny import tiny_tokenizer

NUMBER = re.compile(re.escape(NEEDLE).replace(r"\{city\}", r"[A-Z]\w+").replace(r"\{number\}", r"(\d+)"))


@pytest.fixture(scope="module")
def hay(tmp_path_factory) -> str:
    """Text of 400 sentences of six words."""
    path = tmp_path_factory.mktemp("hay") / "hay.txt"
    path.write_text(" ".join(f"w{i % 100 + 8} w9 w10 w11 w12 w{i % 90 + 9}." for i in range(400)))
    return str(path)


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    rows = [
        {
            "question": f"what is thing {i}",
            "answers": [f"answer{i}x"],
            "ctxs": [{"title": f"thing {i}", "text": f"The thing is answer{i}x among w{i + 8} w9 w10."}],
        }
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def suite(hay: str, questions: str, **changes) -> Retrieval:
    settings = {
        "tasks": ["needles", "key_value", "multi_document"],
        "lengths": [200, 400],
        "depths": [0.0, 0.5, 1.0],
        "samples": 2,
        "documents": hay,
        "multi_document_path": questions,
        "max_new_tokens": 8,
    }
    return Retrieval(**(settings | changes))


def test_prompts_fill_their_length(hay, questions, tmp_path):
    """At most the budget, and less than one more unit of hay (a sentence, pair or passage) below it."""
    count = token_counter(tiny_tokenizer())
    for sample in suite(hay, questions).make_samples(evaluation(tmp_path, Answers(str))):
        tokens = count(sample.request.messages[0].content)
        budget = sample.facts["length"] - 8 - TEMPLATE_MARGIN
        assert tokens == sample.facts["tokens"]
        assert budget - 40 < tokens <= budget


def test_the_needle_stands_at_its_depth(hay, questions, tmp_path):
    samples = suite(hay, questions, tasks=["needles"], lengths=[2000]).make_samples(
        evaluation(tmp_path, Answers(str))
    )
    for sample in samples:
        text = sample.request.messages[0].content
        match = NUMBER.search(text)
        assert match is not None
        assert match[1] == sample.facts["answers"][0]
        assert match.start() / len(text) == pytest.approx(sample.facts["depth"], abs=0.08)


def test_prompts_of_a_depth_share_their_beginning(hay, questions, tmp_path):
    """Up to the needle, which stands in the middle of the hay."""
    samples = suite(hay, questions, tasks=["needles"], lengths=[2000], depths=[0.5]).make_samples(
        evaluation(tmp_path, Answers(str))
    )
    first, second = (sample.request.messages[0].content for sample in samples)
    shared = next(i for i, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1])
    assert shared > 0.4 * len(first)


def test_a_passage_stands_at_its_depth(hay, questions, tmp_path):
    samples = suite(hay, questions, tasks=["multi_document"]).make_samples(evaluation(tmp_path, Answers(str)))
    for sample in samples:
        text = sample.request.messages[0].content
        numbers = [int(n) for n in re.findall(r"Document \[(\d+)\]", text)]
        gold = int(re.findall(rf"Document \[(\d+)\] [^\n]*{sample.facts['answers'][0]}", text)[0])
        assert gold == 1 + round(sample.facts["depth"] * (len(numbers) - 1))


def test_scores_and_pictures(hay, questions, tmp_path):
    """A model that reads numbers finds every needle and no passage; the summary says how sure that is."""

    def say(prompt: str) -> str:
        match = NUMBER.search(prompt)
        return match[1] if match else "nothing"

    model = Answers(say)
    result = suite(hay, questions, tasks=["needles", "multi_document"]).run(evaluation(tmp_path, model))
    assert result.scores["needles"].mean == 1.0
    assert result.scores["multi_document"].mean == 0.0
    assert result.scores["needles"].n == 2 * 3 * 2
    assert result.scores["needles"].low < 1.0
    write_result(result, tmp_path)
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 24
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["by_depth"]["needles"]["0.5"]["n"] == 4
    assert (tmp_path / "needles.png").stat().st_size > 5000
    assert model.asked == 24
    suite(hay, questions, tasks=["needles", "multi_document"]).run(evaluation(tmp_path, model))
    assert model.asked == 24  # all of it came from the ledger


def test_key_value_from_a_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    pairs = [[f"k{i}", f"v{i}"] for i in range(30)]
    path.write_text(json.dumps({"ordered_kv_records": pairs, "key": "k7", "value": "v7"}) + "\n")
    made = Retrieval(tasks=["key_value"], lengths=[300], depths=[0.5], samples=1, key_value_path=str(path))
    (sample,) = made.make_samples(evaluation(tmp_path, Answers(str)))
    assert sample.facts["answers"] == ["v7"]
    assert sample.request.messages[0].content.count('"k7"') == 2  # its pair, and the question


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["haystack"]}, "name some of needles"),
        ({"tasks": []}, "name some of"),
        ({"lengths": [64]}, "name lengths above"),
        ({"depths": [1.5]}, "from 0"),
        ({"samples": 0}, "suite.samples=0 is too small"),
        ({"multi_document_path": None}, "multi_document_path is not set"),
        ({"multi_document_path": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
    ],
)
def test_refusals(hay, questions, changes, message):
    with pytest.raises(UserError, match=message):
        suite(hay, questions, **changes).check()


def test_what_never_fits_is_refused():
    with pytest.raises(UserError, match="nothing to find fits into 3 tokens"):
        fit(
            lambda size: type("F", (), {"content": "a b c d"})(),
            lambda text: len(text.split()),
            budget=3,
            least=0,
            most=5,
            where="here",
        )


# ---- what there is to read ends


def test_a_prompt_stands_for_its_length_or_is_not_asked(hay, questions, tmp_path):
    """400 sentences are about 2,800 tokens: enough for 200 and 400 and not for 65,536, which nobody is asked at."""
    model = Answers(lambda _: "nothing")
    given = evaluation(tmp_path, model)
    result = suite(hay, questions, tasks=["needles"], lengths=[200, 65536]).run(given)
    assert model.asked == 6
    assert list(result.details["by_length"]["needles"]) == ["200"]
    assert result.scores["needles"].n == 6
    assert all(record["tokens"] >= 0.9 * record["budget"] for record in result.records)
    (note,) = result.notes
    assert note.startswith("needles, 65536 tokens: 6 of 6 prompts are not asked")
    assert note in given.workspace.console.file.getvalue()
    grey = result.pictures["needles.png"].axes[0]
    assert grey.get_title(loc="left").endswith("(grey: not asked)")
    assert len(grey.texts) == 3  # the cells of 200 tokens have values
    with pytest.raises(UserError, match=r"suite\.lengths=\[65536\]: needles, 65536 tokens: 6 of 6"):
        suite(hay, questions, tasks=["needles"], lengths=[65536]).run(given)


def test_pairs_of_a_file_end_too(tmp_path):
    path = tmp_path / "pairs.jsonl"
    pairs = [[f"k{i}", f"v{i}"] for i in range(75)]
    path.write_text(json.dumps({"ordered_kv_records": pairs, "key": "k7", "value": "v7"}) + "\n")
    made = Retrieval(tasks=["key_value"], lengths=[8192], key_value_path=str(path))
    with pytest.raises(UserError, match="key_value, 8192 tokens: 10 of 10 prompts are not asked"):
        made.run(evaluation(tmp_path, Answers(str)))


# ---- what is independent


def test_needles_are_drawn_anew_and_questions_are_not(hay, questions, tmp_path):
    """Three depths at two lengths: 2 questions asked six times each are 2 independent samples, needles are 12."""
    result = suite(hay, questions, tasks=["needles", "multi_document"]).run(
        evaluation(tmp_path, Answers(lambda _: "nothing"))
    )
    scores = result.scores
    assert (scores["needles"].n, scores["needles"].independent) == (12, 12)
    assert (scores["multi_document"].n, scores["multi_document"].independent) == (12, 2)
    assert scores["multi_document"].high > scores["needles"].high
    assert scores["needles"].better == "higher"
    numbers = {record["answers"][0] for record in result.records if record["task"] == "needles"}
    assert len(numbers) == 12


def test_who_repeats_the_passages_finds_nothing(hay, questions, tmp_path):
    """As the published scorer of Lost in the Middle does: an answer ends at its first line break."""
    said = {"passage": lambda prompt: f"Here they are:\n{prompt}", "needle": lambda prompt: f"So:\n{prompt}"}
    one = suite(hay, questions, tasks=["multi_document"])
    assert one.run(evaluation(tmp_path / "a", Answers(said["passage"]))).scores["multi_document"].mean == 0.0
    other = suite(hay, questions, tasks=["needles"])
    assert other.run(evaluation(tmp_path / "b", Answers(said["needle"]))).scores["needles"].mean == 1.0


def test_prompts_are_those_of_a_bisection_over_all_the_hay(hay, questions, tmp_path):
    """What is read to find them is a few times the prompt, where half of the hay was read before."""
    count = token_counter(tiny_tokenizer())
    for maker in (Needles(hay, 0), KeyValue(None, 0), MultiDocument(questions, 0)):
        for length, depth in product((90, 130, 400), (0.0, 0.3, 1.0)):
            kind = maker.hay_of(length, depth, 1)
            low, high, wanted = kind.least, min(kind.most, 400), None
            while low <= high:
                middle = (low + high) // 2
                made = kind.build(middle)
                fits = count(made.content) <= length
                low, high, wanted = (middle + 1, high, made) if fits else (low, middle - 1, wanted)
            read = []
            found = fit(
                maker.hay_of(length, depth, 1).build,
                lambda text, read=read: read.append(len(text)) or count(text),
                budget=length,
                most=kind.most,
                least=kind.least,
                where="",
            )
            assert found == wanted
            assert max(read) < 3 * len(found.content) + 1500


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"ordered_kv_records": {"a": "b"}}, "`ordered_kv_records` has to be a list of"),
        ({"ordered_kv_records": [["a", 1]]}, "`ordered_kv_records` has to be a list of"),
        ({"value": 3}, "`value` has to be a text"),
    ],
)
def test_bad_pairs(tmp_path, row, message):
    path = tmp_path / "pairs.jsonl"
    whole = {"ordered_kv_records": [["a", "b"]], "key": "a", "value": "b"}
    path.write_text("".join(f"{json.dumps(one)}\n" for one in (whole, whole | row)))
    made = Retrieval(tasks=["key_value"], lengths=[300], key_value_path=str(path))
    with pytest.raises(UserError, match=rf"pairs\.jsonl:2: {message}"):
        made.run(evaluation(tmp_path, Answers(str)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"ctxs": []}, "`ctxs` has to be a list whose first entry"),
        ({"ctxs": [{"text": "t"}]}, "`ctxs` has to be a list whose first entry"),
        ({"answers": "abc"}, "`answers` has to be a list of texts"),
        ({"question": None}, "`question` has to be a text"),
    ],
)
def test_bad_passages(tmp_path, row, message):
    path = tmp_path / "passages.jsonl"
    whole = {"question": "q", "answers": ["a"], "ctxs": [{"title": "t", "text": "a"}]}
    path.write_text("".join(f"{json.dumps(one)}\n" for one in (whole, whole | row)))
    made = Retrieval(tasks=["multi_document"], lengths=[300], multi_document_path=str(path))
    with pytest.raises(UserError, match=rf"passages\.jsonl:2: {message}"):
        made.run(evaluation(tmp_path, Answers(str)))


def test_cut_answers_are_said(hay, questions, tmp_path):
    made = suite(hay, questions, tasks=["needles"], lengths=[200], depths=[0.5])
    result = made.run(evaluation(tmp_path, Answers(lambda _: "so", finish="length")))
    assert result.notes == ["2 of 2 answers were cut at suite.max_new_tokens=8."]
