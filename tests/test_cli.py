"""`align train` as a user meets it: bad input in one sentence, a killed run that goes on, methods by override."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from align import cli
from align.runs import exit_codes
from tests.forked import forked, wait_for
from tests.forked import run as run_forked
from tests.longseq.plain import assert_close
from tests.rows import make_rows
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny(folder)
    return folder


@pytest.fixture
def rows(tmp_path) -> Path:
    return make_rows(tmp_path / "rows.jsonl")


@pytest.fixture
def run(monkeypatch, capfd, model_folder, rows, tmp_path):
    """Runs `align train` in this process; returns (exit code, stdout, stderr)."""

    def call(*overrides: str, command: str = "train") -> tuple[int, str, str]:
        base = [f"model.path={model_folder}", f"data.path={rows}", f"output={tmp_path / 'out'}"]
        monkeypatch.setattr(sys, "argv", ["align", command, *base, *overrides])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        out, err = capfd.readouterr()
        return code, out, err

    return call


BAD_OVERRIDES = [
    (["colour=1"], "colour is no key of this command"),
    (["model.colour=1"], "model.colour is no key of this command"),
    (["method=xyz"], "method=xyz is not known: use "),
    (["seed=abc"], "seed=abc is no seed: give a whole number from 0 to 4294967295."),
    (["model.lora.r=x"], "model.lora.r=x has the wrong type: it takes a whole number"),
    (["trainer.max_steps=ten"], "trainer.max_steps=ten has the wrong type: it takes a whole number"),
    (["+trainer.learning_rat=1"], "did you mean learning_rate"),
    (["memory.checkpointing=ful"], "did you mean full"),
    (["memory.offload=host"], "memory.offload=host moves activations off an accelerator"),
    (["memory.offload=disk", "memory.checkpointing=none"], "set memory.checkpointing=full or keep_attention"),
    (
        ["memory.offload=disk", "memory.offload_folder=/nowhere"],
        "memory.offload_folder=/nowhere is not a folder",
    ),
    (["memory.offload_folder=/tmp"], "memory.offload_folder=/tmp is read with memory.offload=disk only"),
    (
        ["memory.checkpointing=none", "memory.mlp_chunk=64"],
        "memory.mlp_chunk=64 works on checkpointed layers",
    ),
    (["memory.mlp_chunk=0"], "memory.mlp_chunk=0 must be a number of tokens"),
    (["memory.logits_chunk=0"], "memory.logits_chunk=0 must be a number of tokens"),
    (["method=dpo", "reference.source=none"], "method=dpo needs a reference"),
    (
        ["data.order=grow"],
        "data/order is a group, chosen with a slash: data/order=NAME, one of buckets, grow",
    ),
    (["positions=logo", "positions.target_length=50"], "rows.jsonl:1"),
    (["model.path=/nowhere/model"], "model.path=/nowhere/model is no model folder"),
    (["data.path=/nowhere/rows.jsonl"], "data.path=/nowhere/rows.jsonl"),
    (["data.max_length=9"], "data.max_length=9"),
    (["resume=/nowhere"], "resume=/nowhere is no folder"),
    (["method.loss._target_=os.system"], "os.system is refused"),
    (
        ["model.attention=flash9"],
        "model.attention=flash9 is not known: use auto, sdpa, cudnn, flash2, flash3, flash4",
    ),
    (["model.attention=flash2"], "model.attention=flash2 needs"),
    (["model.attention=flash3"], "model.attention=flash3 needs"),
]


@pytest.mark.parametrize(("overrides", "sentence"), BAD_OVERRIDES, ids=[o[0][-1] for o in BAD_OVERRIDES])
def test_bad_override_ends_in_one_sentence(run, tmp_path, overrides, sentence):
    code, _, err = run(*overrides)
    assert code == exit_codes.USAGE
    said = [line for line in err.splitlines() if line.startswith("align train: ")]
    assert len(said) == 1, err
    assert sentence in said[0]
    assert "Traceback" not in err
    assert "Loading weights" not in err
    assert not (tmp_path / "out" / "model").exists()


def test_a_token_in_the_configuration_is_refused_and_kept_nowhere(run, tmp_path):
    code, out, err = run("+trainer.hub_token=hf_secretsecret")
    assert code == exit_codes.USAGE
    assert "trainer.hub_token is set by this toolkit: use the environment variable HF_TOKEN" in err
    assert "hf_secretsecret" not in out + err
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(b"hf_secretsecret" in path.read_bytes() for path in files)


ROW = {"prompt": "w9 w10", "chosen": "w11", "rejected": "w12"}
BAD_ROWS = [
    ("", "rows.jsonl"),
    ('{"prompt": "w9", "chosen": "w10", "rejected": "w11"}\n{"prompt": \n', "rows.jsonl:2"),
    (json.dumps({"prompt": "w9", "rejected": "w10"}), "rows.jsonl:1"),
    (json.dumps(ROW | {"chosen": ""}), "rows.jsonl:1"),
    (json.dumps(ROW | {"rejected": ["w11", "w11"]}), "rows.jsonl:1"),
    (json.dumps(ROW | {"chosen": 7}), "rows.jsonl:1"),
    (json.dumps(ROW | {"chosen": " ".join(["w9"] * 40)}), "rows.jsonl:1"),
]
BAD_ROW_NAMES = [
    "empty file",
    "malformed",
    "no chosen",
    "empty answer",
    "all equal",
    "wrong type",
    "answer too long",
]


@pytest.mark.parametrize(("content", "sentence"), BAD_ROWS, ids=BAD_ROW_NAMES)
def test_bad_row_is_named(run, rows, tmp_path, content, sentence):
    rows.write_text(content)
    code, _, err = run("data.max_length=32")
    assert code == exit_codes.USAGE
    said = [line for line in err.splitlines() if line.startswith("align train: ")]
    assert len(said) == 1, err
    assert sentence in said[0]
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "model").exists()


def test_bad_rows_are_left_out_on_request(run, rows, tmp_path):
    """Said before training, counted in the results, listed in the folder; above the limit nothing is trained."""
    bad = [json.dumps(ROW | {"chosen": ""}), json.dumps(ROW | {"chosen": " ".join(["w9"] * 5000)}), "{"]
    count = len(rows.read_text().splitlines())
    rows.write_text("\n".join([*rows.read_text().splitlines(), *bad]))
    code, _, err = run("data.bad_rows=drop", "data.bad_rows_limit=2")
    assert code == exit_codes.USAGE
    assert (
        f"3 of {count + 3} rows cannot be used (" in err and "more than data.bad_rows_limit=2 allows" in err
    )
    code, _, err = run("data.bad_rows=drop", "data.bad_rows_limit=3", "trainer.max_steps=1")
    assert code == 0, err
    assert f"3 of {count + 3} rows cannot be used and are left out: " in err
    listed = tmp_path / "out" / "dropped_rows.jsonl"
    assert f"The rows that are left out are listed in {listed}." in " ".join(err.split())
    reasons = [json.loads(line)["reason"] for line in listed.read_text().splitlines()]
    assert reasons == ["empty text", "too long", "unreadable"]
    counts = json.loads((tmp_path / "out" / "results.json").read_text())["data"]
    assert (counts["rows"], counts["dropped_rows"]) == (count, 3)


def test_without_a_length_the_models_window_is_the_limit(run, rows, tmp_path):
    """The tiny model reads 4096 tokens: a context of 5000 words is cut and counted."""
    lines = rows.read_text().splitlines()
    long = json.loads(lines[0]) | {"context": "w9 " * 5000}
    rows.write_text("\n".join([*lines, json.dumps(long)]))
    code, _, err = run("trainer.max_steps=1", "memory.checkpointing=full")
    assert code == 0, err
    assert f"The contexts of 1 of {len(lines) + 1} rows are cut to the model's window of 4096 tokens: " in err
    counts = json.loads((tmp_path / "out" / "results.json").read_text())["data"]
    assert counts["cut_rows"] == 1
    assert counts["longest_sequence"] == 4096


def test_unknown_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["align", "trian"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == exit_codes.USAGE
    assert "unknown command 'trian'" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["logo", "simpo", "dpo", "longpo"])
@pytest.mark.parametrize("rank", [0, 4])
def test_a_method_is_one_override(run, tmp_path, method, rank):
    """Two steps of each, in full and with LoRA; table, JSON, picture and policy are there."""
    code, out, err = run(
        f"method={method}", f"model.lora.r={rank}", "trainer.max_steps=2", "data.eval_size=3"
    )
    assert code == 0, err
    assert f"{method}: 3 held-out rows" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["before"]["eval_loss"] != results["after"]["eval_loss"]
    assert (tmp_path / "out" / "training.png").stat().st_size > 10_000
    weights = "adapter_model.safetensors" if rank else "model.safetensors"
    assert (tmp_path / "out" / "model" / weights).is_file()


def test_another_configuration_is_refused_by_its_keys(run):
    assert run("trainer.max_steps=1")[0] == 0
    code, _, err = run("trainer.max_steps=2")
    assert code == exit_codes.USAGE
    assert "trainer.max_steps (1 → 2)" in err


def test_a_run_begun_anew_measures_before_it_trains_again(run, rows, tmp_path):
    """`resume=never` in a used folder: what was measured there belongs to other rows."""
    settings = ("trainer.max_steps=1", "data.eval_size=2", "trainer.save_strategy=no")
    found = []
    for count in (8, 6):
        make_rows(rows, count=count)
        code, _, err = run(*settings, "resume=never")
        assert code == 0, err
        before = json.loads((tmp_path / "out" / "before.json").read_text())
        assert json.loads((tmp_path / "out" / "results.json").read_text())["before"] == before
        found.append(before["eval_loss"])
    assert found[0] != found[1]


def test_killed_run_goes_on_to_the_weights_of_an_unbroken_one(model_folder, rows, tmp_path):
    """SIGKILL once a checkpoint is there; the same command then ends with the same weights, to 1e-6.

    The unbroken run is a command as a user types it, the others are forked: their start takes a second.
    """

    def words(output: Path) -> list[str]:
        return [
            *(f"model.path={model_folder}", f"data.path={rows}", f"output={output}", "trainer.use_cpu=true"),
            *("positions=logo", "positions.target_length=4096", "trainer.save_steps=3"),
            *("trainer.num_train_epochs=8", "trainer.gradient_accumulation_steps=2"),
            "trainer.learning_rate=1e-3",
        ]

    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    typed = [sys.executable, "-m", "align.train", *words(unbroken)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(typed, check=True, capture_output=True, env=environment, timeout=300)
    argv = ["align", "train", *words(broken)]
    process = forked(argv)
    wait_for((broken / "checkpoint-12" / "seal.json").exists, process)
    process.kill()
    process.join()
    assert not (broken / "results.json").exists(), "the run ended before it could be killed"
    log = tmp_path / "broken.log"
    log.unlink()
    assert run_forked(argv) == [0], log.read_text()
    assert "step 1/" not in log.read_text(), "the run started over"
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (unbroken, broken)]
    assert_close(weights[1], weights[0], tolerance=1e-6)
