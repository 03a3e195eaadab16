"""Every adapter of `hydra_conf/adapter/` trains what padded rows would, in every wrapper, and survives what a run does.

The adapters are found from their files, so a new one is tested by itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainingArguments

import hydra_conf
from align.adapters.adapter import Adapter
from align.adapters.reading import read_model
from align.core.errors import UserError
from align.longseq import ATTENTION, pair_logps
from align.reference.sources import AdapterOff
from align.runs.api import compose
from tests.distributed import run_distributed
from tests.forked import run
from tests.longseq.plain import assert_close
from tests.longseq.sharded import Case
from tests.longseq.wrapped import KINDS, TOLERANCES, WRAPPERS, worker
from tests.rows import make_rows
from tests.tiny import save_tiny

# All but `none`, and `library`, which names no tuner by itself.
NAMES = sorted(
    file.stem
    for file in (Path(hydra_conf.__file__).parent / "adapter").glob("*.yaml")
    if file.stem not in ("none", "library")
)
# On a model of width 64 ranks are smaller; what is drawn by steps is drawn within the few that a test has.
SMALL = {
    "hra": ["adapter.options.r=4"],
    "sparse": ["adapter.options.r=4"],
    "spiel": ["adapter.r=4", "adapter.every=3", "adapter.collect=1"],
    "vera": ["adapter.options.r=8"],
}
# Adapter → the wrappers that it cannot be trained in, and the sentence with which a launch ends.
CANNOT = {
    "osf": (("fsdp2",), "adapter=osf projects gradients by hooks of its parameters, which fsdp2 exchanges"),
    "spiel": (("zero1", "zero2", "zero3", "fsdp2"), "adapter=spiel moves weights and their moments"),
}
ROWS = ((40, (7, 3, 5)), (9, (2, 8, 1)))
MODEL = {"num_hidden_layers": 4, "intermediate_size": 64}


@cache
def adapter(name: str) -> Adapter:
    settings = read_model(compose("train", [f"adapter={name}", *SMALL.get(name, [])]))
    assert settings.adapter is not None
    settings.adapter.check_options()
    return settings.adapter


def case(name: str, **settings: Any) -> Case:
    return Case(heads=(8, 4), rows=ROWS, adapter=adapter(name), model=MODEL, **settings)


def held(cells: list[dict[Any, dict[str, float]]], *, adapters: int) -> None:
    """Every cell within the tolerances that all wrappers keep."""
    for found in cells:
        assert len(found) == adapters * len(KINDS)
        for cell, errors in found.items():
            for what, error in errors.items():
                assert error <= TOLERANCES[what], f"{cell}: {what} off by {error:.2e}"


# In `make test` one of each way to be written and merged, in runs our own; the rest with `pytest -m slow`.
FEW = ("half", "lora", "norms", "oft", "soft_prompt", "sparse")
RUNS = ("half", "lora")


def check_degree_two(names: Sequence[str]) -> None:
    """Loss, gradients and three clipped steps: packed in one row or several, both exchanges, one spawn for all."""
    packed = {name: case(name, tokens_per_row=60, checkpointing="full") for name in names}
    held(run_distributed(worker, 2, ["none"], packed, 2, timeout=500), adapters=len(names))


def test_degree_two_equals_padded_rows() -> None:
    check_degree_two(FEW)


@pytest.mark.slow
def test_degree_two_of_the_others() -> None:
    check_degree_two([name for name in NAMES if name not in FEW])


@pytest.mark.slow
@pytest.mark.parametrize(
    "first", range(0, len(NAMES), 3), ids=lambda first: "-".join(NAMES[first : first + 3])
)
@pytest.mark.parametrize("wrapper", sorted(WRAPPERS))
def test_every_wrapper(wrapper: str, first: int) -> None:
    """As above, with levers; ZeRO-3 takes half a minute for each adapter. See also `test_those_that_cannot`."""
    pytest.importorskip("deepspeed")
    names = [name for name in NAMES[first : first + 3] if wrapper not in CANNOT.get(name, ((), ""))[0]]
    cases = {name: case(name, checkpointing="keep_attention", mlp_chunk=9) for name in names}
    held(run_distributed(worker, 2, [wrapper], cases, 2, timeout=400), adapters=len(names))


@pytest.mark.parametrize("name", NAMES)
def test_those_that_cannot(name: str, tmp_path: Path) -> None:
    """Each takes all wrappers but those in the list, which a launch and a plan refuse before weights load."""
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    refused, sentence = CANNOT.get(name, ((), ""))
    for wrapper in WRAPPERS:
        assert adapter(name).takes_wrapper(wrapper) == (wrapper not in refused)
        if wrapper in refused:
            with pytest.raises(UserError, match=sentence):
                adapter(name).check_launch(wrapper, arguments)
        else:
            adapter(name).check_launch(wrapper, arguments)


@pytest.mark.parametrize("name", NAMES)
def test_off_it_is_the_starting_model(name: str) -> None:
    """To the last bit, as the reference reads it, and then as it was: what trains goes on training."""
    if not adapter(name).removable:
        pytest.skip("its reference is a frozen model")
    plain, adapted = Case(heads=(8, 4), rows=ROWS, model=MODEL), case(name)
    policy: Any = adapted.build(ATTENTION)
    trains = [parameter.requires_grad for parameter in policy.parameters()]
    with torch.no_grad():
        before = pair_logps(policy, adapted.batch())
        off = AdapterOff(policy, pair_logps)(policy, plain.batch())  # without a soft prompt
        start = pair_logps(plain.build(ATTENTION), plain.batch())
        again = pair_logps(policy, adapted.batch())
    assert trains == [parameter.requires_grad for parameter in policy.parameters()] and any(trains)
    assert torch.equal(again.chosen, before.chosen) and torch.equal(again.rejected, before.rejected)
    assert torch.equal(off.chosen, start.chosen) and torch.equal(off.rejected, start.rejected)


def words(folder: Path, output: str, name: str) -> list[str]:
    return [
        *("align", "train", "method=dpo", f"adapter={name}", *SMALL.get(name, [])),
        *(f"model.path={folder / 'model'}", f"data.path={folder / 'rows.jsonl'}", "data.eval_size=0"),
        *(
            "trainer.max_steps=4",
            "trainer.save_steps=2",
            "trainer.learning_rate=0.01",
            "trainer.use_cpu=true",
        ),
        *("trainer.save_total_limit=null", f"output={folder / output}"),
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = load_file(folder / "model" / "adapter_model.safetensors")
    return {name: value.double() for name, value in found.items()}  # SHiRA's places are whole numbers


def check_a_run(name: str, folder: Path) -> None:
    """It moves; broken off half-way and gone on it ends the same; exported it computes what the policy does."""
    save_tiny(folder / "model", num_hidden_layers=4)
    make_rows(folder / "rows.jsonl", 8)
    assert run(words(folder, "whole", name)) == [0], (folder / "whole.log").read_text()
    broken_off(folder / "whole", folder / "broken")
    assert run(words(folder, "broken", name)) == [0], (folder / "broken.log").read_text()
    assert "goes on from" in (folder / "broken.log").read_text()
    assert_close(weights(folder / "broken"), weights(folder / "whole"), tolerance=1e-6)
    log = folder / "export.log"
    argv = ["align", "export", f"path={folder / 'whole'}", f"output={folder / 'merged'}", "dtype=float32"]
    if adapter(name).soft_tokens:  # no ordinary model has a place for them
        assert run(argv, log=log) != [0]
        assert "no ordinary model folder has a place for" in log.read_text()
        return
    assert run(argv, log=log) == [0], log.read_text()
    start = AutoModelForCausalLM.from_pretrained(folder / "model")
    policy = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder / "model"), folder / "whole" / "model"
    )
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    ids = torch.arange(8, 72)[None]
    with torch.no_grad():
        before, expected, found = (model(input_ids=ids).logits for model in (start, policy, merged))
    assert (expected - before).abs().max() > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def broken_off(whole: Path, target: Path) -> None:
    """The run's folder as a kill after two steps would have left it."""
    target.mkdir()
    for file in ("config.yaml", "before.json"):
        if (whole / file).is_file():
            shutil.copy(whole / file, target)
    shutil.copytree(whole / "checkpoint-2", target / "checkpoint-2")


@pytest.mark.parametrize("name", RUNS)
def test_a_run(name: str, tmp_path: Path) -> None:
    check_a_run(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in RUNS])
def test_a_run_of_the_others(name: str, tmp_path: Path) -> None:
    check_a_run(name, tmp_path)


def test_rates_of_their_own(tmp_path: Path) -> None:
    """LoRA+: with SGD and one step B moves `rate_ratio` times as far, and A as before."""
    save_tiny(tmp_path / "model")
    make_rows(tmp_path / "rows.jsonl", 4)
    moved = {}
    for ratio in (1, 16):
        own = ["trainer.optim=sgd", "trainer.max_steps=1", "trainer.weight_decay=0", "trainer.warmup_steps=0"]
        argv = [*words(tmp_path, f"ratio-{ratio}", "lora"), *own, f"adapter.rate_ratio={ratio}"]
        assert run(argv) == [0], (tmp_path / f"ratio-{ratio}.log").read_text()
        moved[ratio] = weights(tmp_path / f"ratio-{ratio}")
    for name, value in moved[1].items():
        assert value.any()
        torch.testing.assert_close(
            moved[16][name], value * (16 if "lora_B" in name else 1), rtol=1e-5, atol=0
        )
