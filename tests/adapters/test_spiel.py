"""SpIEL-AG: the published numbers, dense gradients, a run against a plain one, any number of processes, broken runs."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from align.adapters.dense import watch_weight
from align.adapters.reselecting import STATE, Reselection
from align.adapters.reselection import (
    Window,
    aged_step,
    closes,
    exchanged,
    in_window,
    moments_of,
    share_at,
)
from align.adapters.spiel import Spiel
from align.core.errors import UserError
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.parallel import start_parallel
from align.plan import check
from align.runs.api import compose
from align.training.trainer import PreferenceTrainer
from tests.adapters.contract import examples, held_to_the_contract, loss_of
from tests.distributed import run_distributed
from tests.forked import run
from tests.longseq.plain import assert_close
from tests.planning.plans import plan
from tests.rows import make_rows
from tests.tiny import save_tiny, tiny_model
from tests.training.helpers import LOGO, make_trainer

ADAPTER_WEIGHTS = "adapter_model.safetensors"

# ---- the published numbers

G1 = [0.5, -0.1, 0.2, 0, 0.3, -0.9, 0.1, 0.4, -0.7, 0.05, 0.6, -0.2]
G2 = [0.4, 0.2, -0.1, 0.1, 0.2, -0.7, 0.3, 0.5, 0.1, 0, 0.8, -0.3]
G3 = [-0.2, 0.1, 0.3, 0.2, 0.1, -0.5, 0.2, -0.1, -0.3, 0.1, 0.4, -0.4]
BETAS = (0.9, 0.999)


def of(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def near(actual: torch.Tensor, *expected: float) -> None:
    torch.testing.assert_close(actual, of(*expected), rtol=0, atol=1e-8)


def collected() -> Window:
    window = Window.opened(of(*G1).view(3, 4), 4)
    for gradient in (G2, G3):
        window.add(of(*gradient)[window.candidates])
    return window


def test_a_window_of_three_steps():
    window = collected()
    assert window.candidates.tolist() == [5, 8, 10, 0]
    near(window.total, -2.1, -0.9, 1.8, 0.7)
    near(window.squares, 1.55, 0.59, 1.16, 0.45)


def test_the_smallest_give_way_to_the_largest_and_what_would_return_stays():
    """10 and 1 are dropped, 5 and 10 grown: 10 stays as it was, and 5 takes the place of 1, three steps old."""
    places, values = torch.tensor([1, 4, 7, 10]), of(0.02, -0.30, 0.05, -0.01)
    free, taking = exchanged(places, values, collected(), count=2)
    assert free.tolist() == [0] and collected().candidates[taking].tolist() == [5]
    mean, square = moments_of(collected(), taking, steps=3, betas=BETAS)
    near(mean, -0.18970000)
    near(square, 0.00154845)


def test_nothing_is_exchanged_where_nothing_is_to_be():
    free, taking = exchanged(torch.tensor([1, 4, 7, 10]), of(1, 2, 3, 4), collected(), count=0)
    assert len(free) == len(taking) == 0


def test_a_step_with_an_age_for_each_weight():
    young = aged_step(
        of(0, 0.02),
        (0.1 * of(0.5, -0.25), 0.001 * of(0.5, -0.25) ** 2),
        torch.tensor([1, 1]),
        learning_rate=1e-3,
        betas=BETAS,
        epsilon=1e-6,
        decay=0.0,
    )
    near(young, -0.00099994, 0.02099987)
    mean, square = 0.9 * of(0.19) + 0.1 * of(0.5), 0.999 * of(0.000753) + 0.001 * of(0.5) ** 2
    near(mean, 0.221)
    near(square, 0.00100225)
    older = aged_step(
        of(0),
        (mean, square),
        torch.tensor([3]),
        learning_rate=1e-3,
        betas=BETAS,
        epsilon=1e-6,
        decay=30.0,
    )
    near(older, -0.00136785)


def test_windows_and_shares():
    windows = [update for update in range(1, 50) if in_window(update, every=20, collect=5)]
    assert windows == [*range(1, 6), *range(20, 26), *range(40, 46)]
    assert [update for update in range(1, 50) if closes(update, every=20, collect=5)] == [5, 25, 45]

    def shares(schedule: str) -> list[float]:
        settings = {"total": 100, "collect": 5, "rate": 0.2, "schedule": schedule}
        return [share_at(update, **settings) for update in (5, 25, 45)]

    assert shares("linear") == pytest.approx([1.0, 0.15, 0.11], abs=1e-12)
    assert shares("cosine") == pytest.approx([0.19876883, 0.17071068, 0.11564345], abs=5e-9)


# ---- the adapter


def test_the_adapter_is_exact(tmp_path: Path) -> None:
    held_to_the_contract(Spiel(r=4), tmp_path)


def test_places_differ_between_layers_and_follow_from_the_seed():
    def places(seed: int) -> list[torch.Tensor]:
        policy = Spiel(r=2, seed=seed).add(tiny_model())
        return [layer.places for layer in Reselection(policy, **CHOICE).layers.values()]

    first, again, other = places(1), places(1), places(2)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[1], first[2])  # keys and values are of one size
    assert all(len(each.unique()) == len(each) for each in first)


@pytest.mark.parametrize(
    ("checkpointing", "mlp_chunk"), [("none", None), ("full", None), ("keep_attention", None), ("full", 7)]
)
def test_dense_gradients_are_those_of_full_training(checkpointing: str, mlp_chunk: int | None) -> None:
    """Of two micro-batches, one after the other, each counted once however often a layer is computed."""
    name = "model.layers.1.mlp.down_proj"
    full = tiny_model(initializer_range=0.1).double()
    full.set_attn_implementation(ATTENTION)
    sparse: Any = Spiel(r=4).add(tiny_model(initializer_range=0.1)).double().train()
    sparse.get_base_model().set_attn_implementation(ATTENTION)
    apply_checkpointing(sparse, checkpointing, mlp_chunk=mlp_chunk)
    seen: list[torch.Tensor] = []
    watch_weight(sparse.get_base_model().get_submodule(name), seen.append, when=lambda: True)
    for rows in (examples()[:1], examples()[1:]):
        for model in (full, sparse):
            loss_of(pair_logps(model, pack(rows), nll_scope="chosen")).backward()
    expected = full.get_submodule(name).weight.grad
    assert_close({"dense": sum(seen)}, {"dense": expected}, tolerance=1e-10)


# ---- in training

CHOICE = {"every": 4, "collect": 2, "rate": 0.5, "schedule": "linear"}
STEPS = 11


class Recording(PreferenceTrainer):
    """Remembers the batches that it trains on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.read: list[Any] = []

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.read.append(inputs["batch"])
        return super().compute_loss(model, inputs, *args, **kwargs)


