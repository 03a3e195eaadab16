"""The lists of keywords of the group `trainer` against the library that takes them."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from enum import Enum

import pytest
from transformers import IntervalStrategy, SchedulerType, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.training_args import OptimizerNames

from align.core.errors import UserError
from align.training import trainer_values
from align.training.run import check_scheduler
from align.training.trainer_keys import REFUSED, RESERVED, WITHOUT_EFFECT, TrainerKeys, check_trainer_keys
from align.training.trainer_values import OPTIMIZERS, RANGES, REPORTERS, VALUES
from tests.training.helpers import make_trainer

HINTS = typing.get_type_hints(TrainingArguments)
FIELDS = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
ACCEPTED = {field.name for field in dataclasses.fields(TrainerKeys)}


def test_every_keyword_is_in_one_list():
    """A new version's keyword has to be put into one of them: nothing is taken that nobody has looked at."""
    lists = (ACCEPTED, set(RESERVED), set(WITHOUT_EFFECT), set(REFUSED))
    assert set().union(*lists) >= FIELDS
    for i, first in enumerate(lists):
        for second in lists[i + 1 :]:
            assert not first & second
    # The library knows all that is accepted; older spellings may be reserved beside.
    assert ACCEPTED | set(WITHOUT_EFFECT) <= FIELDS


@pytest.mark.parametrize("name", sorted(ACCEPTED))
def test_types_are_the_librarys(name):
    """A plain type as it is; `Any` stands for what is not plain (names of schedulers, dictionaries, lists)."""
    ours, theirs = typing.get_type_hints(TrainerKeys)[name], HINTS[name]
    union = typing.get_origin(theirs) in (typing.Union, types.UnionType)
    options = set(typing.get_args(theirs)) if union else {theirs}
    plain = options <= {int, float, bool, str, type(None)}
    if name == "bf16":
        theirs = theirs | None  # null follows model.dtype
    assert (ours == theirs) if plain else (ours is typing.Any)


def test_values_are_the_librarys():
    kinds: dict[str, type[Enum]] = {"eval_strategy": IntervalStrategy, "logging_strategy": IntervalStrategy}
    kinds |= {"save_strategy": SaveStrategy, "hub_strategy": HubStrategy, "optim": OptimizerNames}
    kinds["lr_scheduler_type"] = SchedulerType
    assert {name: {each.value for each in kind} for name, kind in kinds.items()} == {
        name: set(values) for name, values in VALUES.items()
    }


def test_places_to_report_to_are_the_librarys():
    assert set(REPORTERS) == set(INTEGRATION_TO_CALLBACK)


@pytest.mark.parametrize("package", OPTIMIZERS)
def test_an_optimizer_whose_package_is_missing_is_refused(monkeypatch, package):
    monkeypatch.setattr(trainer_values, "_installed", lambda module: module == "torch")
    for name in OPTIMIZERS[package]:
        if package == "torch":
            check_trainer_keys({"optim": name})
        else:
            with pytest.raises(
                UserError, match=rf"trainer\.optim={name} needs the package {package}: `pip install"
            ):
                check_trainer_keys({"optim": name})


@pytest.mark.parametrize("given", ["wandb", ["none", "wandb"]])
def test_a_reporter_whose_package_is_missing_is_refused(monkeypatch, given):
    monkeypatch.setattr(trainer_values, "_installed", lambda module: module != "wandb")
    with pytest.raises(UserError, match=r"trainer\.report_to=wandb needs the package wandb"):
        check_trainer_keys({"report_to": given})
    check_trainer_keys({"report_to": ["tensorboard", "all"]})


@pytest.mark.parametrize("name", sorted(WITHOUT_EFFECT))
def test_a_keyword_without_effect_is_refused(name):
    with pytest.raises(UserError, match=rf"trainer\.{name} has no effect here \(.+\): leave it out"):
        check_trainer_keys({name: True})


def test_noise_that_depends_on_packing_is_refused():
    """NEFTune's bound is alpha / sqrt(T · H) with T the length of the packed row"""
    with pytest.raises(UserError, match=r"trainer\.neftune_noise_alpha is not taken here .*packing"):
        check_trainer_keys({"neftune_noise_alpha": 5.0})


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_keyword_that_is_set_elsewhere_names_the_place(name):
    with pytest.raises(UserError, match=rf"trainer\.{name} is set by this toolkit: use "):
        check_trainer_keys({name: None})


NUMBERS = {
    name
    for name, hint in typing.get_type_hints(TrainerKeys).items()
    if {int, float} & ({hint} | set(typing.get_args(hint)))
}


