"""The miniature's data: nothing on two sides of a split, contexts that hold one answer, rows within a budget."""

from __future__ import annotations

import gzip
import json
import os
import zipfile
from pathlib import Path

import pytest

from align.scores.length import count_words, length_score, required_length
from benchmarks.miniature import find, questions, tiny, write
from benchmarks.miniature.files import within_budget
from benchmarks.miniature.questions import Split, held_out_questions, in_conflict, passage
from benchmarks.miniature.rows import QuestionRows
from tests.evaluation.helpers import Answers, evaluation
from tests.miniature.helpers import question


def sides(split: Split) -> dict[str, list]:
    groups = {"held_out": split.held_out, "dev": split.dev, "train": (split.train,)}
    return {name: [row for group in own for row in group] for name, own in groups.items()}


def assert_no_leak(split: Split) -> None:
    """No question, and no passage's text, on two sides or twice on one; no conflict within a context."""
    rows = [row for side in sides(split).values() for row in side]
    assert len({row["question"] for row in rows}) == len(rows)
    assert len({row["ctxs"][0]["text"] for row in rows}) == len(rows)
    for group in (*split.held_out, *split.dev):
        assert not any(in_conflict(a, b) for i, a in enumerate(group) for b in group[i + 1 :])
    held_out = {passage(row) for row in sides(split)["held_out"] + sides(split)["dev"]}
    for place in range(min(40, len(split.train))):
        passages, gold = split.context(place)
        assert passages[gold] == passage(split.train[place])
        assert len(set(passages)) == questions.TRAINED
        assert not held_out & set(passages)


def test_splits_do_not_leak():
    """Equal passages and wordings are kept once; question 60 answers question 0, so they share no context."""
    rows = [question(i) for i in range(60)]
    rows += [question(99, text=rows[3]["ctxs"][0]["text"]), rows[5] | {"answers": ["else"]}]
    rows += [question(60, text="The thing60x is answer60x, unlike answer0x of old.")]
    split = Split.of(rows, groups=2, size=6)
    assert [len(group) for group in split.held_out] == [6, 6]
    assert sum(map(len, sides(split).values())) == 61
    assert_no_leak(split)
    assert Split.of(rows, groups=2, size=6) == split
    with pytest.raises(ValueError, match="do not fill"):
        Split.of(rows, groups=20, size=6)


@pytest.mark.skipif("ALIGN_DATA" not in os.environ, reason="needs ALIGN_DATA")
def test_splits_of_the_real_questions_do_not_leak():
    split = Split.read(Path(os.environ["ALIGN_DATA"]))
    assert (len(sides(split)["held_out"]), len(sides(split)["dev"])) == (216, 24)
    assert len(split.train) > questions.SOURCES
    assert_no_leak(split)


def test_held_out_conditions():
    """Each question once a condition, in one order; its gold passage is there and no other answers it."""
    split = Split.of([question(i) for i in range(60)], groups=1, size=questions.BEYOND)
    asked = list(held_out_questions(split.held_out))
    by_condition = {
        name: [row for row in asked if row["group"] == name] for name in ("alone", "trained", "beyond")
    }
    for name, own in by_condition.items():
        assert [row["answers"] for row in own] == [row["answers"] for row in split.held_out[0]]
        for row in own:
            assert row["prompt"].count("Document (Title:") == questions.CONDITIONS[name]
            assert row["prompt"].count(row["answers"][0]) == 1
    contexts = {row["prompt"].rsplit("\n\n", 1)[0] for row in by_condition["beyond"]}
    assert len(contexts) == 1  # so that it is read once
    assert len({row["prompt"].rsplit("\n\n", 1)[0] for row in by_condition["trained"]}) == 4


def test_diluted_contexts(tmp_path):
    """The passages of `trained` in their order, 18 pieces of prose as long as passages among them."""
    split = Split.of([question(i) for i in range(60)], groups=1, size=questions.BEYOND)
    speeches = tmp_path / questions.PROSE
    speeches.parent.mkdir()
    forbidden = " ".join(row["answers"][0] for row in split.held_out[0])
    with zipfile.ZipFile(speeches, "w") as archive:
        archive.writestr("1.txt", " ".join(f"word{i}" for i in range(500)) + f" {forbidden} " * 9)
    by_condition: dict[str, list] = {}
    for row in held_out_questions(split.held_out):
        by_condition.setdefault(row["group"], []).append(row)
    diluted = list(questions.diluted_questions(split.held_out, tmp_path))
    assert diluted == list(questions.diluted_questions(split.held_out, tmp_path))
    assert {row["group"] for row in diluted} == {"diluted"}
    for row, trained, beyond in zip(diluted, by_condition["trained"], by_condition["beyond"], strict=True):
        pieces = row["prompt"].split(questions.SEPARATOR)
        assert len(pieces) == questions.BEYOND + 1
        kept = [piece for piece in pieces if not piece.startswith("word")]
        assert kept == trained["prompt"].split(questions.SEPARATOR)
        prose, others = (len(one["prompt"]) - len(trained["prompt"]) for one in (row, beyond))
        assert prose == pytest.approx(questions.DENSITY * others, rel=0.1)
        assert row["answers"] == trained["answers"]
    gold = [
        row["prompt"].split(questions.SEPARATOR).index(passage(own))
        for row, own in zip(diluted, split.held_out[0], strict=True)
    ]
    assert min(gold) < 4 and max(gold) >= 20


