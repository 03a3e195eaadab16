"""The lists of keywords of the group `trainer` against the library that takes them."""

from __future__ import annotations

import dataclasses
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
from align.training.trainer_keys import RESERVED, WITHOUT_EFFECT, TrainerKeys, check_trainer_keys
from align.training.trainer_values import OPTIMIZERS, REPORTERS, VALUES

HINTS = typing.get_type_hints(TrainingArguments)
FIELDS = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
ACCEPTED = {field.name for field in dataclasses.fields(TrainerKeys)}


def test_every_keyword_is_in_one_list():
    """A new version's keyword has to be put into one of them: nothing is taken that nobody has looked at."""
    lists = (ACCEPTED, set(RESERVED), set(WITHOUT_EFFECT))
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


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_keyword_that_is_set_elsewhere_names_the_place(name):
    with pytest.raises(UserError, match=rf"trainer\.{name} is set by this toolkit: use "):
        check_trainer_keys({name: None})
