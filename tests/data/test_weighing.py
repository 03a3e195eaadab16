"""Weights of tokens: where tokens stand in answers, under every template; the weighers; their way to the loss."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainingArguments

import align
from align.core.errors import UserError
from align.data.dataset import load_preference_data
from align.data.faults import RowError
from align.data.files import RawRow
from align.data.row_builder import Demands, RowBuilder
from align.data.settings import DataSettings, PositionSettings
from align.data.stored_rows import to_example, to_row
from align.data.tokens import ExampleTokenizer
from align.data.weighers import Rank, Spans
from align.data.weighing import AnswerText, RowWeights, Weigher
from align.longseq import ATTENTION, pack, pair_logps
from align.training.setup import unweighted_words
from align.training.trainer import PreferenceTrainer
from tests.data.helpers import byte_tokenizer
from tests.data.template_cases import FORMS, NAMES, reader_of
from tests.tiny import tiny_model, tiny_tokenizer


@dataclass(frozen=True)
class Watching:
    """Weighs every token 1, and remembers what it was shown."""

    seen: list[AnswerText] = field(default_factory=list)

    def check(self) -> None:
        """Nothing."""

    def reads(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def weights(self, answer: AnswerText, row: Mapping[str, Any]) -> np.ndarray:
        """Ones."""
        self.seen.append(answer)
        return np.ones(len(answer.starts))


def visible(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("kind", FORMS)
def test_every_template_and_kind_of_row(kind: str) -> None:
    """Bytes as tokens: each stands for a character of the answer as the row has it, in order, and none is lost.

    What the row brings in tags may be the template's; reasoning in a field of its own always is.
    """
    example, read = FORMS[kind].example(), 0
    for name in NAMES:
        weigher = Watching()
        weights = RowWeights(weigher, "r:1", {}, example.turns, (0, 1), count=len(example.turns))
        try:
            tokenized = reader_of(name)(example, weights)
        except UserError:
            continue
        read += 1
        shown = {(answer.number, answer.turn): answer for answer in weigher.seen}
        assert len(shown) == 2 * len(example.turns)
        for (number, turn), answer in shown.items():
            said = (example.turns[turn].chosen, *example.turns[turn].rejected)[number]
            assert answer.text == said
            places = answer.starts[answer.starts >= 0]
            assert (np.diff(places) > 0).all(), (name, said)
            found = "".join(said[place] for place in places)
            last = said.rpartition("</think>")[2]
            assert visible(found).endswith(visible(last)), (name, said, found)
        ids = read_tokens(name, tokenized, 0)
        assert visible(example.turns[-1].chosen.rpartition("</think>")[2]) in visible(ids)
    assert read > 10


def read_tokens(name: str, tokenized: Any, number: int) -> str:
    answer = tokenized.answers[number]
    assert (answer.weights[answer.scored] == 1).all() and (answer.weights[~answer.scored] == 0).all()
    decoded: str = reader_of(name).tokenizer.decode(answer.input_ids[answer.scored])
    return decoded


# ---- spans


def letters(answer: str, spans: list, *, weigher: Weigher | None = None, **row: Any) -> list[float]:
    """Weights of the chosen answer's bytes behind a plain prompt, its end token's last."""
    return weights_of({"prompt": "Why?", "chosen": answer, "spans": spans} | row, weigher=weigher)[0]


def weights_of(row: dict, *, weigher: Weigher | None = None) -> list[list[float]]:
    return [answer.weights.tolist() for answer in built(row, weigher=weigher).answers]


def built(row: dict, *, weigher: Weigher | None = None, tokenizer: Any = None) -> Any:
    tokenize = ExampleTokenizer(tokenizer or byte_tokenizer(), DataSettings(), chunk_tokens=100)
    build = RowBuilder(tokenize, PositionSettings(), 0, Demands(weigher=weigher or Spans()))
    (stored,) = build(RawRow(0, "r:1", row))
    return to_example(stored)


def test_spans() -> None:
    """Characters 1 and 2 weigh 3, the last span wins, and the end token is the template's."""
    assert letters("abcd", [[1, 3, 3]]) == [1, 3, 3, 1, 1]
    assert letters("abcd", [[1, 3, 3], [2, 4, 0.5]]) == [1, 3, 0.5, 0.5, 1]
    assert letters("abcd", [], weigher=Spans(default=0.25, template=2.0)) == [0.25] * 4 + [2.0]
    assert letters("abcd", "[[0, 1, 2]]") == [2, 1, 1, 1, 1]


