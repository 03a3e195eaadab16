"""The wrapper that holds the policy is the one that was asked for, or training does not start."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainingArguments

from align.core.errors import UserError
from align.distributed.names import check_quantised
from align.distributed.wrappers import (
    actual_wrapper,
    check_hooks,
    check_launch,
    check_wrapper,
    expected_wrapper,
)


@pytest.fixture
def arguments(tmp_path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])


def test_expectation_follows_the_launcher(arguments):
    assert expected_wrapper(arguments, {}) == "none"
    assert expected_wrapper(arguments, {"ACCELERATE_USE_FSDP": "true"}) == "FSDP"
    assert expected_wrapper(arguments, {"ACCELERATE_USE_DEEPSPEED": "true"}) == "DeepSpeed"
    assert expected_wrapper(arguments, {"ACCELERATE_USE_DEEPSPEED": "false"}) == "none"


def test_silent_substitute_is_refused(arguments, monkeypatch):
    model = torch.nn.Linear(2, 2)
    assert actual_wrapper(model) == "none"
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    check_wrapper(model, arguments)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="FSDP was asked for, but the policy is wrapped in none"):
        check_wrapper(model, arguments)


def test_hooks_of_parameters_are_refused_where_they_would_be_lost(arguments, monkeypatch):
    """FSDP2 exchanges parameters for its own, and a gradient that a hook would have changed stays as it is."""
    model = torch.nn.Linear(2, 2)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_hooks(model, arguments)
    handle = model.bias.register_hook(lambda gradient: gradient / 2)
    with pytest.raises(UserError, match="bias changes its gradient by a hook, which FSDP would lose"):
        check_hooks(model, arguments)
    handle.remove()
    check_hooks(model, arguments)
    model.bias.register_hook(lambda gradient: gradient / 2)
    check_hooks(model.requires_grad_(False), arguments)  # nothing to change
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    check_hooks(model.requires_grad_(True), arguments)


def test_ddp_of_one_process_is_none(arguments, monkeypatch):
    """As torchrun with one process has it."""
    monkeypatch.setattr("align.distributed.wrappers.actual_wrapper", lambda model: "DDP")
    check_wrapper(torch.nn.Linear(2, 2), arguments)
    monkeypatch.setattr("align.distributed.wrappers.actual_wrapper", lambda model: "FSDP")
    with pytest.raises(UserError, match="none was asked for"):
        check_wrapper(torch.nn.Linear(2, 2), arguments)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP was asked for, which accelerate leaves out on CPU"),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_CPU": "true"},
            "DeepSpeed was asked for, .* where ACCELERATE_USE_CPU is set",
        ),
        ({"WORLD_SIZE": "2"}, "The launcher started 2 processes, but accelerate counts 1"),
    ],
)
def test_a_launch_that_accelerate_would_change_is_refused(arguments, environment, sentence):
    with pytest.raises(UserError, match=sentence):
        check_launch(arguments, environment)


@pytest.mark.parametrize("wrapper", ["fsdp2", "zero3", "zero3_offload"])
def test_four_bits_are_not_split(wrapper):
    with pytest.raises(UserError, match=f"nf4 does not train under {wrapper}.* ddp, zero1 or zero2"):
        check_quantised("nf4", wrapper)
    check_quantised("none", wrapper)


@pytest.mark.parametrize("wrapper", ["none", "ddp", "zero1", "zero2"])
def test_four_bits_stay_whole_elsewhere(wrapper):
    check_quantised("nf4", wrapper)


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1"}, {"ACCELERATE_USE_DEEPSPEED": "true"}])
def test_other_launches_are_not(arguments, environment):
    check_launch(arguments, environment)


@pytest.mark.parametrize(
    ("more", "refused"),
    [
        ({}, True),  # accelerate's default for FSDP2
        ({"FSDP_VERSION": "2"}, True),
        ({"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, True),
        ({"FSDP_STATE_DICT_TYPE": "LOCAL_STATE_DICT"}, True),
        ({"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "FSDP_VERSION": "2"}, False),
        ({"FSDP_STATE_DICT_TYPE": "1"}, False),
        ({"FSDP_VERSION": "1"}, False),
    ],
)
def test_fsdp_saves_nothing_that_has_to_be_unpickled(arguments, monkeypatch, more, refused):
    """The index of torch.distributed.checkpoint is a pickle: such a checkpoint would be refused at its resume."""
    monkeypatch.setattr(TrainingArguments, "device", torch.device("cuda"))
    environment = {"ACCELERATE_USE_FSDP": "true", **more}
    if refused:
        with pytest.raises(
            UserError, match="fsdp_state_dict_type: FULL_STATE_DICT in the launch configuration"
        ):
            check_launch(arguments, environment)
    else:
        check_launch(arguments, environment)