def test_rows_of_questions(tmp_path):
    """The model knows an answer only with the gold passage alone; on every third question it never does."""
    data = tmp_path / questions.FILE
    data.parent.mkdir()
    with gzip.open(data, "wt") as file:
        file.write("".join(f"{json.dumps(question(i))}\n" for i in range(320)))

    def say(prompt: str) -> str:
        number = prompt.rsplit("thing", 1)[1].split("x")[0]
        if prompt.count("Document (") == 1 and f"Thing {number})" in prompt and int(number) % 3:
            return f"It is answer{number}x."
        return f"No idea at all, {prompt.count('Document (')} texts."

    pipeline = QuestionRows(data=str(tmp_path), sources=9)
    summary = pipeline.run(pipeline.read(), evaluation(tmp_path / "out", Answers(say)).workspace)
    rows = [json.loads(line) for line in summary.path.read_text().splitlines()]
    split = Split.read(tmp_path)
    able = [row for row in split.train[:9] if int(row["question"].split("thing")[1].split("x")[0]) % 3]
    assert [row["answers"] for row in rows] == [row["answers"] for row in able]
    assert summary.dropped["preferred answer wrong"] == 9 - len(able)
    for row in rows:
        assert row["chosen"] == f"It is {row['answers'][0]}."
        assert row["long"] == "No idea at all, 6 texts."
        assert row["irrelevant"] == ["No idea at all, 1 texts.", "No idea at all, 3 texts."]
        assert row["short_prompt"] == row["context"][row["gold"]]


def test_find_contexts_are_apart_and_hold_one_answer():
    contexts = {"train": {" ".join(row["context"]) for row in find.rows(1)}}
    for split in ("dev", "held_out"):
        asked = list(find.questions(split))
        assert len(asked) == sum(find.QUESTIONS.values())
        contexts[split] = {row["prompt"].rsplit(" ", 2)[0] for row in asked if row["group"] != "alone"}
        for row in asked:
            words = row["prompt"].split()
            assert sum(word[:3] == row["answers"][0][:3] for word in words) == 1
            assert len(words) == find.LENGTHS[row["group"]] + 2
    assert not contexts["train"] & contexts["held_out"]
    assert not contexts["dev"] & contexts["held_out"]
    row = next(find.rows(2))
    assert row["chosen"] in row["short_prompt"] and row["long"] in " ".join(row["context"]).split()
    assert row["irrelevant"][1][:3] == row["chosen"][:3] and row["irrelevant"][1] != row["chosen"]
    assert next(find.rows(2)) == row != next(find.rows(1))
    prompt, _ = tiny.chat([*" ".join(row["context"]).split(), *row["question"].split()], [])
    assert row["tokens"] == {"prompt": len(prompt) - 1, "chosen": 2, "long": 2, "irrelevant": 4}


def test_writing():
    """No pair of topic and number on two sides; the second stage's answers have the length; the base's are short."""
    pairs = write.pairs()
    assert sum(map(len, pairs.values())) == len({pair for own in pairs.values() for pair in own})
    held_out = {row["prompt"] for row in write.instructions("held_out")}
    assert len(held_out) == write.HELD_OUT
    for row in write.sft_rows(1):
        prompt, answer = (message["content"] for message in row["messages"])
        assert prompt not in held_out
        assert length_score(required_length(prompt) or 0, count_words(answer)) == 100
    assert not held_out & {row["prompt"] for row in write.instructions("train")}


def test_budget():
    """Rows of 11, 13 or 18 tokens, by what is rejected: three of them fit into 40, 40 and 54."""
    tokens = {"prompt": 10, "chosen": 1, "long": 2, "irrelevant": 7}
    common = {"id": "r", "context": ["c"], "question": "q", "short_prompt": "s", "chosen": "y"}
    rows = [common | {"long": "l", "irrelevant": ["i", "j"], "tokens": tokens}] * 9
    assert [row["rejected"] for row in within_budget(rows, rejected=None, budget=40)] == [[]] * 3
    assert [row["rejected"] for row in within_budget(rows, rejected="long", budget=40)] == [["l"]] * 3
    assert [row["rejected"] for row in within_budget(rows, rejected="irrelevant", budget=54)] == [
        ["i", "j"]
    ] * 3


def test_tiny_model_reads_what_the_template_writes():
    """`chat` is the tokenizer's own template; every word is one token; the model has at most 5M parameters."""
    tokenizer = tiny.tokenizer()
    words, learnt = tiny.chat(["find", "kind03"], ["f0301"])
    messages = [{"role": "user", "content": "find kind03"}, {"role": "assistant", "content": "f0301"}]
    wanted = tokenizer.apply_chat_template(messages, tokenize=False).removesuffix("\n")
    assert tokenizer(wanted)["input_ids"] == tokenizer.convert_tokens_to_ids(words)
    assert [word for word, own in zip(words, learnt, strict=True) if own] == ["f0301", "<|im_end|>"]
    vocabulary = tiny.vocabulary()
    assert len(set(vocabulary)) == len(vocabulary) == len(tokenizer)
    assert sum(parameter.numel() for parameter in tiny.model(0).parameters()) < 5_000_000


def test_the_base_of_find_never_sees_its_window_passed():
    import random

    rng = random.Random(0)
    assert max(len(tiny.find_sequence(rng)[0]) for _ in range(2000)) <= 64
    answers = [sum(tiny.write_sequence(rng)[1]) for _ in range(500)]
    assert max(answers) <= write.SHORT + 1  # and the end
