"""`align rounds`: which commands a list of lengths stands for, what is passed over, and two real rounds."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console

from align import cli, rounds
from align.core.config import typed
from align.core.errors import UserError
from align.rounds import (
    DataKeys,
    ModelKeys,
    ReferenceKeys,
    RoundsSettings,
    Step,
    SynthesizeKeys,
    TrainKeys,
    finished,
    plan,
    run,
)
from align.training.run import check
from tests.rows import words as random_words
from tests.tiny import save_tiny, tiny_model

TWO = RoundsSettings([100, 200], ModelKeys("start"), output="out")


def overrides(step: Step) -> dict[str, Any]:
    """The step's overrides as Hydra reads them."""
    words = step.command[step.command.index("-m") + 2 :]
    parsed = OverridesParser.create().parse_overrides(list(words))
    return {item.key_or_group: item.value() for item in parsed}


def named(steps: list[Step]) -> dict[str, Step]:
    return {f"{step.name} {step.round}": step for step in steps}


def test_each_round_starts_from_the_last_ones_result():
    """Data, training and export; data is made by the model that is trained on it."""
    steps = named(plan(TWO))
    assert list(steps) == ["data 1", "train 1", "model 1", "data 2", "train 2", "model 2"]
    assert [overrides(steps[name])["model.path"] for name in ("data 1", "train 1")] == ["start"] * 2
    for name in ("data 2", "train 2"):
        assert overrides(steps[name])["model.path"] == "out/round-1/model"
    assert overrides(steps["data 2"])["pipeline.target_length"] == 200
    assert overrides(steps["train 2"])["data.max_length"] == 200
    assert overrides(steps["train 2"])["data.path"] == "out/round-2/data/train.jsonl"
    accepted = ["layer_patterns", "query_scale"]  # the next round reads it with this toolkit
    made = {"path": "out/round-2/train", "output": "out/round-2/model", "accept": accepted}
    assert overrides(steps["model 2"]) == made
    assert steps["train 1"].command[:3] == (sys.executable, "-m", "align.train")


@pytest.mark.parametrize(
    ("reference", "expected"),
    [("first", [None, "start"]), ("previous", [None, None]), ("some/model", ["some/model", "some/model"])],
)
def test_the_reference_of_later_rounds(reference, expected):
    """`previous` needs no override: a run's reference is its starting model by default."""
    steps = named(plan(replace(TWO, reference=ReferenceKeys(reference))))
    found = [overrides(steps[f"train {i}"]).get("reference.model") for i in (1, 2)]
    assert found == expected


def test_overrides_of_all_and_of_later_rounds():
    settings = replace(
        TWO,
        synthesize=SynthesizeKeys(overrides=["pipeline.documents=texts"], later=["pipeline.max_chunks=null"]),
        train=TrainKeys(
            overrides=["model.rope.max_position_embeddings={length}", "run_name=r{round}"],
            later=["trainer.max_steps=7"],
            launch=["accelerate", "launch"],
        ),
    )
    steps = named(plan(settings))
    assert "pipeline.max_chunks" not in overrides(steps["data 1"])
    assert overrides(steps["data 2"])["pipeline.max_chunks"] is None
    assert overrides(steps["train 2"])["model.rope.max_position_embeddings"] == 200
    assert overrides(steps["train 2"])["run_name"] == "r2"
    assert "trainer.max_steps" not in overrides(steps["train 1"])
    assert steps["train 2"].command[:4] == ("accelerate", "launch", "-m", "align.train")
    assert steps["data 2"].command[0] == sys.executable


def test_code_of_a_model_is_allowed_to_every_step_or_to_none():
    """`align export` decides for itself, whatever the run's configuration says: a round would end there."""
    for trusted in (True, False):
        steps = plan(replace(TWO, model=ModelKeys("start", trust_remote_code=trusted)))
        found = [{k: v for k, v in overrides(step).items() if "trust" in k} for step in steps]
        group = {"model.trust_remote_code": True} if trusted else {}
        alone = {"trust_remote_code": True} if trusted else {}
        assert found == [group, group, alone] * 2
    with pytest.raises(UserError, match=r"model\.trust_remote_code is a key of `align rounds` itself"):
        plan(replace(TWO, train=TrainKeys(later=["++model.trust_remote_code=true"])))


def test_given_rows_are_not_made():
    steps = named(plan(replace(TWO, data=DataKeys(["rows, 'old'=1.jsonl"]))))
    assert list(steps) == ["train 1", "model 1", "data 2", "train 2", "model 2"]
    assert overrides(steps["train 1"])["data.path"] == "rows, 'old'=1.jsonl"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lengths": []}, r"lengths=\[\] needs a number of tokens"),
        ({"lengths": [0]}, r"lengths=\[0\] needs"),
        ({"lengths": [200, 100]}, r"lengths=\[200, 100\] must not shrink"),
        ({"data": DataKeys(["a", None, "c"])}, r"data\.paths names rows for 3 rounds, lengths only 2"),
    ],
)
def test_contradictions_are_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        plan(replace(TWO, **changes))