def trainer_of(folder: Path, parallel: Any = None, **arguments: Any) -> tuple[Any, Reselection]:
    """Eleven steps of AdamW in fp64 with choices after 2, 6 and 10."""
    policy: Any = Spiel(r=3, target_modules=["q_proj", "down_proj"]).add(tiny_model(initializer_range=0.1))
    policy.double().get_base_model().set_attn_implementation(ATTENTION)
    settings = {"optim": "adamw_torch", "learning_rate": 0.01, "weight_decay": 0.3, "adam_epsilon": 1e-6}
    settings |= {"lr_scheduler_type": "linear", "max_steps": STEPS, "max_grad_norm": 0.5}
    trainer = make_trainer(folder, model=policy, parallel=parallel, kind=Recording, **settings | arguments)
    choosing = Reselection(policy, **CHOICE)
    trainer.add_callback(choosing)
    return trainer, choosing


def trained(choosing: Reselection) -> dict[str, torch.Tensor]:
    """Of each layer the matrix of what is added, and the ages at its places."""
    found = {}
    for name, layer in choosing.layers.items():
        size = (layer.layer.out_features, layer.layer.in_features)
        for what, values in (("values", layer.values.detach()), ("ages", layer.ages)):
            flat = torch.zeros(math.prod(size), dtype=torch.float64)
            flat[layer.places] = values.double()
            found[f"{name}/{what}"] = flat
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("alone")


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, torch.Tensor]:
    """One process, one micro-batch a step; a checkpoint after each is in `folder`."""
    trainer, choosing = trainer_of(folder, save_strategy="steps", save_steps=1)
    trainer.train()
    return trained(choosing)


