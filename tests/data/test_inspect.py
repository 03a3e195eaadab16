"""`align inspect` as a user runs it, and what its checks find."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align import inspect
from align.data.describe import answer_jumps, answer_runs, prompt_sections
from align.data.examples import Answer, TokenizedExample
from tests.data.helpers import byte_tokenizer, write_lines
from tests.tiny import tiny_model


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with a configuration of 200 positions and the byte tokenizer; no weights."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    byte_tokenizer().save_pretrained(folder)
    tiny_model(max_position_embeddings=200, vocab_size=258).config.save_pretrained(folder)
    return str(folder)


def run(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> int:
    monkeypatch.setattr("sys.argv", ["align inspect", *overrides])
    monkeypatch.setenv("COLUMNS", "160")
    try:
        inspect.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def row(**columns: Any) -> dict[str, Any]:
    return {"context": ["one", "two"], "question": "q?", "chosen": "yes", "rejected": "no"} | columns


def test_good_data_is_shown_and_passes(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parts of the prompt, scored answers, counts and the verdict."""
    path = write_lines(tmp_path / "rows.jsonl", *(row(question=f"q{i}?") for i in range(4)))
    code = run(monkeypatch, f"data.path={path}", f"model.path={model}", "data.eval_size=1", "rows=1")
    shown = capsys.readouterr().out
    assert code == 0, shown
    assert "⟦yes<|im_end|>⟧" in shown and "⟦no<|im_end|>⟧" in shown
    assert "<|im_start|>user⏎" in shown and "one⏎⏎" in shown
    assert "4 rows: 3 to train on, 1 held out" in shown
    assert "Nothing wrong was found." in shown


def test_a_mix_is_shown_and_its_rows_are_checked(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counts of each place; a mixed-in row of a held-out prompt is a leak, one without an answer is named."""
    path = write_lines(tmp_path / "rows.jsonl", *(row(question=f"q{i}?") for i in range(4)))
    more = write_lines(tmp_path / "more.jsonl", *(row(question=f"q{i}?", rejected="never") for i in range(6)))
    settings = (f"data.path={path}", f"model.path={model}", "data.eval_size=1", "rows=0")
    assert run(monkeypatch, *settings, f"data.mix=[{{path: '{more}', ratio: 2}}]") == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{more} 68.3% (" in shown and "252 tokens, 6 of 6 rows)." in shown
    assert "leak: 1" in shown
    write_lines(tmp_path / "more.jsonl", row(chosen=None))
    assert run(monkeypatch, *settings, f"data.mix=[{{path: '{more}', ratio: 0.4}}]") == 1
    assert "more.jsonl:1: column chosen or completion is missing" in capsys.readouterr().out


def test_a_share_that_a_place_cannot_give_is_a_finding(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows are shown all the same, documents among them."""
    path = write_lines(tmp_path / "rows.jsonl", *({"text": f"a document {i}"} for i in range(4)))
    more = write_lines(tmp_path / "more.jsonl", {"text": "more"})
    settings = (f"data.path={path}", f"model.path={model}", "rows=1", "require_rejected=false")
    assert run(monkeypatch, *settings, f"data.mix=[{{path: '{more}', share: 0.6}}]") == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "settings: 1 data.mix[0].share=0.6 beside" in shown and "and no row is taken twice: set 0." in shown
    )
    assert (
        "4 documents of plain text are read whole, 52 tokens together; each ends with <|im_end|>." in shown
        and "│ text" in shown
    )
    assert run(monkeypatch, *settings, f"data.mix=[{{path: '{more}', share: 0.1}}]") == 0


