"""Mixtures of experts under ZeRO-3: what is refused before weights load, and what DeepSpeed is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align.core.errors import UserError
from align.models.settings import ModelSettings, MoeSettings
from align.training.sharded_experts import check_sharded_experts, prepare_sharded_experts
from tests.longseq.balanced import MIXTURES
from tests.tiny import save_tiny, tiny_model


def launched(stage: int, **zero: Any) -> Any:
    config = {"zero_optimization": {"stage": stage, **zero}}
    return SimpleNamespace(
        deepspeed=True, fsdp=False, world_size=2, deepspeed_plugin=SimpleNamespace(deepspeed_config=config)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    save_tiny(folder, "mixtral", **MIXTURES["mixtral"])
    return folder


def test_experts_one_after_the_other_are_refused_under_zero3_alone(folder):
    def settings(experts: str) -> ModelSettings:
        return ModelSettings(path=str(folder), moe=MoeSettings(experts=experts))

    with pytest.raises(UserError, match=r"wait for each other for ever: set model\.moe\.experts=grouped"):
        check_sharded_experts(settings("eager"), launched(3))
    check_sharded_experts(settings("eager"), launched(2))
    check_sharded_experts(settings("auto"), launched(3))


def test_blocks_of_experts_are_no_leaves():
    model = tiny_model("mixtral", **MIXTURES["mixtral"])
    arguments = launched(3)
    prepare_sharded_experts(model, arguments)
    zero = arguments.deepspeed_plugin.deepspeed_config["zero_optimization"]
    assert zero["leaf_module"] == {"classes": []}
    named = launched(3, leaf_module={"names": ["one"]})
    prepare_sharded_experts(model, named)
    zero = named.deepspeed_plugin.deepspeed_config["zero_optimization"]
    assert zero["leaf_module"] == {"names": ["one"]}


@pytest.mark.parametrize(("kind", "stage"), [("llama", 3), ("mixtral", 2)])
def test_nothing_else_is_touched(kind, stage):
    arguments = launched(stage)
    prepare_sharded_experts(tiny_model(kind, **MIXTURES.get(kind, {})), arguments)
    assert "leaf_module" not in arguments.deepspeed_plugin.deepspeed_config["zero_optimization"]
    model = tiny_model("mixtral", experts_implementation="eager", **MIXTURES["mixtral"])
    with pytest.raises(UserError, match="one after the other"):
        prepare_sharded_experts(model, launched(3))