class Plain:
    """SpIEL-AG on one weight, each of its numbers by itself: what the run is held against."""

    def __init__(self, weight: torch.nn.Parameter, places: list[int]) -> None:
        self.weight, self.start = weight, weight.detach().clone()
        self.state = {place: {"value": 0.0, "age": 0, "m": 0.0, "v": 0.0} for place in places}
        self.sums: dict[int, list[float]] = {}
        self.steps = 0

    def write(self) -> None:
        flat = self.start.flatten().clone()
        for place, each in self.state.items():
            flat[place] += each["value"]
        self.weight.data = flat.view_as(self.start)

    def collect(self) -> None:
        gradient = self.weight.grad.flatten().tolist()
        if not self.sums:
            order = sorted(range(len(gradient)), key=lambda i: -abs(gradient[i]))
            self.sums = {place: [0.0, 0.0] for place in order[: len(self.state)]}
        for place, sums in self.sums.items():
            sums[0] += gradient[place]
            sums[1] += gradient[place] ** 2
        self.steps += 1

    def step(self, rate: float, scale: float) -> None:
        gradient = self.weight.grad.flatten().tolist()
        for place, each in self.state.items():
            g = gradient[place] * scale
            each["age"] += 1
            each["m"] = 0.9 * each["m"] + 0.1 * g
            each["v"] = 0.999 * each["v"] + 0.001 * g * g
            first, second = 1 - 0.9 ** each["age"], 1 - 0.999 ** each["age"]
            each["value"] -= rate * each["m"] * math.sqrt(second) / (first * (math.sqrt(each["v"]) + 1e-6))
            each["value"] *= 1 - rate * 0.3

    def choose(self, share: float) -> None:
        count = int(share * len(self.state))
        dropped = sorted(self.state, key=lambda place: abs(self.state[place]["value"]))[:count]
        rest = self.state.keys() - set(dropped)
        grown = sorted(self.sums.keys() - rest, key=lambda place: -abs(self.sums[place][0]))[:count]
        for place in set(dropped) - set(grown):
            del self.state[place]
        for place in set(grown) - set(dropped):
            mean, square = (each / self.steps for each in self.sums[place])
            moments = {"m": mean * (1 - 0.9**self.steps), "v": square * (1 - 0.999**self.steps)}
            self.state[place] = {"value": 0.0, "age": self.steps, **moments}
        self.sums, self.steps = {}, 0


def test_a_run_is_the_plain_one(tmp_path: Path, alone: dict[str, torch.Tensor]) -> None:
    """Full gradients of the model itself, and every number of the rule kept by itself in Python."""
    trainer, choosing = trainer_of(tmp_path)
    full: Any = tiny_model(initializer_range=0.1).double()
    full.set_attn_implementation(ATTENTION)
    plain = {
        name: Plain(full.get_submodule(name.removeprefix("base_model.model.")).weight, layer.places.tolist())
        for name, layer in choosing.layers.items()
    }
    trainer.train()
    for step, batch in enumerate(trainer.read):
        update, rate = step + 1, 0.01 * (1 - step / STEPS)
        full.zero_grad()
        LOGO.loss(pair_logps(full, batch)).loss.mean().backward()
        trains = [each.weight.grad.flatten()[list(each.state)] for each in plain.values()]
        scale = min(1.0, 0.5 / (torch.cat(trains).norm().item() + 1e-6))
        for each in plain.values():
            each.step(rate, scale)
            if update in (1, 2, 4, 5, 6, 8, 9, 10):
                each.collect()
            if update in (2, 6, 10):
                each.choose(1.0 if update == 2 else 0.5 * (1 - update / STEPS))
            each.write()
    found = trained(choosing)
    assert_close(found, alone, tolerance=0)
    for name, each in plain.items():
        for what, key in (("values", "value"), ("ages", "age")):
            expected = torch.zeros(each.start.numel(), dtype=torch.float64)
            for place, state in each.state.items():
                expected[place] = state[key]
            assert_close({name: found[f"{name}/{what}"]}, {name: expected}, tolerance=1e-8)


@pytest.mark.parametrize("step", [1, 2, 3, 5, 6, 9])
def test_a_run_broken_off_after_any_step_goes_on(folder: Path, tmp_path: Path, alone: Any, step: int) -> None:
    """In the middle of a window, between two, and right after a choice."""
    resumed, choosing = trainer_of(tmp_path)
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert_close(trained(choosing), alone, tolerance=1e-12)


