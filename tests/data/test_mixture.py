"""`data.mix`: how many rows of each place, which ones, the same every time, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from align.core.config import typed
from align.core.errors import UserError
from align.data.dataset import PreferenceData, load_preference_data
from align.data.mixture import Ingredient
from align.data.settings import DataSettings, MixedSettings, PositionSettings
from tests.data.helpers import byte_tokenizer, write_lines

LONG, GENERAL, OTHER = 12, 30, 5


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    return {
        name: write_lines(
            tmp_path / f"{name}.jsonl",
            *({"prompt": f"{name} {i}", "chosen": "yes" * (i + 1), "rejected": "no"} for i in range(count)),
        )
        for name, count in (("long", LONG), ("general", GENERAL), ("other", OTHER))
    }


def load(files: dict[str, str], *mixed: tuple[str, float], seed: int = 0, **settings) -> PreferenceData:
    entries = [MixedSettings(files.get(name, name), ratio) for name, ratio in mixed]
    return load_preference_data(
        DataSettings(path=files["long"], mix=entries, **({"eval_size": 2} | settings)),
        byte_tokenizer(),
        positions=PositionSettings(),
        seed=seed,
    )


def names(data: PreferenceData) -> list[str]:
    return list(data.train["source"][:])


def test_ratios_count_rows_for_each_training_row(files) -> None:
    """12 rows, two held out: 10 to train on; 2.0 of `general` are 20, 0.35 of `other` are 4 (3.5 to even)."""
    data = load(files, ("general", 2.0), ("other", 0.35))
    found = names(data)
    assert [sum(name.startswith(part) for name in found) for part in ("long", "general", "other")] == [
        10,
        20,
        4,
    ]
    assert data.ingredients == (
        Ingredient(files["long"], 10, 10),
        Ingredient(files["general"], 20, GENERAL),
        Ingredient(files["other"], 4, OTHER),
    )
    assert len(set(found)) == len(found)
    assert data.eval is not None and all(name.startswith("long") for name in data.eval["source"][:])
    assert data.counts["train_rows"] == 34 and data.counts["eval_rows"] == 2


def test_without_a_mix_nothing_changes(files) -> None:
    assert load(files).ingredients == ()


def test_the_draw_follows_from_the_seed(files) -> None:
    """Again the same rows; another seed draws others; another entry of the list changes nothing before it."""
    one = names(load(files, ("general", 1.0), ("other", 0.3)))
    assert names(load(files, ("general", 1.0), ("other", 0.3))) == one
    assert names(load(files, ("general", 1.0)))[10:] == one[10:20]
    assert set(names(load(files, ("general", 1.0), seed=1))) != set(names(load(files, ("general", 1.0))))


def test_held_out_rows_of_their_own_stay_out_of_the_mix(files) -> None:
    data = load(files, ("general", 1.0), eval_path=files["other"])
    assert data.eval is not None
    assert (len(data.train), len(data.eval)) == (LONG * 2, OTHER)


@pytest.mark.parametrize(
    ("mixed", "sentence"),
    [
        (
            ("general", 4.0),
            r"data\.mix\[0\]\.ratio=4 .*asks for 40 rows of .*general\.jsonl, which holds 30: set 3 ",
        ),
        (("general", 0.01), r"data\.mix\[0\]\.ratio=0\.01 .*asks for 0 rows .*set at least 0\.1"),
        (("nowhere.jsonl", 1.0), r"data\.mix\[0\]\.path=nowhere\.jsonl does not exist"),
        (("general", 0.0), r"data\.mix\[0\]\.ratio=0 must be a number above 0"),
        (("general", float("nan")), r"data\.mix\[0\]\.ratio=nan must be a number above 0"),
    ],
)
def test_what_cannot_be_mixed_is_named(files, mixed, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        load(files, mixed)


def test_the_ratio_that_the_message_names_works(files) -> None:
    data = load(files, ("other", 0.5))
    assert data.ingredients[1].rows == OTHER
    with pytest.raises(UserError, match=r"holds 5: set 0\.5 or less"):
        load(files, ("other", 0.7))


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"path": "a.jsonl"}, r"data\.mix\[0\]\.ratio is not set"),
        (
            {"path": "a.jsonl", "ratio": "many"},
            r"data\.mix\[0\]\.ratio=many has the wrong type: it takes a number",
        ),
        ({"path": "a.jsonl", "ratio": 1, "weight": 2}, r"data\.mix\[…\]\.weight is unknown"),
    ],
)
def test_the_settings_are_typed(entry, sentence) -> None:
    config = OmegaConf.create({"data": {"mix": [entry]}})
    with pytest.raises(UserError, match=sentence):
        typed(DataSettings, config, "data")
    fine = typed(DataSettings, OmegaConf.create({"data": {"mix": [{"path": "a", "ratio": 2}]}}), "data")
    assert fine.mix == [MixedSettings("a", 2.0)]