def test_positions_and_jumps_are_shown(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "rows.jsonl", row(), row(question="r?"))
    overrides = ("positions=logo_continuous", "positions.target_length=1000", "data.eval_size=1", "rows=1")
    settings = (f"data.path={path}", f"model.path={model}", *overrides)
    assert run(monkeypatch, *settings) == 1
    assert "positions over the window: 1" in capsys.readouterr().out
    assert run(monkeypatch, *settings, "model.rope.theta=1e6") == 0
    shown = capsys.readouterr().out
    assert "996–999" in shown  # the longest answer, 3 bytes and its end, closes at K − 1
    assert "before" in shown and "largest position: 999" in shown
    assert run(monkeypatch, *settings, "data.max_length=150") == 1  # whatever rows are cut to
    assert "Positions go up to 999, and the model was made for 200" in capsys.readouterr().out
    linear = (
        "positions=e2",
        "positions.target_length=null",
        "model.rope.type=linear",
        "model.rope.factor=20",
    )
    assert run(monkeypatch, *settings, *linear) == 0
    assert "largest position: 3999" in capsys.readouterr().out  # 20 times the window
    assert run(monkeypatch, *settings, *linear, "positions.target_length=4001") == 1
    assert "Positions go up to 4000, and the model was made for 4000" in capsys.readouterr().out


def test_findings_end_with_a_code(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(), row(), row(rejected=["no", "yes"], question="r?"), row(context="long" * 60, question="s?")]
    path = write_lines(tmp_path / "rows.jsonl", *rows)
    held = write_lines(tmp_path / "held.jsonl", row(chosen="maybe"), row(question="t?"))
    overrides = (f"data.path={path}", f"data.eval_path={held}", f"model.path={model}", "rows=0")
    assert run(monkeypatch, *overrides) == 1
    shown = capsys.readouterr().out
    assert "rows.jsonl:2: the same prompt and answers as rows.jsonl:1." in shown
    assert "rows.jsonl:3: 1 rejected answer equals the chosen one and is left out" in shown
    assert "held.jsonl:1: this held-out prompt is trained on in rows.jsonl:1." in shown
    assert "rows.jsonl:4: prompt and longest answer have" in shown and "window 200" in shown
    # Cut to the window, the last of these is no longer one.
    assert run(monkeypatch, *overrides, "data.max_length=200") == 1
    shown = capsys.readouterr().out
    assert "over the window" not in shown and "in 1 row" in shown


def test_every_unusable_row_is_listed(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "rows.jsonl", row(chosen=""), row(), row(rejected="yes"), {"words": "t"})
    assert run(monkeypatch, f"data.path={path}", f"model.path={model}") == 1
    shown = capsys.readouterr().out
    assert "unusable row: 3" in shown
    assert "rows.jsonl:1: column chosen has an empty answer." in shown
    assert "rows.jsonl:3: every rejected answer equals the chosen one." in shown
    assert "rows.jsonl:4: unknown layout with the columns words" in shown


