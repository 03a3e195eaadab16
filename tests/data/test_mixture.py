"""`data.mix`: how many rows of each place, which ones, the same every time, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from omegaconf import OmegaConf

from align.core.config import typed
from align.core.errors import UserError
from align.data.dataset import PreferenceData, load_preference_data
from align.data.mixture import Ingredient, mix, mixture_words
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


def tokens(data: PreferenceData, part: str) -> int:
    """Tokens of the training rows whose file's name begins so."""
    return int(sum(row["num_tokens"] for row in data.train if row["source"].startswith(part)))


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
        Ingredient(files["long"], 10, 10, tokens(data, "long")),
        Ingredient(files["general"], 20, GENERAL, tokens(data, "general")),
        Ingredient(files["other"], 4, OTHER, tokens(data, "other")),
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
        ({"path": "a.jsonl"}, r"data\.mix\[0\] \(a\.jsonl\) takes either a ratio, .* and has neither"),
        ({"path": "a.jsonl", "ratio": 1, "share": 0.1}, r"data\.mix\[0\] .* and has both"),
        ({"path": "a.jsonl", "share": 1.0}, r"data\.mix\[0\]\.share=1 must lie between 0 and 1"),
        ({"path": "a.jsonl", "share": float("nan")}, r"data\.mix\[0\]\.share=nan must lie"),
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


def test_ratios_and_shares_do_not_stand_side_by_side() -> None:
    mix = [{"path": "a", "share": 0.5}, {"path": "b", "ratio": 1}]
    with pytest.raises(UserError, match=r"data\.mix has entries with a ratio and others with a share"):
        typed(DataSettings, OmegaConf.create({"data": {"mix": mix}}), "data")
    mix = [{"path": "a", "share": 0.5}, {"path": "b", "share": 0.5}]
    with pytest.raises(UserError, match=r"the shares of data\.mix sum to 1 and leave nothing to data\.path"):
        typed(DataSettings, OmegaConf.create({"data": {"mix": mix}}), "data")


# ---- shares of tokens


def rows_of(lengths: list[int], name: str = "row") -> Dataset:
    """Rows of these numbers of tokens."""
    return Dataset.from_dict({"source": [f"{name}:{i}" for i in range(len(lengths))], "num_tokens": lengths})


def mixed_by_share(base: Dataset, *others: tuple[float, Dataset], seed: int = 0) -> tuple[Ingredient, ...]:
    entries = [(MixedSettings(f"place{i}", share=share), rows) for i, (share, rows) in enumerate(others)]
    return mix(base, "base", entries, seed=seed)[1]


def test_a_share_is_of_tokens_and_not_of_rows() -> None:
    """100 rows of 60,000 tokens are the other 0.6: 0.4 is 4,000,000 tokens, 2,666.67 rows of 1,500."""
    base, short = rows_of([60_000] * 100), rows_of([1_500] * 3_000)
    ingredients = mixed_by_share(base, (0.4, short))
    assert ingredients == (
        Ingredient("base", 100, 100, 6_000_000),
        Ingredient("place0", 2_667, 3_000, 4_000_500),
    )
    assert (
        "base 60.0% (6000000 tokens, 100 of 100 rows), place0 40.0% (4000500 tokens, 2667 of 3000 rows)"
        in (mixture_words(ingredients)[0])
    )


# ProLong's first stage (arXiv 2410.02660, table 9 and train_64K.sh): everything but its books, which are `data.path`.
PROLONG = {
    "code repositories": 0.30,
    "FineWeb-Edu": 0.10,
    "FineWeb": 0.10,
    "StackExchange": 0.04,
    "Wikipedia": 0.04,
    "Tulu-v2": 0.03,
    "arXiv": 0.03,
    "OpenWebMath": 0.03,
    "textbooks": 0.03,
}


def test_prolongs_shares() -> None:
    """Rows of 20 to 5,000 tokens: each place's tokens are its share of the whole, to half of a row."""
    rng = np.random.default_rng(0)
    base = rows_of(rng.integers(20, 5_000, 3_000).tolist())
    places = [(share, rows_of(rng.integers(20, 5_000, 4_000).tolist())) for share in PROLONG.values()]
    ingredients = mixed_by_share(base, *places)
    assert math.fsum(PROLONG.values()) == pytest.approx(0.7, abs=1e-12)
    whole = ingredients[0].tokens / 0.3
    for one, share in zip(ingredients[1:], PROLONG.values(), strict=True):
        assert abs(one.tokens - share * whole) <= 2_500
    assert mixed_by_share(base, *places) == ingredients


def test_the_short_mix_of_prolongs_script() -> None:
    """0.37 of the tokens by .27, .27, .11, .11, .08, .08, .08 of it, which the script rounds to 0.1 … 0.03."""
    shares = [0.37 * part for part in (0.27, 0.27, 0.11, 0.11, 0.08, 0.08, 0.08)]
    expected = [0.0999, 0.0999, 0.0407, 0.0407, 0.0296, 0.0296, 0.0296]
    assert shares == pytest.approx(expected, abs=1e-12)
    ingredients = mixed_by_share(
        rows_of([10] * 63_000), *((share, rows_of([10] * 10_000)) for share in shares)
    )
    whole = sum(one.tokens for one in ingredients)
    assert [one.tokens / whole for one in ingredients[1:]] == pytest.approx(expected, abs=1e-4)


def test_a_place_with_too_few_tokens_names_a_share_that_works() -> None:
    """600 tokens beside 0.3 of another place; 150 tokens are 0.7 · 150 / 750 = 0.14 of all."""
    base, small, other = rows_of([100] * 6), rows_of([50] * 3), rows_of([10] * 90)
    with pytest.raises(
        UserError,
        match=r"data\.mix\[1\]\.share=0\.2 beside 600 tokens of data\.path asks for 240 tokens of place1, which holds "
        r"150, and no row is taken twice: set 0\.14 or less",
    ):
        mixed_by_share(base, (0.3, other), (0.2, small))
    assert mixed_by_share(base, (0.3, other), (0.14, small))[2].rows == 3


def test_less_than_half_a_row_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"asks for 6 tokens of place0, less than half of the first row .*\(50 tokens\)"
    ):
        mixed_by_share(rows_of([100] * 6), (0.01, rows_of([50] * 3)))


def test_shares_of_files(files) -> None:
    """Through the loader: the held-out rows take no part, and the draw is the same with two processes and again."""
    entries = [MixedSettings(files["general"], share=0.5)]
    found = []
    for processes in (1, 2):
        data = load_preference_data(
            DataSettings(path=files["long"], mix=entries, eval_size=2, num_proc=processes),
            byte_tokenizer(),
            positions=PositionSettings(),
            seed=3,
        )
        assert abs(tokens(data, "general") - tokens(data, "long")) <= max(data.train["num_tokens"][:]) / 2
        found.append(names(data))
    assert found[0] == found[1]
