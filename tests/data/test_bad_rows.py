"""`data.bad_rows`, `data.columns` and what is said of rows: alike from any number of processes and from the cache."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from align.core.errors import AlignWarning, UserError
from align.data import faults
from align.data.bad_rows import FILE, check_limit, write_dropped
from align.data.dataset import PreferenceData, load_preference_data
from align.data.faults import RowError
from align.data.notices import notices
from align.data.settings import DataSettings, MixedSettings, PositionSettings
from align.data.tokens import ExampleTokenizer
from tests.data.helpers import byte_tokenizer, write_lines
from tests.data.test_released import logo_row


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


def row(i: int, **columns: Any) -> dict[str, Any]:
    return {"prompt": f"question {i}", "chosen": "yes", "rejected": "no"} | columns


def load(path: Path | str, **settings: Any) -> PreferenceData:
    options = {
        name: settings.pop(name)
        for name in ("require_rejected", "require_short", "vocabulary")
        if name in settings
    }
    return load_preference_data(
        DataSettings(path=str(path), **{"eval_size": 0, "bad_rows": "drop"} | settings),
        byte_tokenizer(),
        positions=PositionSettings(),
        seed=0,
        **options,
    )


# Bad rows of many reasons among twelve good ones, by their line.
BAD = {
    2: (row(2, chosen=""), faults.EMPTY),
    3: (row(3, chosen="y" * 60), faults.TOO_LONG),
    5: ({"words": "t"}, faults.UNKNOWN_LAYOUT),
    8: ({"prompt": "p", "rejected": "no"}, faults.MISSING),
    9: ({"prompt": "p", "completion": "a", "label": False}, faults.BAD_LABEL),
    11: (row(11, prompt="\ud800"), faults.NOT_TEXT),
    13: (row(13, rejected=None), faults.NO_REJECTED),
    14: (row(14, rejected="yes"), faults.ALL_EQUAL),
    15: ([1], faults.UNREADABLE),
}


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    lines = [BAD[i][0] if i in BAD else row(i) for i in range(1, 22)]
    return write_lines(tmp_path / "rows.jsonl", *lines)


SETTINGS: dict[str, Any] = {"max_length": 50, "bad_rows_limit": 0.5, "require_rejected": True}


@pytest.mark.parametrize("num_proc", [1, 3])
def test_bad_rows_are_left_out_and_every_one_is_told(mixed: str, num_proc: int) -> None:
    """21 lines with 9 bad ones: 12 rows are trained on, in their order."""
    data = load(mixed, num_proc=num_proc, **SETTINGS)
    good = [f"rows.jsonl:{i}" for i in range(1, 22) if i not in BAD]
    assert list(data.train["source"][:]) == good
    assert [(bad.source, bad.reason) for bad in data.dropped] == [
        (f"rows.jsonl:{i}", reason) for i, (_, reason) in BAD.items()
    ]
    assert (data.counts["rows"], data.counts["dropped_rows"]) == (12, 9)
    (said,) = [line for line in notices(data, window=None) if "left out" in line]
    assert (
        said.startswith("9 of 21 rows cannot be used and are left out: ") and f"{faults.BAD_LABEL} 1" in said
    )


def test_the_cache_keeps_bad_rows_for_either_setting(mixed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `drop` has built tells `stop` how many there are, and nothing is tokenised again."""
    with pytest.raises(
        UserError, match=r"^rows\.jsonl:2: column chosen has an empty answer \(align inspect lists"
    ):
        load(mixed, bad_rows="stop", **SETTINGS)
    first = load(mixed, **SETTINGS)
    monkeypatch.setattr(ExampleTokenizer, "__call__", None)
    again = load(mixed, **SETTINGS)
    assert again.digest == first.digest and [str(bad) for bad in again.dropped] == [
        str(bad) for bad in first.dropped
    ]
    with pytest.raises(
        UserError, match=r"^rows\.jsonl:2: .*\(the first of 9 such rows of 21, which align inspect"
    ):
        load(mixed, bad_rows="stop", **SETTINGS)


@pytest.mark.parametrize(
    ("limit", "allowed"), [(0.4, False), (0.43, True), (8, False), (9, True), (None, True)]
)
def test_the_limit_is_a_share_or_a_number(mixed: str, limit: float | None, allowed: bool) -> None:
    """9 of 21 rows are 0.4286 of them."""
    settings = SETTINGS | {"bad_rows_limit": limit}
    if allowed:
        assert load(mixed, **settings).counts["dropped_rows"] == 9
        return
    with pytest.raises(
        UserError, match=r"rows\.jsonl: 9 of 21 rows cannot be used \(.*data\.bad_rows_limit="
    ):
        load(mixed, **settings)


