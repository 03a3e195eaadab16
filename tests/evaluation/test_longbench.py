"""LongBench files: asked, cut in the middle, scored; predictions made elsewhere scored."""

from __future__ import annotations

import json

import pytest
from hydra import compose, initialize_config_module

from align.core.errors import UserError
from align.core.instantiate import build
from align.evaluation.longbench import LongBench
from align.evaluation.window import cut_middle
from align.generation.prompts import PromptEncoder
from tests.evaluation.helpers import Answers, evaluation
from tests.tiny import tiny_tokenizer


def configured(*overrides: str) -> LongBench:
    with initialize_config_module("hydra_conf", version_base="1.3"):
        return build(compose("evaluate", ["suite=longbench", *overrides]), "suite")


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def test_asks_and_scores(tmp_path):
    rows = [
        {"context": "w8 " * 30, "input": "which", "answers": ["red fox"], "length": 100, "all_classes": None},
        {"context": "w9 " * 30, "input": "which", "answers": ["owl"], "length": 9000, "all_classes": None},
    ]
    path = write(tmp_path / "qasper_e.jsonl", rows)
    result = configured(f"suite.paths=[{path}]").run(
        evaluation(tmp_path / "out", Answers(lambda _: "A red fox"))
    )
    assert result.details["longbench"] == {"qasper_e": 50.0}
    assert result.details["longbench_e"] == {"qasper_e": {"0-4k": 100.0, "8k+": 0.0}}
    assert result.scores["qasper_e"].n == 2


def test_scores_predictions(tmp_path):
    rows = [
        {"pred": "Date and City\nmore", "answers": ["City"], "all_classes": ["Date", "City"], "length": 10},
        {"pred": "Date", "answers": ["Date"], "all_classes": ["Date", "City"], "length": 10},
    ]
    path = write(tmp_path / "trec.jsonl", rows)
    model = Answers(str)
    result = configured(f"suite.predictions=[{path}]").run(evaluation(tmp_path / "out", model))
    assert result.details["longbench"] == {"trec": 75.0}
    assert model.asked == 0


def test_the_middle_is_cut():
    text = " ".join(f"w{i}" for i in range(8, 28))
    cut = cut_middle(text, tiny_tokenizer(), 6)
    assert cut.split() == ["w8", "w9", "w10w25", "w26", "w27"]
    assert cut_middle(text, tiny_tokenizer(), 20) == text


@pytest.mark.parametrize(
    ("names", "override", "message"),
    [
        (["qasper.jsonl"], "suite.paths=[]", "has to name"),
        (["novel.jsonl"], "suite.paths=[{0}]", "no task of LongBench"),
        ([], "suite.paths=[nowhere/qasper.jsonl]", "does not exist"),
        (["qasper.jsonl"], "suite.predictions=[{0}]", "qasper.jsonl:1 has no `pred`"),
    ],
)
def test_refusals(tmp_path, names, override, message):
    paths = [write(tmp_path / name, [{"context": "c", "input": "i", "answers": ["a"]}]) for name in names]
    with pytest.raises(UserError, match=message):
        configured(override.format(*paths)).run(evaluation(tmp_path / "out", Answers(str)))


def test_broken_json_is_named(tmp_path):
    path = tmp_path / "qasper.jsonl"
    path.write_text('{"context": "c"\n')
    with pytest.raises(UserError, match=r"qasper.jsonl:1: malformed JSON"):
        configured(f"suite.paths=[{path}]").run(evaluation(tmp_path / "out", Answers(str)))


# ---- how rows are asked


class Recorder(Answers):
    """Keeps the requests."""

    def __init__(self):
        super().__init__(lambda _: "1")
        self.requests = []

    def generate(self, requests, *, finished):
        self.requests += requests
        yield from super().generate(requests, finished=finished)


def asked(tmp_path, task, *overrides, context="w8 w9", classes=None) -> tuple:
    """The one request that a row of the task becomes, and what the suite says of it."""
    row = {"context": context, "input": "which", "answers": ["Paragraph 1, 段落1"], "all_classes": classes}
    model = Recorder()
    path = write(tmp_path / f"{task}.jsonl", [row])
    result = configured(f"suite.paths=[{path}]", *overrides).run(evaluation(tmp_path / task, model))
    (request,) = model.requests
    return request, result


# LongBench's config/dataset2maxlen.json and pred.py: tokens of an answer, chat template, stop at a line break.
PUBLISHED = {
    "narrativeqa": (128, "chat", ()),
    "hotpotqa": (32, "chat", ()),
    "gov_report": (512, "chat", ()),
    "passage_retrieval_zh": (32, "chat", ()),
    "multifieldqa_zh": (64, "chat", ()),
    "trec": (64, "text", ()),
    "triviaqa": (32, "text", ()),
    "samsum": (128, "text", ("\n",)),
    "lsht": (64, "text", ()),
    "lcc": (64, "text", ()),
    "repobench-p_e": (64, "text", ()),
}


@pytest.mark.parametrize("task", PUBLISHED)
def test_as_published(tmp_path, task):
    request, result = asked(tmp_path, task, "suite.settings=published", classes=["a"])
    sampling = request.sampling
    assert (sampling.max_new_tokens, request.form, sampling.stop_at) == PUBLISHED[task]
    assert sampling.temperature == 0
    assert result.details["settings"]["settings"] == "published"
    assert "suite.settings=published" in result.notes[0]


def test_published_prompts_are_cut_by_themselves(tmp_path):
    """Half of max_length from either end, whatever template and answer add."""
    text = " ".join(f"w{i}" for i in range(8, 58))
    request, _ = asked(tmp_path, "lcc", "suite.settings=published", "suite.max_length=10", context=text)
    assert request.messages[0].content == "w8 w9 w10 w11 w12w53 w54 w55 w56 w57which"


