"""Storage, cache, held-out split, positions and the collator."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from align.core.errors import UserError
from align.data.build import cache_key
from align.data.dataset import (
    DataSettings,
    PositionSettings,
    PreferenceData,
    load_preference_data,
    split_held_out,
    to_example,
    to_row,
)
from align.data.examples import TokenizedExample
from align.data.formats import read_examples
from align.data.placements.logo import Logo
from align.data.placements.randomised import Randomised
from align.data.placements.skip import Skip
from align.data.position_settings import read_positions
from align.data.row_builder import Demands
from align.data.sources import open_sources
from align.data.tokens import ExampleTokenizer
from align.longseq.shared_prefix import pack
from align.training.collate import Collator
from tests.data.helpers import byte_tokenizer, write_lines
from tests.data.test_released import logo_row

NONE = PositionSettings()
LOGO = PositionSettings(Logo(target_length=200), chunk_tokens=4)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


def row(i: int, **columns: Any) -> dict[str, Any]:
    return {"context": [f"c{i}", "dd"], "question": "q?", "chosen": "yes", "rejected": ["no", "n"]} | columns


def load(path: str, positions: PositionSettings = NONE, *, seed: int = 0, **settings: Any) -> PreferenceData:
    return load_preference_data(
        DataSettings(path=path, **settings), byte_tokenizer(), positions=positions, seed=seed
    )


def same(a: TokenizedExample, b: TokenizedExample) -> bool:
    arrays = [(a.prompt_ids, b.prompt_ids), (a.position_ids, b.position_ids)]
    for left, right in zip(a.answers, b.answers, strict=True):
        arrays += [(left.input_ids, right.input_ids), (left.scored, right.scored)]
    plain = (a.source, a.chunk_spans, a.cut_tokens) == (b.source, b.chunk_spans, b.cut_tokens)
    shorts = all(same(x, y) for x, y in zip(a.short, b.short, strict=True))
    return plain and shorts and all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in arrays)


def test_what_is_stored_is_what_was_tokenised(tmp_path: Path) -> None:
    turns = {"questions": ["q", "r"], "chosens": ["a", "bb"], "rejecteds": [["c", "d"], ["e", "f"]]}
    rows = [row(0), row(1, short_prompt="c"), {"context": "long " * 9, **turns, "short_prompts": ["s", "tt"]}]
    path = write_lines(tmp_path / "rows.jsonl", *rows, {"prompt": "p", "completion": "a"})
    settings = DataSettings(path=path, max_length=60, eval_size=0)
    tokenize = ExampleTokenizer(byte_tokenizer(), settings, chunk_tokens=512)
    data = load_preference_data(settings, byte_tokenizer(), positions=NONE, seed=0)
    assert data.eval is None
    for example, stored in zip(read_examples(path), data.train, strict=True):
        assert same(tokenize(example), to_example(stored))
        assert same(tokenize(example), to_example(to_row(tokenize(example))))
    assert isinstance(data.train[0]["prompt_ids"], np.ndarray)


def test_counts(tmp_path: Path) -> None:
    """Plain text rows of 10 prompt tokens and answers of 4 and 3 (with end): 17 shared, 2 · 14 padded. The
    second has a third answer of 2: 19 and 3 · 14, and its fourth equals the chosen one."""
    rows = [
        {"prompt": "0123456789", "chosen": "yes", "rejected": "no"},
        {"prompt": "9876543210", "chosen": "yes", "rejected": ["no", "n", "yes"]},
    ]
    data = load(write_lines(tmp_path / "rows.jsonl", *rows), eval_size=1)
    assert data.counts == {
        "rows": 2,
        "train_rows": 1,
        "eval_rows": 1,
        "tokens": 17 + 19,
        "padded_tokens": 28 + 42,
        "longest_sequence": 14,
        "largest_position": 13,
        "cut_rows": 0,
        "cut_tokens": 0,
        "short_cut_rows": 0,
        "short_cut_tokens": 0,
        "dropped_rejected": 1,
        "dropped_reasoning": 0,
        "dropped_messages": 0,
        "rendered_prompts": 0,
        "moved_spaces": 0,
        "text_prompts": 2,
        "joined_rows": 0,
        "inferred_prompts": 0,
        "dropped_rows": 0,
        "unplaced_rows": 0,
        "documents": 0,
        "cut_documents": 0,
        "cut_unrelated": 0,
        "pieces": 0,
        "piece_tokens": 0,
        "rows_of_pieces": 0,
        "tokens_in_pieces": 0,
    }
    cut = load(write_lines(tmp_path / "rows.jsonl", *rows), eval_size=1, max_length=12, keep_tail=4).counts
    assert (cut["cut_rows"], cut["cut_tokens"], cut["longest_sequence"]) == (2, 4, 12)


def test_rows_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", *(row(i) for i in range(7)))
    one, two = load(path, LOGO, eval_size=0).train, load(path, LOGO, eval_size=0, num_proc=2).train
    again = load_preference_data(
        DataSettings(path=path, eval_size=0, num_proc=2, keep_tail=127),  # another key, so it is built again
        byte_tokenizer(),
        positions=LOGO,
        seed=0,
    ).train
    for other in (two, again):
        assert all(same(to_example(a), to_example(b)) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_bad_row_is_named_from_any_process(tmp_path: Path, num_proc: int) -> None:
    rows = [row(i) for i in range(5)]
    path = write_lines(tmp_path / "rows.jsonl", *rows, {"prompt": "p", "rejected": "b"})
    with pytest.raises(
        UserError, match=r"^rows\.jsonl:6: column chosen or completion is missing \(align inspect"
    ):
        load(path, num_proc=num_proc)


def test_positions_are_drawn_from_seed_and_row(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", *(row(7) for _ in range(6)))
    first, second, other = (load(path, LOGO, seed=seed, eval_size=0).train for seed in (1, 1, 2))
    positions = [to_example(stored).position_ids.tolist() for stored in first]
    assert positions == [to_example(stored).position_ids.tolist() for stored in second]
    assert positions != [to_example(stored).position_ids.tolist() for stored in other]
    assert len({tuple(line) for line in positions}) > 1  # equal texts, rows of their own
    for stored in first:
        example = to_example(stored)
        assert (np.diff(example.position_ids) > 0).all()
        assert stored["largest_position"] == 199


def test_a_second_start_tokenises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "rows.jsonl", *(row(i) for i in range(4)))
    first = load(path)

    def fail(*_: object) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(ExampleTokenizer, "__call__", fail)
    again = load(path, tokens_per_row=64)
    assert list(again.train["source"]) == list(first.train["source"])


def test_the_cache_key_covers_all_that_changes_a_row(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", row(0))
    tokenizer = byte_tokenizer()

    def key(tokenizer=tokenizer, positions=LOGO, seed=0, require_rejected=False, **settings: Any) -> str:
        return cache_key(
            open_sources(path).train,
            DataSettings(path=path, **settings),
            tokenizer,
            positions=positions,
            seed=seed,
            demands=Demands(rejected=require_rejected),
        )

    base = key()
    assert base == key(tokenizer=byte_tokenizer(), num_proc=4, tokens_per_row=9, eval_size=0.5)
    tokenizer("used", truncation=True, max_length=4)
    assert base == key() == key(positions=replace(LOGO, redraw="epoch"))  # stored is the draw of epoch 0
    assert key(positions=NONE, seed=1) == key(positions=NONE, seed=2)
    other_word = byte_tokenizer()
    other_word.add_tokens(["word"])
    changed = [
        key(tokenizer=byte_tokenizer(None)),
        key(tokenizer=other_word),
        key(seed=1),
        key(require_rejected=True),
        key(positions=NONE),
        *(
            key(positions=replace(LOGO, placement=replace(LOGO.placement, **change)))
            for change in ({"target_length": 300}, {"draw": "uniform"}, {"sparse_share": 0.5})
        ),
        *(key(positions=PositionSettings(own, chunk_tokens=4)) for own in (Skip(200), Randomised(200))),
        *(key(**change) for change in ({"max_length": 50}, {"system": "s"}, {"keep_tail": 1}, {"limit": 1})),
        *(key(**change) for change in ({"cut": "end"}, {"chat": "never"}, {"chunk_separator": "\n"})),
        key(template="{question} {context}"),
    ]
    write_lines(tmp_path / "rows.jsonl", row(0), row(1))
    changed.append(key())
    assert len({base, *changed}) == len(changed) + 1


def hashed(*prompts: str) -> Dataset:
    return Dataset.from_dict({"prompt_hash": list(prompts), "i": list(range(len(prompts)))})


def test_held_out_rows_share_no_prompt_with_training() -> None:
    dataset = hashed(*(f"p{i // 3}" for i in range(60)))
    train, held = split_held_out(dataset, 0.1, seed=3)
    assert held is not None
    assert not set(train["prompt_hash"]) & set(held["prompt_hash"])
    assert sorted([*train["i"], *held["i"]]) == list(range(60))
    assert list(held["i"]) == sorted(held["i"]) and len(held) == 6  # two prompts of three rows
    again, other = split_held_out(dataset, 0.1, seed=3)[1], split_held_out(dataset, 0.1, seed=4)[1]
    assert again is not None and other is not None
    assert list(again["i"]) == list(held["i"]) != list(other["i"])


@pytest.mark.parametrize(("size", "expected"), [(0.001, 1), (0.5, 5), (1, 1), (3, 3)])
def test_held_out_size(size: float, expected: int) -> None:
    train, held = split_held_out(hashed(*map(str, range(10))), size, seed=0)
    assert held is not None and (len(train), len(held)) == (10 - expected, expected)


def test_held_out_needs_two_prompts() -> None:
    assert split_held_out(hashed("p", "p"), 0, seed=0)[1] is None
    with pytest.raises(UserError, match=r"data\.eval_size=0\.1 holds out all there is, 2 rows of 1 prompt "):
        split_held_out(hashed("p", "p"), 0.1, seed=0)


def test_held_out_rows_from_elsewhere(tmp_path: Path) -> None:
    train = write_lines(tmp_path / "train.jsonl", *(row(i) for i in range(3)))
    held = write_lines(tmp_path / "held.jsonl", row(8), row(9))
    data = load(train, eval_path=held)
    assert data.eval is not None
    assert (len(data.train), list(data.eval["source"])) == (3, ["held.jsonl:1", "held.jsonl:2"])
    splits = DatasetDict(
        train=Dataset.from_list([row(i) for i in range(3)]), test=Dataset.from_list([row(9)])
    )
    splits.save_to_disk(tmp_path / "saved")
    data = load(str(tmp_path / "saved"))
    assert data.eval is not None
    assert (len(data.train), list(data.eval["source"])) == (3, ["saved/test:1"])


def test_released_rows_go_through(tmp_path: Path) -> None:
    Dataset.from_list([logo_row(), logo_row()]).save_to_disk(tmp_path / "logo")
    data = load(str(tmp_path / "logo"), eval_size=0)
    example = to_example(data.train[0])
    assert example.position_ids.tolist() == [0, 4, 9] and len(example.answers) == 3
    with pytest.raises(UserError, match="logo:1: a pre-tokenised row has no marked context"):
        load(str(tmp_path / "logo"), LOGO)
    with pytest.raises(UserError, match=r"row of 6 tokens cannot be cut to data\.max_length=5"):
        load(str(tmp_path / "logo"), max_length=5)


def test_collator_packs_in_order(tmp_path: Path) -> None:
    data = load(write_lines(tmp_path / "rows.jsonl", *(row(i) for i in range(3))), eval_size=0)
    rows = [data.train[i] for i in range(3)]
    batch = Collator(tokens_per_row=80)(rows)["batch"]
    expected = pack([to_example(stored) for stored in rows], tokens_per_row=80)
    assert len(batch) == 3 and len(batch.rows) == len(expected.rows) > 1
    for ours, theirs in zip(batch.rows, expected.rows, strict=True):
        assert ours.layout == theirs.layout
        assert ours.input_ids.tolist() == theirs.input_ids.tolist()


def test_empty_data_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([]))
    (tmp_path / "blank.jsonl").write_text("\n\n")
    for name in ("rows.json", "blank.jsonl"):
        with pytest.raises(UserError, match=rf"^data\.path=.*{name} holds no rows\.$"):
            load(str(tmp_path / name))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"cut": "left"}, r"data\.cut=left is not known: use middle, end, start"),
        ({"chat": "yes"}, r"data\.chat=yes is not known"),
        ({"max_length": 0}, r"data\.max_length=0 is too small"),
        ({"num_proc": 0}, r"data\.num_proc=0 is too small"),
        ({"eval_size": -1}, r"data\.eval_size=-1 is negative"),
        ({"eval_size": 2.5}, r"data\.eval_size=2\.5 is neither"),
        ({"template": "{context}"}, r"must contain \{question\} exactly once"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        DataSettings(**settings)


def test_the_configuration_mirrors_the_dataclass() -> None:
    from omegaconf import OmegaConf

    folder = Path(__file__).parents[2] / "hydra_conf"
    data = OmegaConf.to_container(OmegaConf.load(folder / "data/default.yaml"))
    chosen = data.pop("defaults")  # of the files in data/order
    assert chosen == [{"order": "shuffled"}, "_self_"]
    assert data | {"order": None} == vars(DataSettings())
    positions = OmegaConf.create({"positions": OmegaConf.load(folder / "positions/none.yaml")})
    assert read_positions(positions) == PositionSettings()