def test_no_usable_row_is_an_error_whatever_the_limit(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", {"words": "t"}, row(1, chosen=""))
    with pytest.raises(
        UserError, match=r"2 of 2 rows cannot be used .*which leaves none; the first is rows\.jsonl:1"
    ):
        load(path, bad_rows_limit=None)
    check_limit("data.path=x", (), usable=0, limit=0)


def test_held_out_and_mixed_rows_are_left_out_alike(tmp_path: Path) -> None:
    train = write_lines(tmp_path / "train.jsonl", *(row(i) for i in range(4)))
    held = write_lines(tmp_path / "held.jsonl", row(10), row(11, chosen=""))
    more = write_lines(tmp_path / "more.jsonl", row(20), {"words": "t"}, row(21))
    mix = [MixedSettings(more, 0.5)]
    data = load(train, eval_path=held, mix=mix, bad_rows_limit=1)
    assert [bad.source for bad in data.dropped] == ["held.jsonl:2", "more.jsonl:2"]
    assert (data.counts["train_rows"], data.counts["eval_rows"]) == (6, 1)
    with pytest.raises(UserError, match=r"^data\.eval_path=.*held\.jsonl: 1 of 2 rows cannot be used"):
        load(train, eval_path=held, mix=mix)


def test_a_file_that_breaks_off_is_no_bad_row(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(f"[{json.dumps(row(1))}, {{")
    with pytest.raises(UserError, match=r"^rows\.json:1: malformed JSON \(Expecting property name"):
        load(tmp_path / "rows.json", bad_rows_limit=None)


def test_left_out_rows_are_listed_in_the_runs_folder(tmp_path: Path) -> None:
    bad = [
        RowError("r:1", "it is.", reason=faults.EMPTY),
        RowError("r:9", "\ud800 is not.", reason=faults.NOT_TEXT),
    ]
    path = write_dropped(bad, tmp_path)
    assert path == tmp_path / FILE
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"source": "r:1", "reason": "empty text", "sentence": "it is."},
        {"source": "r:9", "reason": "not text", "sentence": "\\ud800 is not."},
    ]
    assert write_dropped((), tmp_path) is None and not path.exists()


def test_the_limit_of_rows_is_of_a_whole_folder(tmp_path: Path) -> None:
    """Two files of five rows and limit=7: five of the first, two of the second."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for name in ("a", "b"):
        write_lines(folder / f"{name}.jsonl", *(row(i, prompt=f"{name}{i}") for i in range(5)))
    names = list(load(folder, limit=7).train["source"][:])
    assert names == [*(f"a.jsonl:{i}" for i in range(1, 6)), "b.jsonl:1", "b.jsonl:2"]


# ---- token ids and the model's vocabulary


def test_ids_outside_the_vocabulary_are_refused_by_row(tmp_path: Path) -> None:
    """The byte tokenizer has 256 bytes and two special tokens: 258 are enough, with 257 the end of an answer is out."""
    path = write_lines(tmp_path / "rows.jsonl", row(1))
    assert load(path, vocabulary=258).counts["rows"] == 1
    with pytest.raises(
        UserError, match=r"the tokenizer gives '<\|im_end\|>' the id 25., and the model's embedding"
    ):
        load(path, bad_rows="stop", vocabulary=256)


@pytest.mark.parametrize("outside", [50, -5, 2**31 + 5])
def test_released_ids_outside_the_vocabulary(tmp_path: Path, outside: int) -> None:
    """LOGO's released rows on a model of another family."""
    highest = max(max(values) for name, values in logo_row().items() if name.endswith("input_ids"))
    bad = logo_row()
    for name in list(bad):
        if name.endswith("_input_ids"):
            bad[name] = [outside, *bad[name][1:]]
    Dataset.from_list([logo_row()]).save_to_disk(tmp_path / "good")
    Dataset.from_list([logo_row(), bad]).save_to_disk(tmp_path / "bad")
    assert load(tmp_path / "good", vocabulary=highest + 1).counts["rows"] == 1
    data = load(tmp_path / "bad", vocabulary=max(highest + 1, 50), bad_rows_limit=None)
    assert [(one.source, one.reason) for one in data.dropped] == [("bad:2", faults.VOCABULARY)]
    assert str(outside) in str(data.dropped[0])
    short = logo_row() | {"chosen_labels": [7]}
    Dataset.from_list([logo_row(), short]).save_to_disk(tmp_path / "short")
    (dropped,) = load(tmp_path / "short", bad_rows_limit=None).dropped
    assert (dropped.source, dropped.reason) == ("short:2", faults.PRE_TOKENISED)


