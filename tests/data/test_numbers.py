"""Numbers of a row on their way to the loss: read, refused in a sentence, stored, packed, and in the trainer's loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import TrainingArguments

from align.core.errors import UserError
from align.data.dataset import load_preference_data
from align.data.faults import RowError
from align.data.files import RawRow
from align.data.formats import parse_row
from align.data.numbers import Number, numbers_of
from align.data.row_builder import Demands, RowBuilder
from align.data.settings import DataSettings, PositionSettings
from align.data.stored_rows import to_example, to_row
from align.data.tokens import ExampleTokenizer
from align.longseq import pack
from align.training.collate import Collator
from align.training.method_settings import Needs
from align.training.methods import made_up_logps, named_method
from align.training.row_numbers import with_columns
from align.training.trainer import PreferenceTrainer
from align.training.whole_step import PromptByPrompt
from losses import LossOutput, PairLogps
from tests.longseq.plain import make_example
from tests.rows import words
from tests.tiny import tiny_model, tiny_tokenizer

ROW = {"prompt": "w8 w9", "chosen": "w10", "rejected": ["w11", "w12"]}
KINDS = {"aligned_logp": "prompt", "reward": "answer"}
GIVEN = {"aligned_logp": -1.5, "reward": [1, 0, 0.25]}
BATCH = 3


def read(row: dict, kinds: dict[str, str] = KINDS, places: dict[str, str] | None = None) -> list:
    found = parse_row(RawRow(0, "rows.jsonl:1", ROW | row), numbers=numbers_of(kinds, places))
    return found.numbers.tolist()


def test_a_number_for_the_prompt_and_one_for_each_answer() -> None:
    assert read(GIVEN) == [[-1.5, -1.5, -1.5], [1, 0, 0.25]]


def test_the_numbers_of_answers_that_are_left_out_go_with_them() -> None:
    """The first rejected answer equals the chosen one."""
    row = {"rejected": ["w10", "w12"], "reward": [1, 7, 0.25]}
    assert read(row, {"reward": "answer"}) == [[1, 0.25]]


@pytest.mark.parametrize("value", [True, 1, "1", "true", np.float32(1.0)])
def test_what_counts_as_one(value) -> None:
    assert read({"label": value}, {"label": "prompt"}) == [[1.0, 1.0, 1.0]]


def test_a_list_that_a_table_holds_as_text_and_nulls_at_its_end() -> None:
    assert read({"reward": "[1, 0, 0.5]"}, {"reward": "answer"}) == [[1, 0, 0.5]]
    assert read({"reward": [1, 0, 0.5, None]}, {"reward": "answer"}) == [[1, 0, 0.5]]


def test_dots_lead_into_a_column() -> None:
    selection = {"details": {"mean_logp": -2.0}}
    places = {"aligned_logp": "selection.details.mean_logp"}
    kinds = {"aligned_logp": "prompt"}
    for value in (selection, json.dumps(selection)):
        assert read({"selection": value}, kinds, places) == [[-2.0] * 3]
    assert read({"selection.details.mean_logp": -3}, kinds, places) == [[-3.0] * 3]
    assert read({"selection": selection}, {"selection.details.mean_logp": "prompt"}) == [[-2.0] * 3]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({}, "rows.jsonl:1: column aligned_logp, a number that the method reads, is missing"),
        ({"aligned_logp": None}, "is missing"),
        ({"aligned_logp": "low"}, "column aligned_logp must hold a number, not 'low'"),
        ({"aligned_logp": [1.0]}, "must hold a number, not"),
        ({"aligned_logp": float("nan")}, "holds nan, which is not finite"),
        ({"aligned_logp": "inf"}, "holds inf, which is not finite"),
        ({"aligned_logp": 0, "reward": [1, 0]}, "column reward has 2 numbers for 3 answers"),
        ({"aligned_logp": 0, "reward": [1, "x", 0]}, "column reward must hold a number for each answer"),
        ({"aligned_logp": 0, "reward": [1, None, 0]}, "column reward must hold a number for each answer"),
    ],
)
def test_what_is_no_number_is_refused_with_its_place(row, sentence) -> None:
    with pytest.raises(RowError, match=r"rows\.jsonl:1") as refused:
        read(row)
    assert sentence in str(refused.value)


def test_a_place_that_no_method_reads() -> None:
    with pytest.raises(UserError, match=r"data.numbers.rewad is no number that the method reads.*reward"):
        numbers_of(KINDS, {"rewad": "score"})
    assert numbers_of({"reward": "answer"}, {"reward": "score"}) == (Number("reward", "answer", "score"),)


def test_needs_are_checked() -> None:
    with pytest.raises(UserError, match=r"method.needs.columns.reward=row is unknown; choose one of prompt"):
        Needs("none", False, "none", columns={"reward": "row"})
    with pytest.raises(UserError, match="has to be a mapping"):
        Needs("none", False, "none", columns=["reward"])


def test_stored_rows_keep_them_and_their_hash() -> None:
    example = make_example(np.random.default_rng(0), prompt=5, answers=[2, 3])
    numbers = np.array([[0.1, -1e-300], [np.pi, 3.0]])
    row = to_row(replace(example, columns=numbers))
    np.testing.assert_array_equal(to_example(row).columns, numbers)
    assert to_example(to_row(example)).columns is None
    hashes = {
        to_row(one)["row_hash"]
        for one in (example, replace(example, columns=numbers), replace(example, columns=numbers * 2))
    }
    assert len(hashes) == 3


@pytest.mark.parametrize("tokens_per_row", [None, 1, 30])
def test_packed_rows_give_them_to_the_loss_bit_for_bit(tokens_per_row) -> None:
    """Rows of 3 and 2 answers, in one packed row or several, pinned or pickled; 0 for the absent answer."""
    rng = np.random.default_rng(0)
    examples = [
        replace(make_example(rng, prompt=6, answers=[2] * n), columns=rng.standard_normal((2, n)))
        for n in (3, 2)
    ]
    policy = PairLogps(*(torch.zeros(2),) * 4)
    batch = pack(examples, tokens_per_row=tokens_per_row)
    found = with_columns(policy, batch, KINDS).columns
    assert found["aligned_logp"].tolist() == [example.columns[0, 0] for example in examples]
    assert found["reward"].tolist() == [examples[0].columns[1].tolist(), [*examples[1].columns[1], 0.0]]
    assert found["reward"].dtype == torch.float64
    constructor, arguments = batch.__reduce__()
    again = with_columns(policy, constructor(*arguments), KINDS).columns
    assert torch.equal(again["reward"], found["reward"])


def test_pre_tokenised_rows_bring_theirs() -> None:
    """LOGO's released rows; the columns beside them are read as those of any row."""
    released = {
        f"{name}_{suffix}": values
        for name in ("chosen", "reject_1")
        for suffix, values in (("input_ids", [9, 8, 12, 3]), ("labels", [-100, -100, 12, 3]))
    }
    demands = Demands(numbers=numbers_of(KINDS, None))
    tokenize = ExampleTokenizer(tiny_tokenizer(), DataSettings(), chunk_tokens=8)
    build = RowBuilder(tokenize, PositionSettings(), 0, demands)
    (row,) = build(RawRow(0, "r:1", released | {"aligned_logp": -2, "reward": [1, 0]}))
    assert to_example(row).columns.tolist() == [[-2, -2], [1, 0]]
    assert row["unread"] == ""
    with pytest.raises(RowError, match=r"r:1: column aligned_logp, a number"):
        build(RawRow(0, "r:1", released))


