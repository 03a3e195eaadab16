"""Rows as LongReward, LongDPO and LongWriter-6k released them, made by hand with their columns, read as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from align.core.errors import UserError
from align.data.dataset import load_preference_data, to_example
from align.data.formats import parse_row
from align.data.settings import DataSettings, PositionSettings
from align.data.sources import RawRow, open_sources
from tests.data.helpers import byte_tokenizer, write_lines

# LongReward-10k, splits dpo_glm4_9b and dpo_llama3.1_8b, as its batch_inference/3_get_pairs.py writes them.
LONGREWARD = {
    "idx": 11,
    "context": "The river rises in the hills. It ends in a lake.",
    "query": "Where does the river end?",
    "win_response": "It ends in a lake.",
    "lose_response": "It ends in the sea.",
}
# The same data set's split sft.
LONGREWARD_SFT = {
    "idx": 11,
    "query": "Where does the river end?",
    "answer": "It ends in a lake.",
    "context": "The river rises in the hills. It ends in a lake.",
}
# LongDPO, as its MCTS/refine.py and filter.py read and write them: a step of a text whose beginning is given.
LONGDPO = {
    "instruction": "[INST]Write a story of 2000 words.[/INST]Once there was a ship.\n\n",
    "chosen": "Its captain was old.",
    "rejected": "Ship ship ship.",
    "group_id": 3,
    "depth": 1,
}
# LongWriter-6k, as its train/pre_tokenize_llama3.py reads it.
LONGWRITER = {
    "messages": [
        {"role": "user", "content": "Write a 10000-word novel."},
        {"role": "assistant", "content": "Chapter 1. It rained."},
    ]
}


def parse(values: dict[str, Any], **options: Any):
    return parse_row(RawRow(0, "data.jsonl:1", values), **options).example


def test_longreward_pairs() -> None:
    example = parse(LONGREWARD, require_rejected=True)
    (turn,) = example.turns
    assert example.chunks == (LONGREWARD["context"],)
    assert turn.question == "Where does the river end?"
    assert (turn.chosen, turn.rejected) == ("It ends in a lake.", ("It ends in the sea.",))


def test_longreward_sft_rows() -> None:
    (turn,) = parse(LONGREWARD_SFT).turns
    assert (turn.chosen, turn.rejected) == ("It ends in a lake.", ())
    with pytest.raises(UserError, match=r"data\.jsonl:1: no rejected answer"):
        parse(LONGREWARD_SFT, require_rejected=True)


def test_longdpo_steps_keep_their_markers_and_their_beginning() -> None:
    """The prompt is the text as it stands; a string prompt never goes through a chat template by itself."""
    example = parse(LONGDPO, require_rejected=True)
    assert example.text == LONGDPO["instruction"]
    assert (example.turns[0].chosen, example.turns[0].rejected) == (
        "Its captain was old.",
        ("Ship ship ship.",),
    )


def test_longwriter_messages() -> None:
    example = parse(LONGWRITER)
    assert [message["content"] for message in example.messages] == ["Write a 10000-word novel."]
    assert example.turns[0].chosen == "Chapter 1. It rained."


@pytest.mark.parametrize(
    ("row", "changes", "sentence"),
    [
        (LONGREWARD, {"lose_response": None}, "column lose_response is missing beside win_response"),
        (
            LONGREWARD,
            {"win_response": None},
            "column win_response or answer is missing",
        ),
        (LONGREWARD, {"query": None}, "column query is missing"),
        (LONGREWARD, {"query": 7}, "column query must be a string, not int"),
        (LONGREWARD, {"win_response": " "}, "column win_response has an empty answer"),
        (
            LONGREWARD,
            {"lose_response": 1},
            "column lose_response must hold an answer as a string or messages",
        ),
        (LONGREWARD, {"context": 1}, "column context must be a string or a list of strings, not int"),
        (LONGDPO, {"chosen": None}, "column chosen or output or completion is missing"),
        (LONGDPO, {"instruction": ["x"]}, "column instruction must be a string, not list"),
        (LONGDPO, {"rejected": None}, "no rejected answer: preference methods need one"),
        (LONGDPO, {"rejected": LONGDPO["chosen"]}, "every rejected answer equals the chosen one"),
        (
            LONGDPO,
            {"input": "more"},
            "column input beside an instruction with a chat template's markers is not read",
        ),
        (LONGWRITER, {"messages": "text"}, "column messages must be a list of messages"),
        (LONGWRITER, {"messages": [{"role": "user", "content": "Write."}]}, "holds no assistant's message"),
        (LONGWRITER, {"messages": [{"role": "user", "text": "Write."}]}, "content is no string"),
    ],
)
def test_a_column_that_is_off_is_named(row: dict[str, Any], changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^data.jsonl:1: .*{sentence}"):
        parse(row | changes, require_rejected=row is not LONGWRITER)


@pytest.mark.parametrize("row", [LONGREWARD, LONGREWARD_SFT, LONGDPO, LONGWRITER])
def test_they_reach_tokens(row: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file to token rows; the prompt's last words and the answer are what the row says."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    tokenizer = byte_tokenizer()
    path = write_lines(tmp_path / "rows.jsonl", row, row | {"idx": 12})
    settings = DataSettings(path=path, eval_size=0)
    data = load_preference_data(settings, tokenizer, positions=PositionSettings(), seed=0)
    example = to_example(data.train[0])
    answer = row.get("win_response") or row.get("answer") or row.get("chosen") or "Chapter 1. It rained."
    assert tokenizer.decode(example.answers[0].input_ids).startswith(answer)
    asked = row.get("query") or row.get("instruction") or "Write a 10000-word novel."
    assert asked in tokenizer.decode(example.prompt_ids)


# ---- data sets whose splits have names of their own


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """As LongReward-10k: three splits, none called train."""
    parts = {"sft": [LONGREWARD_SFT], "dpo_glm4_9b": [LONGREWARD], "dpo_llama3.1_8b": [LONGREWARD] * 2}
    DatasetDict({name: Dataset.from_list(rows) for name, rows in parts.items()}).save_to_disk(tmp_path / "lr")
    return tmp_path / "lr"


def test_a_split_is_named_behind_a_colon(splits: Path) -> None:
    sources = open_sources(f"{splits}:dpo_llama3.1_8b")
    assert [source.count() for source in sources.train] == [2]
    assert sources.held_out == ()


def test_wrong_splits_are_named(splits: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none is called train: name one, data\.path=lr:SPLIT"):
        open_sources(str(splits))
    with pytest.raises(UserError, match="no split dpo; the data set has: sft, dpo_glm4_9b, dpo_llama3"):
        open_sources(f"{splits}:dpo")
    with pytest.raises(UserError, match="is no saved data set"):
        open_sources(f"{tmp_path}:train")
    Dataset.from_list([LONGREWARD]).save_to_disk(tmp_path / "one")
    with pytest.raises(UserError, match="no split train; the data set has: none"):
        open_sources(f"{tmp_path / 'one'}:train")