# ---- the digest by which processes and starts compare their rows


def test_the_digest_follows_content_and_order_alone(tmp_path: Path) -> None:
    """Another place of the same rows has the same digest; an answer, the order or the split changes it."""
    rows = [row(i) for i in range(6)]
    (tmp_path / "there").mkdir()
    here, there = (write_lines(tmp_path / part / "rows.jsonl", *rows) for part in (".", "there"))
    digests = [load(here).digest]
    assert load(there).digest == digests[0] and len(digests[0]) == 16
    digests += [load(here, eval_size=2).digest, load(here, limit=5).digest]
    write_lines(Path(there), *rows[::-1])
    digests.append(load(there).digest)
    write_lines(Path(there), *rows[:-1], row(5, rejected="not"))
    digests.append(load(there).digest)
    assert len(set(digests)) == len(digests)


# ---- data.columns


def test_columns_are_renamed_and_hidden(tmp_path: Path) -> None:
    theirs = {"question": "question 1", "good": "yes", "bad": "no", "label": 7}
    path = write_lines(tmp_path / "rows.jsonl", theirs)
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    expected = load(write_lines(tmp_path / "ours.jsonl", row(1))).train[0]
    found = load(path, columns=columns).train[0]
    for name in ("prompt_ids", "answer_ids", "answer_lengths"):
        assert np.array_equal(found[name], expected[name])
    Dataset.from_list([theirs]).to_parquet(tmp_path / "rows.parquet")
    assert load(tmp_path / "rows.parquet", columns=columns).train[0]["row_hash"] == expected["row_hash"]
    sft = write_lines(tmp_path / "sft.jsonl", {"prompt": "p", "completion": "a", "label": "maths"})
    assert load(sft, columns={"label": None}).counts["rows"] == 1
    swapped = load(
        write_lines(tmp_path / "ours.jsonl", row(1)), columns={"chosen": "rejected", "rejected": "chosen"}
    )
    assert byte_tokenizer().decode(swapped.train[0]["answer_ids"]).startswith("no")


def test_a_column_that_is_not_there_or_covered_is_said(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", row(1, question="another"))
    with pytest.raises(
        UserError, match=r"data\.columns\.prompt=questoin: no such column .*did you mean question\?"
    ):
        load(path, columns={"prompt": "questoin"})
    with pytest.warns(
        AlignWarning, match=r"data\.columns\.prompt=question takes the place of the rows' own column prompt"
    ):
        data = load(path, columns={"prompt": "question"})
    assert byte_tokenizer().decode(data.train[0]["prompt_ids"]) == "another"


def test_mixed_rows_have_names_of_their_own(tmp_path: Path) -> None:
    train = write_lines(tmp_path / "train.jsonl", *(row(i) for i in range(2)))
    more = write_lines(tmp_path / "more.jsonl", {"q": "p", "chosen": "a", "rejected": "b"})
    data = load(train, mix=[MixedSettings(more, 0.5, {"prompt": "q"})])
    assert data.counts["rows"] == 3
    with pytest.raises(UserError, match=r"data\.mix\[0\]\.columns\.prompt=x: no such column"):
        load(train, mix=[MixedSettings(more, 0.5, {"prompt": "x"})])


# ---- what is said before training


def test_cuts_and_positions_over_the_window_are_said(tmp_path: Path) -> None:
    """Contexts of 100 bytes in a window of 60, positions up to 199."""
    rows = [{"context": "c" * 100, "question": f"q{i}", "chosen": "yes", "rejected": "no"} for i in range(3)]
    path = write_lines(tmp_path / "rows.jsonl", *rows)
    data = load(path, max_length=90)
    cut = data.counts["cut_tokens"]
    share = cut / (data.counts["tokens"] + cut)
    (said,) = notices(data, window=90)
    assert said.startswith("The contexts of 3 of 3 rows are cut to the model's window of 90 tokens: ")
    assert said.endswith(f" {cut} tokens are gone, {share:.1%} of all.")
    (said,) = notices(data, window=None)
    assert "are cut to data.max_length:" in said
    far = replace(data, counts=data.counts | {"largest_position": 199})
    assert "Positions go up to 199, and the model was made for 90: model.rope stretches it." in notices(
        far, window=90
    )
