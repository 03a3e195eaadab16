"""What is said of rows before anything trains: cuts of short contexts, held-out rows in no set, templates not used."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from align.core.errors import AlignWarning
from align.data import build
from align.data.build import cache_key
from align.data.checks import check_rows
from align.data.dataset import PreferenceData, load_preference_data
from align.data.notices import notices
from align.data.settings import DataSettings, MixedSettings, PositionSettings
from align.data.sources import open_sources
from tests.data.helpers import byte_tokenizer, write_lines

TEXT = {"prompt": "p", "chosen": "a", "rejected": "b"}
CHAT = {"prompt": [{"role": "user", "content": "p"}], "chosen": "a", "rejected": "b"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


def load(path: str | Path, tokenizer: Any = None, **settings: Any) -> PreferenceData:
    return load_preference_data(
        DataSettings(**({"path": str(path), "eval_size": 0} | settings)),
        byte_tokenizer() if tokenizer is None else tokenizer,
        positions=PositionSettings(),
        seed=0,
    )


def said(data: PreferenceData) -> list[str]:
    return notices(data, window=None)


# ---- cuts of short contexts


def test_cuts_of_short_contexts_are_counted_said_and_found(tmp_path: Path) -> None:
    """The long context fits, the short one has 200 characters."""
    row = {"context": "c", "question": "q", "chosen": "a", "rejected": "b"}
    several = {"context": "c", "questions": ["q", "r"], "chosens": ["a", "b"], "rejecteds": ["c", "d"]}
    rows = [row | {"short_prompt": "s" * 200}, several | {"short_prompts": ["s", "t" * 100]}, row]
    data = load(write_lines(tmp_path / "rows.jsonl", *rows), max_length=90)
    cuts = [list(map(int, stored["short_cut_tokens"])) for stored in data.train]
    first, (_, second) = cuts[0], cuts[1]
    assert first[0] > 0 and cuts[1][0] == 0 and second > 0 and not cuts[2]
    assert data.counts["cut_rows"] == 0
    assert (data.counts["short_cut_rows"], data.counts["short_cut_tokens"]) == (2, first[0] + second)
    sentence = (
        f"The short contexts of 2 of 3 rows are cut to data.max_length: {first[0] + second} tokens are gone."
    )
    assert sentence in said(data)
    found = [one.message for one in check_rows(data, window=90) if one.kind == "over the window"]
    assert len(found) == 2
    assert found[0].startswith(
        "rows.jsonl:1: with its short context it has more tokens than the model's window 90"
    )


# ---- held-out rows that no set has


def test_held_out_rows_in_no_set_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    write_lines(folder / "train.jsonl", TEXT)
    write_lines(folder / "test.jsonl", TEXT)
    other = write_lines(tmp_path / "other.jsonl", TEXT | {"prompt": "q"})
    with pytest.warns(
        AlignWarning, match=r"^data\.path=.*rows: test\.jsonl is in no set, since data\.eval_path"
    ):
        load(folder, eval_path=other)
    with pytest.warns(AlignWarning, match=r"^data\.eval_path=.*rows: test\.jsonl is in no set"):
        load(other, eval_path=str(folder))
    with pytest.warns(
        AlignWarning, match=r"^data\.mix\[0\]\.path=.*rows: test\.jsonl is in no set, since only"
    ):
        load(other, mix=[MixedSettings(str(folder), 1.0)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", AlignWarning)
        load(folder)
        load(folder, eval_path=str(folder / "test.jsonl"))
        load(other, eval_path=str(folder / "test.jsonl"), mix=[MixedSettings(str(folder), 1.0)])


def test_all_held_out_splits_are_held_out(tmp_path: Path) -> None:
    """As of a folder's files: with test and validation, validation was in no set."""
    names = ("train", "test", "validation", "extra")
    splits = {name: Dataset.from_list([TEXT | {"prompt": name}]) for name in names}
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    data = load(tmp_path / "saved")
    assert data.eval is not None
    assert list(data.eval["source"]) == ["saved/test:1", "saved/validation:1"]


# ---- files of one name


def test_duplicates_in_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "rows" / name).mkdir(parents=True)
        write_lines(tmp_path / "rows" / name / "rows.jsonl", TEXT)
    data = load(tmp_path / "rows")
    assert list(data.train["source"]) == ["a/rows.jsonl:1", "b/rows.jsonl:1"]
    messages = [one.message for one in check_rows(data, window=None) if one.kind == "duplicate row"]
    assert messages == ["b/rows.jsonl:1: the same prompt and answers as a/rows.jsonl:1."]
    assert list(load(tmp_path / "rows" / "a").train["source"]) == ["rows.jsonl:1"]


# ---- templates that are not used


def test_settings_of_a_template_that_string_prompts_do_not_use_are_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", CHAT, TEXT, TEXT)
    assert said(load(path)) == []
    settings = {"system": "s", "template_kwargs": {"a": 1}, "thinking": "close"}
    (sentence,) = said(load(path, **settings))
    assert sentence == (
        "2 string prompts (the first is rows.jsonl:2) stand as they are, without the chat template, so that "
        "data.system, data.template_kwargs, data.thinking changes nothing there; data.chat=always makes each a user's "
        "message."
    )
    assert said(load(path, **settings, chat="always")) == []
    assert said(load(write_lines(tmp_path / "chat.jsonl", CHAT), **settings)) == []


def test_messages_without_a_chat_template_are_said(tmp_path: Path) -> None:
    over = {"context": "c", "question": "q", "chosen": "a", "rejected": "b"}
    path = write_lines(tmp_path / "rows.jsonl", TEXT, CHAT, over)
    bare = byte_tokenizer(None)
    (sentence,) = said(load(path, bare))
    assert sentence.startswith(
        "The tokenizer has no chat template: the messages of 2 rows (the first is rows.jsonl:2)"
    )
    (text, joined) = said(load(path, chat="never", thinking="drop", system="s"))
    assert "so that data.system, data.thinking changes nothing there" in text
    assert joined.startswith("The messages of 2 rows (the first is rows.jsonl:2) are written without")
    assert joined.endswith("so that data.thinking changes nothing there.")
    assert said(load(path, bare, chat="never")) == said(load(path)) == []
    assert said(load(write_lines(tmp_path / "text.jsonl", TEXT), bare)) == []


# ---- the cache


@pytest.mark.parametrize("library", ["tokenizers", "transformers", "jinja2"])
def test_another_version_of_a_library_is_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    path = write_lines(tmp_path / "rows.jsonl", TEXT)

    def key() -> str:
        sources = open_sources(path).train
        return cache_key(
            sources, DataSettings(path=path), byte_tokenizer(), positions=PositionSettings(), seed=0
        )

    before, version = key(), build.version
    assert key() == before
    monkeypatch.setattr(build, "version", lambda name: "0.0.1" if name == library else version(name))
    assert key() != before