def test_spans_of_several_answers_and_those_that_are_left_out() -> None:
    """The first rejected answer equals the chosen one; the second keeps its own spans."""
    row = {"prompt": "Why?", "chosen": "ab", "rejected": ["ab", "cd"]}
    spans = [[[0, 1, 2]], [[0, 1, 7]], [[1, 2, 3]]]
    assert weights_of(row | {"spans": spans}) == [[2, 1, 1], [1, 3, 1]]
    assert weights_of(row | {"spans": [[0, 1, 2]]}) == [[2, 1, 1], [1, 1, 1]]


def test_a_space_that_goes_to_the_answer_does_not_move_them() -> None:
    assert letters("abc", [[0, 1, 5]], prompt="Why: ") == [1, 5, 1, 1, 1]


def test_spans_of_several_turns() -> None:
    """One list a turn; the question between is not scored and weighs 0. Short contexts have their turn's."""
    row = {
        "context": "long",
        "questions": ["a?", "b?"],
        "chosens": ["ab", "cd"],
        "rejecteds": ["ef", "gh"],
        "short_prompts": ["s", "t"],
        "spans": [[[0, 1, 2]], [[1, 2, 3]]],
    }
    example = built(row)
    chosen, rejected = example.answers
    assert chosen.weights[chosen.scored].tolist() == [2, 1, 1, 1, 3, 1]
    assert (chosen.weights[~chosen.scored] == 0).all() and rejected.weights[rejected.scored].tolist() == [
        1
    ] * 6
    assert [turn.answers[0].weights.tolist() for turn in example.short] == [[2, 1, 1], [1, 3, 1]]
    apart = row | {"spans": [[[[0, 1, 2]], [[0, 2, 5]]], [[], []]]}
    assert [answer.weights[answer.scored].tolist() for answer in built(apart).answers] == [
        [2, 1, 1, 1, 1, 1],
        [5, 5, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize(
    ("spans", "sentence"),
    [
        (None, "r:1: column spans, which token_weights.column names, is missing"),
        ([[0, 9, 1]], "has the span [0, 9] for an answer of 4 characters"),
        ([[2, 2, 1]], "has the span [2, 2]"),
        ([[0, 1]], "must hold a list of [start, stop, weight]"),
        ([["a", 1, 2]], "must hold a list of [start, stop, weight]"),
        ([[0, 1, -2]], "a token's weight is below 0"),
        ([[0, 4, 0]], "every token of the chosen answer weighs 0"),
    ],
)
def test_spans_that_are_none(spans, sentence) -> None:
    with pytest.raises(RowError) as refused:
        letters("abcd", spans, weigher=Spans(template=0.0))
    assert sentence in str(refused.value) and str(refused.value).startswith("r:1: ")


def test_a_weigher_that_counts_wrong() -> None:
    @dataclass(frozen=True)
    class Short(Watching):
        def weights(self, answer: AnswerText, row: Mapping[str, Any]) -> np.ndarray:
            return np.ones(2)

    with pytest.raises(RowError, match=r"Short.weights gave an array of the shape \(2,\) for 5 tokens"):
        letters("abcd", [], weigher=Short())


def test_a_pre_tokenised_row_has_no_text() -> None:
    row = {"chosen_input_ids": [9, 8, 12], "chosen_labels": [-100, -100, 12]}
    with pytest.raises(RowError, match="has no text whose tokens could be weighed: set token_weights=none"):
        built(row)


# ---- the rank of ids


def pieces() -> PreTrainedTokenizerFast:
    """Brackets, numbers and `>` are tokens; the space before a word is its own, as byte-level vocabularies have it."""
    words = ["<|im_end|>", "[", " [", "]", " >", *map(str, range(100))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|im_end|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\[|\]| >|[0-9]+"), behavior="isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


RANKS = [1 + 1 / math.log2(rank + 1) for rank in (1, 2, 3)]


def ranked(weigher: Rank, answer: str = "[3] > [1] > [2]") -> list[float]:
    return (
        built({"prompt": "[7]", "chosen": answer}, weigher=weigher, tokenizer=pieces())
        .answers[0]
        .weights.tolist()
    )


def test_rank_of_digits() -> None:
    """2 for the 3, 1.63 for the 1, 1.5 for the 2; α for the rest and the end."""
    a, (first, second, third) = 0.5, RANKS
    assert ranked(Rank(alpha=a)) == [a, first, a, a, a, second, a, a, a, third, a, a]


def test_rank_with_brackets() -> None:
    first, second, third = RANKS
    found = ranked(Rank(id=r"\[\d+\]"))
    assert found == [*[first] * 3, 1, *[second] * 3, 1, *[third] * 3, 1]


def test_ranks_weights() -> None:
    """At ranks 1, 2, 3, 10 and 100, and their mean over 100."""
    answer = " > ".join(f"[{i}]" for i in range(100))
    weights = [weight for weight in ranked(Rank(alpha=0.0), answer) if weight]
    expected = [2, 1.63092975, 1.5, 1.28906483, 1.15019048]
    assert [weights[rank - 1] for rank in (1, 2, 3, 10, 100)] == pytest.approx(expected, abs=1e-8)
    assert np.mean(weights) == pytest.approx(1.20938671, abs=1e-8)


@pytest.mark.parametrize(
    ("weigher", "sentence"),
    [
        (Rank(id="(["), r"token_weights\.id=\(\[ is no regular expression"),
        (Rank(alpha=-1.0), r"token_weights\.alpha=-1 must be a number from 0 on"),
        (Spans(default=math.inf), r"token_weights\.default=inf must be a number from 0 on"),
    ],
)
def test_keys_out_of_range(weigher, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        weigher.check()


# ---- stored, read again, and in a loss


def test_stored_rows_keep_them() -> None:
    example = built({"prompt": "Why?", "chosen": "abcd", "spans": [[0, 2, 0.1]]})
    again = to_example(to_row(example))
    assert again.answers[0].weights.tolist() == [0.1, 0.1, 1, 1, 1]
    bare = replace(example, answers=tuple(replace(one, weights=None) for one in example.answers))
    assert to_example(to_row(bare)).answers[0].weights is None
    assert to_row(bare)["row_hash"] != to_row(example)["row_hash"]


def rows_of(path: Path) -> Path:
    rows = [
        {"prompt": f"w1{i} w20", "chosen": "w30 w31 w32", "spans": [[4, 7, i + 2.0]], "id": i}
        for i in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_is_read_anew_for_another_weigher(tmp_path: Path) -> None:
    settings = DataSettings(path=str(rows_of(tmp_path / "rows.jsonl")), eval_size=0)

    def load(weigher: Weigher | None) -> Any:
        return load_preference_data(
            settings, tiny_tokenizer(), positions=PositionSettings(), seed=0, weigher=weigher
        ).train

    found = [to_example(row).answers[0].weights.tolist() for row in load(Spans())]
    assert found == [[1, i + 2, 1, 1] for i in range(3)]
    assert load(Spans())[0]["unread"] == ""
    other = [to_example(row).answers[0].weights.tolist() for row in load(Spans(default=0.5))]
    assert other == [[0.5, i + 2, 0.5, 1] for i in range(3)]
    assert to_example(load(None)[0]).answers[0].weights is None


def test_the_trainers_loss_reads_them(tmp_path: Path) -> None:
    """The weighted mean of TL-Training, from a file of rows to the trainer's loss."""
    model = tiny_model(initializer_range=0.1)
    rows = [json.loads(line) for line in rows_of(tmp_path / "rows.jsonl").read_text().splitlines()]
    trainer = PreferenceTrainer(
        model,
        TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, remove_unused_columns=False),
        method=align.method("weighted_sft", token_weights=Spans()),
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
    )
    inputs = trainer.data_collator([(trainer.train_dataset[i], True) for i in range(3)])
    losses, _ = trainer.prompt_losses(trainer.model, inputs)
    examples = [to_example(row) for row in trainer.train_dataset]
    for i, example in enumerate(examples):
        alone = [replace(example.answers[0], scored=np.arange(4) == k, weights=None) for k in range(4)]
        tokens = torch.stack(
            [pair_logps(model, pack([replace(example, answers=(one,))])).chosen[0] for one in alone]
        )
        weights = torch.tensor([1, i + 2.0, 1, 1], dtype=torch.float64)
        expected = -(weights * tokens).sum() / weights.sum()
        torch.testing.assert_close(losses[i], expected, rtol=1e-6, atol=1e-7)
    assert model.config._attn_implementation == ATTENTION


def test_a_loss_that_reads_no_weights_is_told_so() -> None:
    with pytest.raises(UserError, match="method=dpo does not read weights of tokens: set token_weights=none"):
        align.method("dpo", token_weights=Rank())
    with pytest.raises(UserError, match="alpha=-1"):
        align.method("full_ranking", token_weights=Rank(alpha=-1.0))


def test_a_method_without_the_weights_that_it_reads_says_so() -> None:
    assert unweighted_words(align.method("weighted_sft", token_weights=Rank())) == []
    assert unweighted_words(align.method("dpo")) == []
    (sentence,) = unweighted_words(align.method("full_ranking"))
    assert (
        sentence
        == "method=full_ranking reads weights of tokens, and with token_weights=none each of them weighs 1."
    )
