"""The wrapper that holds the policy is the one that was asked for, or training does not start."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainingArguments

from align.errors import UserError
from align.wrappers import actual_wrapper, check_wrapper, expected_wrapper


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