def stand_in(tmp_path: Path, code: int = 0) -> Step:
    """A step whose command leaves a mark each time it runs."""
    script = f"open({str(tmp_path / 'ran')!r}, 'a').write('x'); raise SystemExit({code})"
    return Step(1, "train", (sys.executable, "-c", script), tmp_path / "round-1" / "train.json")


def test_a_step_that_has_ended_is_passed_over(tmp_path):
    """Its record says by which command; a failed one leaves none, and other settings are refused."""
    failing = stand_in(tmp_path, code=3)
    with pytest.raises(UserError, match="round 1: making its train ended with exit code 3"):
        run(failing, Console(stderr=True))
    assert not finished(failing)
    step = stand_in(tmp_path)
    run(step, Console(stderr=True))
    assert finished(step)
    assert (tmp_path / "ran").read_text() == "xx"
    with pytest.raises(UserError, match=r"round 1 has made its train with other settings \(lr=2\)"):
        finished(replace(step, command=(*step.command, "lr=2")))
    turned = (step.command[0], *reversed(step.command[1:]))
    with pytest.raises(UserError, match=r"with other settings \(the same ones in another order\)"):
        finished(replace(step, command=turned))


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '{"command": []}', '{"command": 3}', "\udcff"])
def test_a_record_that_says_nothing_is_one_sentence(tmp_path, content):
    step = Step(1, "train", ("python", "-c", ""), tmp_path / "train.json")
    step.record.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"train\.json says no command that has ended"):
        finished(step)


def test_the_recipe_composes_and_every_round_is_a_valid_run(tmp_path, monkeypatch):
    """Three rounds of `experiment=longpo_rounds`; each training command passes the checks on a small copy."""
    with initialize_config_module("hydra_conf", version_base="1.3"):
        config = compose("rounds", ["experiment=longpo_rounds"])
        steps = named(plan(typed(RoundsSettings, config, "")))
        assert [overrides(steps[f"train {i}"])["data.max_length"] for i in (1, 2, 3)] == [
            131072,
            262144,
            524288,
        ]
        tiny_model("mistral").save_pretrained(tmp_path / "model")
        for i in (1, 2, 3):
            step = steps[f"train {i}"]
            words = list(step.command[step.command.index("-m") + 2 :])
            local = [f"model.path={tmp_path / 'model'}", "trainer.use_cpu=true", "trainer.bf16=false"]
            if i > 1:
                assert overrides(step)["reference.model"] == "mistralai/Mistral-7B-Instruct-v0.2"
                local.append(f"reference.model={tmp_path / 'model'}")
            run = check(compose("train", [*words, *local]))
            assert (run.method.name, run.reference_source, run.reference.rope) == (
                "longpo",
                "frozen",
                "checkpoint",
            )
            assert run.model.rope.theta == 1e7
            assert run.model.rope.max_position_embeddings == run.data.max_length
            data = steps[f"data {i}"]
            assert compose("synthesize", list(data.command[3:])).pipeline.target_length == run.data.max_length


@pytest.mark.slow
def test_two_real_rounds(tmp_path, monkeypatch, capfd):
    """Given rows, LoRA: the second round starts from the first one's merged result; then all is passed over."""
    model = tmp_path / "start"
    save_tiny(model)
    words = partial(random_words, np.random.default_rng(0))
    for number in (1, 2):
        rows = [
            {"context": words(30), "question": words(4), "chosen": words(5), "rejected": words(5)}
            | {"short_prompt": words(8)}
            for _ in range(6)
        ]
        (tmp_path / f"{number}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    arguments = [
        *("align", "rounds", "lengths=[64, 128]", f"model.path={model}", f"output={tmp_path / 'out'}"),
        f"data.paths=[{tmp_path / '1.jsonl'}, {tmp_path / '2.jsonl'}]",
        "train.overrides=['trainer.use_cpu=true', 'data.eval_size=2', 'model.lora.r=4', 'trainer.learning_rate=0.01']",
    ]

    def call() -> str:
        monkeypatch.setattr(sys, "argv", list(arguments))
        cli.main()
        return capfd.readouterr().err

    err = call()
    assert all(f"round {i}: {name}" in err for i in (1, 2) for name in ("train", "model"))
    config = (tmp_path / "out" / "round-2" / "train" / "config.yaml").read_text()
    assert f"path: {tmp_path / 'out' / 'round-1' / 'model'}" in config
    assert (tmp_path / "out" / "round-2" / "model" / "model.safetensors").is_file()
    monkeypatch.setattr(
        rounds.subprocess, "run", lambda *args, **kwargs: pytest.fail("a finished step ran again")
    )
    assert "round" not in call()
