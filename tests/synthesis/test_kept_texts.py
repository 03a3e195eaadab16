"""`align synthesize` keeps every row and instruction, counts documents left out, and is alone in its folder."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time

import pytest
from hydra import compose, initialize_config_module

from align import synthesize
from align.core.errors import UserError
from align.generation.generators import Completion, Message, Request
from align.generation.ledger import Ledger
from align.runs.exclusive import LOCK, exclusive
from align.synthesis.longwriter.candidates import Candidate
from align.synthesis.longwriter.instructions import Instruction
from align.synthesis.longwriter.quality import Judge
from tests.generation.helpers import SAMPLING
from tests.synthesis.scripted import save_model, workspace, write_documents


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def run(model, output, *overrides):
    with initialize_config_module("hydra_conf", version_base="1.3"):
        made = synthesize.synthesize(
            compose("synthesize", [f"model.path={model}", f"output={output}", *overrides])
        )
    return made, [json.loads(line) for line in made.path.read_text().splitlines()]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_six_rows_of_one_context_are_six_rows(model, tmp_path):
    """Their texts differ in one word of a hundred, so that any two are near duplicates as documents."""
    context = " ".join(["bardel finfin gorhul"] * 33)
    given = [
        {"prompt": f"{context} bar{i}", "chosen": "bardel", "rejected": "finfin", "source": i}
        for i in range(6)
    ]
    path = write_lines(tmp_path / "rows.jsonl", [*given, given[0]])
    made, rows = run(model, tmp_path / "out", "pipeline=rows", f"pipeline.path={path}")
    assert rows == [*given, given[0]]
    saved = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert saved["counts"] == {"rows read": 7} and saved["rows"] == made.rows == 7
    assert saved["dropped"] == {}


def test_instructions_that_differ_in_a_number_or_a_column_are_all_kept(model, tmp_path):
    """Each pair of texts has a Jaccard index of 0.88 in shingles; the last differs in its column alone."""
    texts = [" ".join([*(["bardel"] * 40), str(n), "words"]) for n in (500, 1000, 2000, 4000)]
    given = [{"prompt": text} for text in texts] + [{"prompt": texts[0], "length": 70}]
    path = write_lines(tmp_path / "prompts.jsonl", given)
    overrides = ("pipeline=longwriter", f"pipeline.instructions={path}", "pipeline.max_new_tokens=4")
    made, _ = run(model, tmp_path / "out", *overrides)
    assert made.counts["instructions"] == 5


LOGO = (
    "pipeline=logo",
    "pipeline.chunk_tokens=16",
    "pipeline.chunks_per_prompt=4",
    "pipeline.critical_chunks=2",
    "pipeline.min_new_tokens=1",
    "pipeline.max_new_tokens=4",
    "pipeline.max_question_tokens=4",
)


def test_documents_left_out_are_counted_in_the_summary_and_the_card(model, tmp_path):
    path = write_documents(tmp_path / "documents.jsonl", count=3)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    write_lines(path, [*lines, {"id": "copy", "text": lines[0]["text"].upper()}])
    run(model, tmp_path / "out", *LOGO, f"pipeline.documents={path}")
    saved = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert saved["dropped"]["document equal to another"] == 1
    assert saved["dropped"]["document nearly equal to another"] == 0
    assert saved["counts"]["documents read"] == 3
    assert "| dropped: document equal to another | 1 |" in (tmp_path / "out" / "README.md").read_text()


def test_other_weights_do_not_go_on_with_a_run(model, tmp_path):
    """The folder of the model is overwritten; the same command is refused, and with resume=never asks again."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = save_model(tmp_path / "model")
    path = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "bardel finfin gorhul"}])
    sft = ("pipeline.rows=sft", "pipeline.sampled=1", "pipeline.max_new_tokens=6")
    overrides = ("pipeline=longwriter", f"pipeline.instructions={path}", *sft)
    output = tmp_path / "out"
    made, _ = run(folder, output, *overrides)
    before = made.path.read_bytes()
    assert run(folder, output, *overrides)[0].path.read_bytes() == before
    other = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.5)
    other.save_pretrained(folder)
    with pytest.raises(UserError, match=r"answers-0000\.jsonl:1 was answered by other weights.*resume=never"):
        run(folder, output, *overrides)
    assert (output / "train.jsonl").read_bytes() == before
    again, _ = run(folder, output, *overrides, "resume=never")
    fresh, _ = run(folder, tmp_path / "fresh", *overrides)
    assert again.path.read_bytes() == fresh.path.read_bytes() != before


def test_a_ledger_can_be_read_while_its_owner_writes(tmp_path):
    """A line in flight is passed over and left where it is; opening as its owner cuts it off."""
    path = tmp_path / "stage.jsonl"
    call = Request("r", (Message("user", "x"),), SAMPLING, 1)
    Ledger(path, weights="a").append([(call, Completion("t", 1, "stop"))])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"request": "12')
    assert list(Ledger.read(path)) == [call.digest]
    assert path.read_bytes() == whole + b'{"request": "12'
    with pytest.raises(UserError, match="other weights"):
        Ledger.read(path, weights="b")
    Ledger(path)
    assert path.read_bytes() == whole


def test_a_second_run_in_a_folder_is_refused_and_a_killed_one_bars_nobody(tmp_path):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with exclusive(tmp_path):
            os.write(writing, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(reading, 1)
    with pytest.raises(UserError, match="in use by another run"), exclusive(tmp_path):
        raise AssertionError
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with exclusive(tmp_path):
        assert (tmp_path / LOCK).is_file()
    with exclusive(tmp_path):
        pass


def test_synthesize_writes_nothing_into_a_folder_at_work(model, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"prompt": "bardel", "chosen": "finfin"}])
    output = tmp_path / "out"
    output.mkdir()
    with (output / LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="in use by another run"):
            run(model, output, "pipeline=rows", f"pipeline.path={path}")
    assert [path.name for path in output.iterdir()] == [LOCK]


class CountedSettings:
    """Settings of a generator that count how often it is opened."""

    def __init__(self, inner):
        self.inner, self.opened = inner, 0

    def open(self, model, tokenizer):
        self.opened += 1
        return self.inner


def test_a_judge_of_its_own_is_opened_once_for_all_blocks(model, tmp_path):
    space = workspace(tmp_path, model)
    settings = CountedSettings(space.generator)
    judge = Judge(model=str(model), generator=settings)
    for block in ("0000", "0001", "0002"):
        item = Instruction("i", "i", "bardel", 3)
        judge.score(block, [(f"{block}/0", item, Candidate("finfin", "sampled", True))], space)
    assert settings.opened == 1