def test_the_benchmarks_own_wording(tmp_path):
    path = tmp_path / "dataset2prompt.json"
    path.write_text(json.dumps({"hotpotqa": "Passages: {context} Question: {input}"}))
    request, result = asked(tmp_path, "hotpotqa", f"suite.prompts_path={path}", "suite.settings=published")
    assert request.messages[0].content == "Passages: w8 w9 Question: which"
    assert str(path) in result.notes[0]
    path.write_text("[1]")
    with pytest.raises(UserError, match="has to map tasks to prompts"):
        configured(f"suite.prompts_path={path}", f"suite.paths=[{tmp_path / 'hotpotqa.jsonl'}]")


@pytest.mark.parametrize("max_length", [100, 101, 130])
def test_prompt_template_and_answer_fit_max_length(tmp_path, max_length):
    """At the model's own window nothing may be left over: the generator counts the template too."""
    overrides = (f"suite.max_length={max_length}", "suite.max_new_tokens.default=64")
    request, result = asked(tmp_path, "hotpotqa", *overrides, context="w8 w9 " * 200)
    tokens = len(PromptEncoder(tiny_tokenizer())(request))
    assert max_length - 64 - 2 <= tokens <= max_length - 64
    assert "not comparable with published figures" in result.notes[0]


@pytest.mark.parametrize(
    ("task", "override", "message"),
    [
        (
            "gov_report",
            "suite.max_length=512",
            r"suite\.max_new_tokens\.gov_report=512 tokens: raise the one",
        ),
        ("gov_report", "suite.max_length=400", "leaves no room for a prompt of gov_report"),
        ("hotpotqa", "suite.max_length=70", "and the chat template's"),
        ("hotpotqa", "suite.settings=publised", r"suite\.settings=publised is not known.*published"),
        ("hotpotqa", "suite.limit=0", r"suite\.limit=0 is too small"),
        ("hotpotqa", "suite.max_new_tokens.default=0", r"suite\.max_new_tokens\.default=0 is too small"),
    ],
)
def test_no_room(tmp_path, task, override, message):
    with pytest.raises(UserError, match=message):
        asked(tmp_path, task, override)


@pytest.mark.parametrize("task", ["trec", "trec_e", "lsht"])
@pytest.mark.parametrize("key", ["paths", "predictions"])
def test_classes_are_needed(tmp_path, task, key):
    """Without them every score would be 0, where the published scorer ends."""
    row = {"context": "c", "input": "i", "answers": ["City"], "pred": "City", "all_classes": None}
    path = write(tmp_path / f"{task}.jsonl", [row])
    model = Answers(str)
    with pytest.raises(UserError, match=rf"{task}\.jsonl:1: `all_classes` is missing"):
        configured(f"suite.{key}=[{path}]").run(evaluation(tmp_path / "out", model))
    assert model.asked == 0


def test_a_paragraph_is_needed(tmp_path):
    path = write(tmp_path / "passage_retrieval_en.jsonl", [{"pred": "3", "answers": ["three"]}])
    with pytest.raises(
        UserError, match=r"passage_retrieval_en\.jsonl:1: an answer has to name `Paragraph N`"
    ):
        configured(f"suite.predictions=[{path}]").run(evaluation(tmp_path / "out", Answers(str)))


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("qasper", {"length": "3k"}, "`length` has to be a number of words"),
        ("qasper", {"length": -1}, "`length` has to be a number of words"),
        ("qasper", {"answers": []}, "`answers` has to be a list of texts, one at least"),
        ("qasper", {"input": 3}, "`input` has to be a text"),
        ("qasper", {"context": None}, "`context` has to be a text"),
        ("trec", {"all_classes": [1, 2]}, "`all_classes` has to be a list of texts"),
        ("trec", {"all_classes": "abx"}, "`all_classes` has to be a list of texts"),
    ],
)
def test_rows_that_cannot_be_scored_are_not_asked(tmp_path, task, changes, message):
    row = {"context": "c", "input": "i", "answers": ["a"], "all_classes": ["a"], "length": 3}
    path = write(tmp_path / f"{task}.jsonl", [row, row | changes])
    model = Answers(str)
    with pytest.raises(UserError, match=rf"{task}\.jsonl:2: {message}"):
        configured(f"suite.paths=[{path}]").run(evaluation(tmp_path / "out", model))
    assert model.asked == 0


def test_a_null_input_is_no_word_of_the_prompt(tmp_path):
    row = {"context": "w8 w9", "input": None, "answers": ["a"]}
    model = Recorder()
    path = write(tmp_path / "gov_report.jsonl", [row])
    configured(f"suite.paths=[{path}]").run(evaluation(tmp_path / "out", model))
    assert "None" not in model.requests[0].messages[0].content


@pytest.mark.parametrize("settings", ["own", "published"])
def test_what_is_cut_is_said(tmp_path, settings):
    rows = [{"context": "w8 " * n, "input": "which", "answers": ["a"]} for n in (3, 600, 700)]
    path = write(tmp_path / "qasper.jsonl", rows)
    suite = configured(f"suite.paths=[{path}]", f"suite.settings={settings}", "suite.max_length=400")
    result = suite.run(evaluation(tmp_path / "out", Answers(lambda _: "a", finish="length")))
    assert [record["prompt_cut"] for record in result.records] == [False, True, True]
    assert result.notes[1].startswith("2 of 3 prompts had their middle cut out, to fit suite.max_length=400")
    limit = {"own": "suite.max_new_tokens", "published": "the published lengths of answers"}[settings]
    assert result.notes[2] == f"3 of 3 answers were cut at {limit}."