def test_every_row_is_tokenised_and_listed_by_reason(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twelve answers over the window of 200 among good and empty ones: ten on the screen, all in the file."""
    rows = [row(question=f"q{i}?") for i in range(5)]
    rows += [row(question=f"r{i}?", chosen="y" * 300) for i in range(12)] + [row(chosen=" ")]
    path, listed = write_lines(tmp_path / "rows.jsonl", *rows), tmp_path / "found.jsonl"
    settings = (f"data.path={path}", f"model.path={model}", "rows=0", "data.bad_rows_limit=0")
    assert run(monkeypatch, *settings, f"findings={listed}") == 1
    shown = capsys.readouterr().out
    assert "unusable row: 13" in shown and " too long: 12" in shown and " empty text: 1" in shown
    assert "… and 2 more; findings=FILE lists all" in shown
    assert "5 rows: 4 to train on, 1 held out" in shown  # the usable ones
    found = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [one["reason"] for one in found].count("too long") == 12 and len(found) == 13
    assert found[-2]["message"].startswith("rows.jsonl:17: the longest answer has 301 tokens")


def test_rows_are_shown_as_training_reads_them(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without data.max_length the context is cut to the model's window of 200, and positions go beyond it."""
    path = write_lines(tmp_path / "rows.jsonl", row(context="x" * 400), row(question="r?"))
    settings = (f"data.path={path}", f"model.path={model}", "data.eval_size=0", "rows=1")
    assert run(monkeypatch, *settings) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "The contexts of 1 of 2 rows are cut to the model's window of 200 tokens: " in shown
    assert "longest prompt with answer: 200 tokens" in shown
    far = ("positions=logo_continuous", "positions.target_length=1000", "data.limit=1")
    assert run(monkeypatch, *settings, *far) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "Positions go up to 999, and the model was made for 200: model.rope stretches it." in shown
    assert "positions over the window: 1" in shown


def test_a_tokenizer_larger_than_the_model_is_a_finding(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((Path(model) / "config.json").read_text())
    (Path(model) / "config.json").write_text(json.dumps(config | {"vocab_size": 257}))
    path = write_lines(tmp_path / "rows.jsonl", row(), row(question="r?"))
    assert run(monkeypatch, f"data.path={path}", f"model.path={model}") == 1
    shown = capsys.readouterr().out
    assert " outside the vocabulary: 2" in shown and "the model's embedding has 257 rows" in shown


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.path=missing.jsonl", "data.path=missing.jsonl does not exist"),
        ("rows=-1", "rows=-1 must be a whole number"),
        ("seed=-1", "seed=-1 is no seed"),
        ("data.cut=left", "data.cut=left is not known"),
        (
            "positions.mode=logo",
            "positions.mode is no key any more: write positions=NAME, as positions=logo_sparse",
        ),
        (
            "+positions.mode=logo",
            "positions.mode is no key any more: write positions=logo where a command names it",
        ),
        ("+positions.draws=slots", "positions.draws is unknown (did you mean draw?)"),
        (
            "positions=e2",
            "positions=e2 takes a linear RoPE that divides positions by positions.factor=20, and the",
        ),
    ],
)
def test_bad_settings_end_in_one_sentence(
    override: str,
    sentence: str,
    tmp_path: Path,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_lines(tmp_path / "rows.jsonl", row(), row(question="r?"))
    assert run(monkeypatch, f"data.path={path}", f"model.path={model}", override) == 2
    error = capsys.readouterr().err
    assert f"align inspect: {sentence}" in error and "Traceback" not in error


def test_parts_cover_the_prompt_once() -> None:
    """20 tokens, chunks of one token at 2 … 17: the middle ones are told as a group, jumps where they are."""
    positions = np.arange(20)
    positions[5:] += 100  # before chunk 4
    positions[9:] += 7  # before chunk 8
    example = TokenizedExample(
        source="r:1",
        prompt_ids=np.arange(20),
        position_ids=positions,
        answers=(Answer(np.array([1, 2, 3]), np.array([True, False, True])),),
        chunk_spans=tuple((i, i + 1) for i in range(2, 18)),
    )
    parts = prompt_sections(example)
    assert np.concatenate([part.ids for part in parts]).tolist() == list(range(20))
    names = [part.name for part in parts]
    assert names == [
        "system",
        *(f"chunk {i}" for i in (1, 2, 3, 4)),
        "chunks 5–12",
        *names[-5:-1],
        "question",
    ]
    assert [part.jumps for part in parts if part.jumps] == ["+100 before", "1 inside, to +7"]
    runs = [(ids.tolist(), scored) for ids, scored in answer_runs(example.answers[0])]
    assert runs == [([1], True), ([2], False), ([3], True)]


def test_steps_are_no_jumps() -> None:
    """As E²-LLM's positions: what is told are the offset and the step; of a document the scored tokens jump too."""
    ids, scored = np.arange(8), np.ones(3, dtype=bool)
    row = TokenizedExample(
        source="r:1",
        prompt_ids=ids,
        position_ids=np.array([0, 5, 10, 15, 70, 75, 80, 85]),
        answers=(Answer(ids[:3], scored), Answer(ids[:3], scored, positions=np.array([90, 95, 120]))),
        chunk_spans=((4, 6),),
        position_step=5,
    )
    parts = [(part.name, part.first, part.last, part.jumps) for part in prompt_sections(row)]
    assert parts == [
        ("system", 0, 15, "steps of 5"),
        ("chunk 1", 70, 75, "steps of 5, +50 before"),
        ("question", 80, 85, "steps of 5"),
    ]
    (whole,) = prompt_sections(replace(row, chunk_spans=()))
    assert whole.jumps == "steps of 5, 1 inside, to +50"
    assert [answer_jumps(row, answer) for answer in row.answers] == [
        "steps of 5",
        "steps of 5, 1 inside, to +20",
    ]


def test_a_single_row_is_shown_although_training_would_hold_it_out(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What training would end with is a finding; the row is there to be looked at."""
    path = write_lines(tmp_path / "rows.jsonl", row())
    assert run(monkeypatch, f"data.path={path}", f"model.path={model}", "rows=1") == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "1 row: 1 to train on, 0 held out" in said
    assert "settings: 1" in said and "holds out all there is" in said


def test_what_training_does_with_bad_rows_is_said(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends at the first of them, leaves them out, or ends since they are too many."""
    path = write_lines(tmp_path / "rows.jsonl", row(chosen=""), *(row(question=f"q{i}?") for i in range(6)))
    settings = (f"data.path={path}", f"model.path={model}", "rows=0")
    assert run(monkeypatch, *settings) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "1 of 7 rows cannot be used (empty text 1): training ends at the first of them; data.bad_rows=drop"
        in said
    )
    assert run(monkeypatch, *settings, "data.bad_rows=drop", "data.bad_rows_limit=0.5") == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of 7 rows cannot be used and are left out: empty text 1." in said and "settings" not in said
    assert run(monkeypatch, *settings, "data.bad_rows=drop", "data.bad_rows_limit=0.1") == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "settings: 1" in said and "more than data.bad_rows_limit=0.1 allows" in said


@pytest.mark.parametrize(
    ("setting", "limit"),
    [
        ((), "the model's window of 200 tokens: leave"),
        (("data.max_length=200",), "data.max_length=200: raise"),
    ],
)
def test_a_length_that_nobody_set_is_the_models_window(
    setting: tuple[str, ...],
    limit: str,
    tmp_path: Path,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also of rows that the cache has kept with the other words."""
    path = write_lines(tmp_path / "rows.jsonl", row(chosen="y" * 300), row(), row(question="r?"))
    for own in ("data.max_length=200", *setting):
        assert run(monkeypatch, f"data.path={path}", f"model.path={model}", "rows=0", own) == 1
    capsys.readouterr()
    assert run(monkeypatch, f"data.path={path}", f"model.path={model}", "rows=0", *setting) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert f"together more than {limit}" in said


def test_numbers_and_nouns_agree(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One answer is no `1 answers`."""
    path = write_lines(tmp_path / "rows.jsonl", {"prompt": "p", "completion": "c"})
    settings = (f"data.path={path}", f"model.path={model}", "data.eval_size=0", "require_rejected=false")
    assert run(monkeypatch, *settings, "rows=1") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 prompt token, 1 answer" in said and "as 1 padded row: 0% saved" in said
    assert "0 short prompts" in said and "1 row: 1 to train on" in said


def test_single_answers_are_shown_by_their_labels(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`labels=true`: a bad answer is a row like any other; without it, it is nothing to learn from."""
    rows = [{"prompt": f"p{i}", "completion": "c", "label": bool(i)} for i in range(2)]
    path = write_lines(tmp_path / "rows.jsonl", *rows)
    settings = (f"data.path={path}", f"model.path={model}", "data.eval_size=0")
    assert run(monkeypatch, *settings, "labels=true") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "good answer" in said and "bad answer" in said and "1 are good and 1 are bad" in said
    assert run(monkeypatch, *settings, "require_rejected=false") == 1
    assert "marked as bad" in " ".join(capsys.readouterr().out.split())
