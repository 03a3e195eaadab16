"""What `align verify` compares: what the small copy keeps, the padded rows, and a wrong backward, which shows."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module

from align.core.config import typed
from align.longseq import ATTENTION, pack
from align.longseq.parallel import SequenceParallel, start_parallel
from align.longseq.plain_rows import plain_pair_logps
from align.longseq.settings import MemorySettings
from align.models.settings import ModelSettings
from align.verification.comparison import compare, run_all
from align.verification.launched import start_accelerator
from align.verification.small_copy import build_small_copy, random_examples
from align.verify import TOLERANCE, Verification
from tests.distributed import run_distributed
from tests.longseq import plain
from tests.tiny import save_tiny, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny(folder, "qwen3", num_hidden_layers=5)
    return folder


def test_the_small_copy_keeps_heads_and_widths(folder):
    small = build_small_copy(ModelSettings(path=str(folder)), attention="sdpa", seed=0).config
    assert (small.num_hidden_layers, small.num_attention_heads, small.num_key_value_heads) == (2, 4, 2)
    assert (small.hidden_size, small.head_dim, small.model_type) == (64, 16, "qwen3")


def test_plain_rows_agree_with_the_tests_own():
    """Two implementations, written apart."""
    model = tiny_model(vocab_size=512)
    examples = random_examples(3, prompt_tokens=20, answer_tokens=7, seed=1)
    with torch.no_grad():
        actual, expected = plain_pair_logps(model, examples), plain.plain_pair_logps(model, examples)
    torch.testing.assert_close(actual.chosen, expected.chosen)
    torch.testing.assert_close(actual.rejected, expected.rejected)
    assert torch.equal(actual.rejected_length, expected.rejected_length)


def test_random_examples_repeat_and_differ():
    first, second = (random_examples(4, prompt_tokens=20, answer_tokens=7, seed=1) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.prompt_ids, other.prompt_ids)
    assert len({len(example.prompt_ids) for example in first}) > 1
    assert pack(first).num_tokens == sum(example.num_tokens for example in first)


def without_gradient_of_others(parallel: SequenceParallel) -> SequenceParallel:
    """The exchange with the classic wrong backward: keys get no gradient from other ranks' queries."""

    def prepare(row, shards, own, device):
        layout = parallel.prepare(row, shards, own, device)

        def exchange(query, key, value, attend):
            return layout.exchange(query, key.detach(), value, attend)

        return dataclasses.replace(layout, exchange=exchange)

    return dataclasses.replace(parallel, prepare=prepare)


def verdicts(rank: int, size: int, folder: str) -> dict[str, bool]:
    """What `align verify` finds of each exchange as it is, and of the same with a wrong backward."""
    with initialize_config_module("hydra_conf", version_base="1.3"):
        config = compose("verify", [f"model.path={folder}"])
    model, memory = typed(ModelSettings, config, "model"), typed(MemorySettings, config, "memory")
    os.environ["ACCELERATE_USE_CPU"] = "true"
    accelerator = start_accelerator()
    found = {}
    for kind in ("ulysses", "gather"):
        right = start_parallel(kind, size)
        for name, parallel in ((kind, right), (f"broken {kind}", without_gradient_of_others(right))):
            copies = [
                build_small_copy(model, attention=attention, seed=config.seed)
                for attention in ("sdpa", ATTENTION, ATTENTION)
            ]
            outcomes = run_all(config, memory, tuple(copies), accelerator, parallel)
            losses = [outcome.loss for outcome in outcomes]
            assert max(losses) - min(losses) < 1e-4, "a wrong backward does not show in the loss"
            found[name] = Verification(compare(outcomes), TOLERANCE).exact
    return found


def test_a_wrong_backward_is_found(folder):
    """The loss is exact then; only a gradient above the tolerance tells, and gives exit code 1."""
    for found in run_distributed(verdicts, 2, str(folder)):
        assert found == {"ulysses": True, "broken ulysses": False, "gather": True, "broken gather": False}