def test_a_checkpoint_without_the_state_is_not_gone_on_from(tmp_path: Path) -> None:
    trainer, _ = trainer_of(tmp_path, save_strategy="steps", save_steps=1, max_steps=1)
    trainer.train()
    (tmp_path / "checkpoint-1" / STATE).unlink()
    resumed, _ = trainer_of(tmp_path)
    with pytest.raises(UserError, match=r"checkpoint-1 holds no spiel\.safetensors"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def on_two(rank: int, size: int, folder: Path, degree: int) -> dict[str, torch.Tensor]:
    """Four prompts a step, on two shards of each row or in two groups."""
    parallel = start_parallel("gather" if degree > 1 else "none", degree)
    spread = {"per_device_train_batch_size": degree, "gradient_accumulation_steps": 2}
    trainer, choosing = trainer_of(folder, parallel, **spread)
    trainer.train()
    return trained(choosing)


@pytest.mark.parametrize("degree", [2, 1], ids=["degree 2", "2 groups"])
def test_any_number_of_processes_chooses_the_same(tmp_path: Path, alone: Any, degree: int) -> None:
    """One micro-batch of four prompts in one process; two of two on two shards; two of one in each of two groups."""
    for found in run_distributed(on_two, 2, tmp_path, degree):
        assert_close(found, alone, tolerance=1e-7)


def test_plain_gradient_descent_has_no_moments(tmp_path: Path) -> None:
    trainer, choosing = trainer_of(tmp_path, optim="sgd", weight_decay=0.0)
    starts = {name: layer.places for name, layer in choosing.layers.items()}
    trainer.train()
    assert all(not torch.equal(layer.places, starts[name]) for name, layer in choosing.layers.items())
    assert all(len(layer.places.unique()) == len(layer.places) for layer in choosing.layers.values())


def test_the_command_goes_on_and_exports(tmp_path: Path) -> None:
    """`align train adapter=spiel`, killed after four of six steps and started again: the unbroken run's adapter."""
    save_tiny(tmp_path / "model")
    make_rows(tmp_path / "rows.jsonl", 12)

    def argv(name: str) -> list[str]:
        return [
            *("align", "train", f"model.path={tmp_path / 'model'}", f"data.path={tmp_path / 'rows.jsonl'}"),
            *("adapter=spiel", "adapter.r=3", "adapter.every=3", "adapter.collect=1", "trainer.max_steps=6"),
            *("trainer.save_steps=2", "trainer.learning_rate=0.01", f"output={tmp_path / name}"),
        ]

    assert run(argv("whole")) == [0]
    (tmp_path / "broken").mkdir()
    for name in ("config.yaml", "before.json"):
        shutil.copy(tmp_path / "whole" / name, tmp_path / "broken")
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "broken" / "checkpoint-4")
    assert run(argv("broken")) == [0]
    whole, broken = (load_file(tmp_path / name / "model" / ADAPTER_WEIGHTS) for name in ("whole", "broken"))
    assert whole.keys() == broken.keys() and all(torch.equal(whole[name], broken[name]) for name in whole)
    export = ["align", "export", f"path={tmp_path / 'whole'}", f"output={tmp_path / 'exported'}"]
    assert run(export) == [0]
    start, merged = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "exported"))
    moved = {name: int((start[name] != merged[name]).sum()) for name in merged}
    assert moved["model.layers.0.self_attn.q_proj.weight"] in range(1, 3 * 128 + 1)
    assert moved["model.embed_tokens.weight"] == 0


# ---- what is refused


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"r": 0}, r"adapter\.r=0 is no rank"),
        ({"r": 4, "collect": 20}, r"adapter\.collect=20 does not fit adapter\.every=20"),
        ({"r": 4, "collect": 0}, r"adapter\.collect=0 does not fit"),
        ({"r": 4, "rate": 0.0}, r"adapter\.rate=0\.0 is no share"),
        ({"r": 4, "schedule": "steps"}, r"adapter\.schedule=steps"),
    ],
)
def test_wrong_keys_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Spiel(**keys).check()


@pytest.mark.parametrize(
    ("wrapper", "arguments", "said"),
    [
        ("ddp", {"optim": "adafactor"}, r"trainer\.optim=adafactor keeps others than torch's AdamW"),
        ("zero2", {}, "which zero2 splits over processes: launch with ddp"),
        ("fsdp2", {}, "which fsdp2 splits over processes"),
    ],
)
def test_launches_that_split_weights_or_keep_other_moments_are_refused(wrapper, arguments, said, tmp_path):
    settings = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **arguments)
    with pytest.raises(UserError, match=said):
        Spiel(r=4).check_launch(wrapper, settings)
    Spiel(r=4).check_launch("ddp", TrainingArguments(output_dir=str(tmp_path), use_cpu=True))


def test_a_plan_counts_what_is_collected_and_takes_ddp_alone() -> None:
    """Llama-3-8B: 32 layers of 218,103,808 weights in linear layers, 4 bytes each in the first step of a window."""
    words = ("model=llama3_8b", "method=dpo", "rows.prompt=3000", "wrapper=ddp")
    made, fixed = (plan(*words, f"adapter={name}") for name in ("spiel", "lora"))
    assert made.sizes.collected == 32 * 218_103_808 and fixed.sizes.collected == 0
    more = made.given.memory.gradients - fixed.given.memory.gradients
    trained = 4 * (made.sizes.trainable - fixed.sizes.trainable)
    assert more - trained == pytest.approx(4 * made.sizes.collected, rel=1e-6)
    assert made.best is not None and made.best.strategy.wrapper == "ddp"


def test_a_plan_of_another_wrapper_is_refused() -> None:
    with pytest.raises(UserError, match="adapter=spiel does not train under wrapper=zero3: set wrapper=ddp"):
        check(compose("plan", ["model=llama3_8b", "adapter=spiel", "rows.prompt=3000"]))