def test_every_number_has_a_range():
    """A new keyword that is a number has to be looked at."""
    assert set(RANGES) == NUMBERS


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_what_no_training_can_be_done_with_is_refused(name):
    kind = typing.get_type_hints(TrainerKeys)[name]
    wrong = [-2] if int in (kind, *typing.get_args(kind)) else [-2, -1, float("nan"), float("-inf")]
    for value in wrong:
        with pytest.raises(UserError, match=rf"trainer\.{name}={value} cannot be used: give "):
            check_trainer_keys({name: value})


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_the_librarys_own_defaults_are_taken(name):
    default = next(field.default for field in dataclasses.fields(TrainingArguments) if field.name == name)
    check_trainer_keys({name: default})


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("max_steps", (-1, 1, 10), (0, -2)),
        ("num_train_epochs", (0.01, 3), (0, float("inf"))),
        ("gradient_accumulation_steps", (1,), (0,)),
        ("per_device_eval_batch_size", (1,), (0,)),
        ("learning_rate", (0, 1e-6), (float("inf"),)),
        ("adam_beta1", (0, 0.9, 0.999999), (1, 1.5)),
        ("adam_epsilon", (1e-12,), (0,)),
        ("max_grad_norm", (0, 1.0, float("inf")), (-1, float("nan"))),
        ("save_steps", (0.1, 1, 500), (0,)),
        ("save_total_limit", (None, 1), (0,)),
        ("warmup_steps", (0, 0.1, 100), (-0.1,)),
    ],
)
def test_the_bounds_of_a_range(name, good, bad):
    for value in good:
        check_trainer_keys({name: value})
    for value in bad:
        with pytest.raises(UserError, match=rf"trainer\.{name}={value} cannot be used"):
            check_trainer_keys({name: value})


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (
            "cosine",
            {"bogus": 1},
            r"lr_scheduler_kwargs=\{bogus: 1\} does not go with trainer.lr_scheduler_type=cosine",
        ),
        ("cosine_with_min_lr", {}, "lr_scheduler_type=cosine_with_min_lr"),
        ("warmup_stable_decay", {}, "num_decay_steps"),
        ("cosine", {"num_cycles": "many"}, "num_cycles: many"),
        (
            "cosine_with_min_lr",
            {"min_lr_rate": 2},
            r"kwargs\.min_lr_rate=2 is no floor .*: give a number from 0 to 1\.",
        ),
        ("cosine_with_min_lr", {"min_lr_rate": -1}, r"kwargs\.min_lr_rate=-1 is no floor"),
        (
            "cosine_with_min_lr",
            {"min_lr": 1e-3},
            r"min_lr=0\.001 is no floor .* to 5e-05, which is trainer\.learning_rate",
        ),
        ("cosine_with_min_lr", {"min_lr": 1e-6, "min_lr_rate": 0.1}, "Only one of min_lr or min_lr_rate"),
    ],
)
def test_a_schedule_that_does_not_take_its_settings_is_refused(tmp_path, kind, given, said):
    """It ended in a traceback, behind the model's load."""
    with pytest.raises(UserError, match=said):
        check_scheduler(
            TrainingArguments(str(tmp_path), lr_scheduler_type=kind, lr_scheduler_kwargs=given, use_cpu=True)
        )


@pytest.mark.parametrize("floor", [{"min_lr_rate": 0.1}, {"min_lr": 0.005}])
def test_the_floor_of_the_schedule_is_where_it_ends(tmp_path, floor):
    """ProLong's cosine from 0.05 to a tenth of it, behind a warm-up: 0.025, 0.05, then down to 0.005."""
    trainer = make_trainer(
        tmp_path,
        max_steps=8,
        num_train_epochs=4,
        warmup_steps=2,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs=floor,
    )
    trainer.train()
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    half = (1 + math.cos(math.pi / 2)) / 2  # half of the way down, at step 5
    assert rates[:3] == pytest.approx([0.0, 0.025, 0.05]) and rates[5] == pytest.approx(0.005 + 0.045 * half)
    assert trainer.lr_scheduler.get_last_lr() == pytest.approx([0.005, 0.005])


@pytest.mark.parametrize("kind", sorted(VALUES["lr_scheduler_type"]))
def test_every_schedule_goes_with_what_it_needs(tmp_path, kind):
    needed = {
        "cosine_with_min_lr": {"min_lr_rate": 0.1},
        "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
        "warmup_stable_decay": {"num_decay_steps": 3},
    }
    given = needed.get(kind)
    check_scheduler(
        TrainingArguments(
            str(tmp_path),
            lr_scheduler_type=kind,
            lr_scheduler_kwargs=given,
            use_cpu=True,
            eval_strategy="steps",
            eval_steps=1,
        )
    )