def test_rows_with_and_without_numbers_are_not_packed_together() -> None:
    example = make_example(np.random.default_rng(0), prompt=5, answers=[2])
    with pytest.raises(ValueError, match="cannot be packed together"):
        pack([example, replace(example, columns=np.ones((1, 1)))])


def test_rows_that_were_tokenised_for_another_method() -> None:
    batch = pack([make_example(np.random.default_rng(0), prompt=5, answers=[2])])
    policy = PairLogps(*(torch.zeros(1),) * 4)
    assert with_columns(policy, batch, {}) is policy
    with pytest.raises(UserError, match="reads aligned_logp, reward of every row"):
        with_columns(policy, batch, KINDS)


def test_made_up_log_probs_have_them() -> None:
    policy, _ = made_up_logps(Needs("none", False, "none", columns=KINDS), prompts=2, rejected=3)
    assert policy.columns["aligned_logp"].shape == (2,)
    assert policy.columns["reward"].shape == (2, 4)


# ---- through files and the trainer


def weighted(policy: PairLogps, reference: PairLogps | None = None) -> LossOutput:
    """A loss that shows its numbers: Σ reward · log p + aligned_logp."""
    rewards = policy.columns["reward"]
    loss = policy.columns["aligned_logp"] - rewards[:, 0] * policy.chosen
    loss = loss - (rewards[:, 1:] * policy.rejected).sum(1)
    return LossOutput(loss, policy.chosen.detach(), policy.rejected.detach())


