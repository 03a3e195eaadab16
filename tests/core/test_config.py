"""Settings: unknown keys, wrong types and contradictions end in one sentence that names the key."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from omegaconf import MISSING, OmegaConf
from transformers import TrainingArguments

from align.adapters.lora import Lora
from align.core.config import check_arguments, check_choice, typed
from align.core.errors import UserError
from align.models.settings import ModelSettings
from align.reference.settings import ReferenceSettings, resolve_source
from align.training.trainer_keys import RESERVED


@dataclass(frozen=True)
class Inner:
    rank: int = 4


@dataclass(frozen=True)
class Outer:
    name: str = "a"
    size: int | None = None
    inner: Inner = field(default_factory=Inner)


def test_typed_fills_defaults_and_nests():
    settings = typed(Outer, OmegaConf.create({"group": {"size": 3, "inner": {"rank": 8}}}), "group")
    assert settings == Outer("a", 3, Inner(8))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"size": "many"}, r"group\.size=many has the wrong type: it takes a whole number or null"),
        ({"inner": {"rank": "x"}}, r"group\.inner\.rank=x has the wrong type: it takes a whole number"),
        ({"colour": 1}, r"group\.colour"),
    ],
)
def test_typed_names_the_key(values, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        typed(Outer, OmegaConf.create({"group": values}), "group")
    assert "\n" not in str(caught.value)


def test_required_value_that_is_missing():
    @dataclass(frozen=True)
    class Required:
        path: str = MISSING

    with pytest.raises(UserError, match=r"group\.path is not set: give it a value, group\.path=…"):
        typed(Required, OmegaConf.create({"group": {}}), "group")


def test_shipped_model_group_fits_its_schema():
    """The YAML and the dataclass say the same defaults."""
    model = OmegaConf.load("hydra_conf/model/default.yaml")
    del model["defaults"]
    config = OmegaConf.create({"model": model})
    assert typed(ModelSettings, config, "model") == ModelSettings()


def test_choice_suggests():
    with pytest.raises(UserError, match="did you mean full"):
        check_choice("memory.checkpointing", "ful", ("none", "full"))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"learning_rat": 1e-4}, "did you mean learning_rate"),
        ({"max_steps": "10"}, r"trainer\.max_steps='10' has the wrong type: it takes a whole number"),
        ({"max_steps": "ten"}, r"trainer\.max_steps=ten has the wrong type: it takes a whole number"),
        ({"learning_rate": "fast"}, r"trainer\.learning_rate=fast has the wrong type: it takes a number"),
        ({"gradient_checkpointing": True}, r"use memory\.checkpointing instead"),
        ({"output_dir": "x"}, "use output instead"),
    ],
)
def test_trainer_arguments_are_checked(values, sentence):
    with pytest.raises(UserError, match=sentence):
        check_arguments(values, TrainingArguments, group="trainer", reserved=RESERVED)


def test_trainer_arguments_that_fit_pass():
    values = {"learning_rate": 1, "max_steps": -1, "report_to": ["wandb"], "bf16": False, "warmup_steps": 0.1}
    check_arguments(values, TrainingArguments, group="trainer", reserved=RESERVED)


@pytest.mark.parametrize(
    ("settings", "needs", "lora", "expected"),
    [
        (ReferenceSettings(), "none", False, "none"),
        (ReferenceSettings(), "same", True, "adapter_off"),
        (ReferenceSettings(), "same", False, "frozen"),
        (ReferenceSettings(model="other"), "short", True, "frozen"),
        (ReferenceSettings(source="frozen"), "same", True, "frozen"),
    ],
)
def test_reference_source_follows_method_and_lora(settings, needs, lora, expected):
    assert resolve_source(settings, needs=needs, adapter=Lora(r=4) if lora else None, method="m") == expected


@pytest.mark.parametrize(
    ("settings", "lora", "sentence"),
    [
        (ReferenceSettings(source="none"), True, "method=dpo needs a reference"),
        (ReferenceSettings(source="adapter_off"), False, "needs an adapter"),
        (ReferenceSettings(source="adapter_off", model="x"), True, "goes with reference.source=frozen"),
        (ReferenceSettings(source="other"), True, "is not known"),
    ],
)
def test_contradictory_references_are_refused(settings, lora, sentence):
    with pytest.raises(UserError, match=sentence):
        resolve_source(settings, needs="same", adapter=Lora(r=4) if lora else None, method="dpo")