def rows_of(count: int) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {
            "prompt": [{"role": "user", "content": words(rng, 9)}],
            "chosen": [{"role": "assistant", "content": words(rng, 3)}],
            "rejected": [{"role": "assistant", "content": words(rng, 4)}],
            "selection": {"details": {"mean_logp": -float(i)}},
            "reward": [i + 0.5, -float(i)],
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_file_of_rows(tmp_path: Path, suffix: str) -> None:
    """The cache's key knows which numbers are read; a table's columns are read for them alone."""
    path = tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(4)))
    else:
        pq.write_table(pa.Table.from_pylist(rows_of(4)), path)
    settings = DataSettings(
        path=str(path), eval_size=0, numbers={"aligned_logp": "selection.details.mean_logp"}
    )

    def load(settings: DataSettings, columns: dict[str, str] | None):
        return load_preference_data(
            settings, tiny_tokenizer(), positions=PositionSettings(), seed=0, columns=columns
        ).train

    found = [to_example(row).columns.tolist() for row in load(settings, KINDS)]
    assert found == [[[-float(i)] * 2, [i + 0.5, -float(i)]] for i in range(4)]
    without = load(DataSettings(path=str(path), eval_size=0), None)
    assert to_example(without[0]).columns is None
    assert "reward" not in json.loads(load(settings, KINDS)[0]["unread"] or "[]")


def test_the_trainers_loss_reads_them(tmp_path: Path) -> None:
    method = named_method(weighted, needs={"columns": {"reward": "answer", "aligned_logp": "prompt"}})
    rows = rows_of(BATCH)
    for row in rows:
        row["aligned_logp"] = row.pop("selection")["details"]["mean_logp"]
    trainer = PreferenceTrainer(
        tiny_model(),
        TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, remove_unused_columns=False),
        method=method,
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
    )
    inputs = trainer.data_collator([(trainer.train_dataset[i], True) for i in range(BATCH)])
    losses, _ = trainer.prompt_losses(trainer.model, inputs)
    plain = named_method(lambda policy, reference: LossOutput(policy.chosen, policy.chosen, policy.rejected))
    trainer.method, trainer.step = plain, PromptByPrompt(plain)
    chosen, metrics = trainer.prompt_losses(trainer.model, inputs)
    rejected = metrics[:, -1]
    i = torch.arange(BATCH)
    torch.testing.assert_close(losses, -i - (i + 0.5) * chosen + i * rejected, rtol=1e-9, atol=1e-9)


def test_placeholders_are_collated_too() -> None:
    example = make_example(np.random.default_rng(0), prompt=5, answers=[2, 2])
    row = to_row(replace(example, columns=np.ones((1, 2))))
    batch = Collator()([row, row])["batch"]
    assert batch.rows[0].columns.shape == (2, 1, 2)


def test_a_loss_without_its_number_is_refused() -> None:
    with pytest.raises(UserError, match="its loss and its settings do not fit"):
        named_method(weighted)


def test_nothing_is_read_where_nothing_is_declared() -> None:
    assert parse_row(RawRow(0, "rows.jsonl:1", ROW | GIVEN)).numbers is None
    batch = pack([make_example(np.random.default_rng(0), prompt=5, answers=[2, 2])])
    assert batch.rows[0].columns.numel() == 0
