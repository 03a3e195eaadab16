"""Every method of `hydra_conf/method/` gives one loss and one gradient: packed or not, sharded or not, cached or live.

The methods are found from their files, so a new one is tested by itself.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import TrainingArguments

import hydra_conf
from align.data.examples import TokenizedExample
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.parallel import SequenceParallel, start_parallel
from align.models.identity import Identity
from align.reference.cache import Cached, LogpStore
from align.reference.sources import Frozen
from align.training.methods import Method, load_method
from align.training.trainer import PreferenceTrainer
from tests.distributed import run_distributed
from tests.longseq.plain import as_needed, assert_close, make_example
from tests.tiny import tiny_model

FILES = sorted((Path(hydra_conf.__file__).parent / "method").glob("*.yaml"))
NAMES = [file.stem for file in FILES]
# Of the scales that the YAMLs set, some leave a random model's σ flat; every answer has to show in the gradient.
SCALES = {
    "logo": {"beta": 1.0, "gamma": 0.5},
    "longpo": {"preference_weight": 1.0},
    "hinge_dpo": {"beta": 0.01},
}


@cache
def method(name: str) -> Method:
    config = OmegaConf.load(next(file for file in FILES if file.stem == name))
    config.loss.update(SCALES.get(name, {}))
    return load_method(config)


@cache
def examples() -> tuple[TokenizedExample, ...]:
    """Four rows of unlike sizes; the first has two turns on short contexts, and one answer is far longer."""
    rng = np.random.default_rng(0)
    rows = []
    for i, answers in enumerate([(4, 7), (25, 3), (2, 5), (6, 6)]):
        row = make_example(rng, prompt=int(rng.integers(12, 30)), answers=answers)
        turns = 2 if i == 0 else 1
        short = tuple(make_example(rng, prompt=5, answers=answers) for _ in range(turns))
        rows.append(replace(row, short=short))
    return tuple(rows)


def inputs(name: str, tokens_per_row: int | None) -> dict:
    rng, needs = np.random.default_rng(1), method(name).needs
    other = -1.0 if needs.answers == "unrelated" else 0.0
    rows = []
    for i, row in enumerate(as_needed(rng, row, needs) for row in examples()):
        labels = [float(i != 1), other]  # the second row's own answer is a bad one
        kinds = needs.columns.values()
        numbers = [labels if kind == "label" else rng.random(len(row.answers)) for kind in kinds]
        rows.append(replace(row, columns=np.array(numbers) if numbers else None))
    return {
        "batch": pack(rows, tokens_per_row=tokens_per_row, fronts=needs.fronts),
        "short": pack([turn for row in rows for turn in row.short], tokens_per_row=tokens_per_row),
        "owner": torch.tensor([b for b, row in enumerate(rows) for _ in row.short]),
        "real": torch.tensor([True, True, False, True]),  # a placeholder counts nowhere
    }


def forwardable(seed: int) -> torch.nn.Module:
    model = tiny_model(initializer_range=0.1, seed=seed)
    model.set_attn_implementation(ATTENTION)
    return model


def refuse() -> torch.nn.Module:
    raise AssertionError("the reference was loaded although the cache has every row")


def step(
    folder: Path,
    name: str,
    *,
    tokens_per_row: int | None = None,
    store: Path | None = None,
    filled: bool = False,
    parallel: SequenceParallel | None = None,
) -> dict[str, Tensor]:
    """Loss (as `loss`) and every parameter's gradient of one micro-batch, as the trainer computes them."""
    forward = partial(pair_logps, parallel=parallel)
    live = Frozen(refuse if filled else lambda: forwardable(1), forward)
    reference = live if store is None else Cached(live, LogpStore(store / name), Identity({"model": "tests"}))
    trainer = PreferenceTrainer(
        forwardable(0),
        TrainingArguments(output_dir=str(folder), report_to=[], use_cpu=True, remove_unused_columns=False),
        method=method(name),
        reference=reference,
        parallel=parallel,
        logits_chunk=8,
        data_collator=lambda rows: rows,
    )
    batch = inputs(name, tokens_per_row)
    total = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=total)
    named = dict(trainer.model.named_parameters())
    gradients = torch.autograd.grad(loss, list(named.values()))
    return {"loss": loss.detach()[None], **dict(zip(named, gradients, strict=True))}


@pytest.mark.parametrize("name", NAMES)
def test_packed_and_cached_equal_plain_and_live(name, tmp_path):
    """One row for all prompts, one for each, several; the reference live, filling its cache, and from it alone."""
    expected = step(tmp_path, name)
    assert_close(step(tmp_path, name, tokens_per_row=1), expected)
    assert_close(step(tmp_path, name, tokens_per_row=45), expected)
    assert_close(step(tmp_path, name, store=tmp_path, tokens_per_row=45), expected)
    assert_close(step(tmp_path, name, store=tmp_path, filled=True), expected)


def of_each_need() -> list[str]:
    """The first method of every set of needs: what processes share depends on nothing else of a method."""
    first: dict[str, str] = {}
    for name in NAMES:
        first.setdefault(repr(method(name).needs), name)
    return list(first.values())


def sharded_steps(rank: int, size: int, folder: Path, names: list[str]) -> dict[str, list[dict[str, Tensor]]]:
    """Of each method the world's mean gradient at degree `size`: live and filling a cache, then from it alone."""
    parallel = start_parallel("gather", size)
    found: dict[str, list[dict[str, Tensor]]] = {}
    for name in names:
        store = folder / f"rank{rank}"  # each rank its own, so that none finds the other's entries
        steps = [
            step(folder, name, parallel=parallel, tokens_per_row=45),
            step(folder, name, parallel=parallel, store=store),
            step(folder, name, parallel=parallel, store=store, filled=True),
        ]
        for values in steps:
            for value in values.values():
                torch.distributed.all_reduce(value)
                value /= size
        found[name] = steps
    return found if rank == 0 else {}


def check_degree_two(folder: Path, names: list[str]) -> None:
    """Two processes that share each row; one spawn for all methods."""
    found = run_distributed(sharded_steps, 2, folder, names)[0]
    assert list(found) == names
    for name, steps in found.items():
        expected = step(folder, name)
        for values in steps:
            assert_close(values, expected)


def test_degree_two_equals_one_process_cached_or_live(tmp_path):
    check_degree_two(tmp_path, of_each_need())


@pytest.mark.slow
def test_degree_two_of_the_others(tmp_path):
    check_degree_two(tmp_path, [name for name in NAMES if name not in of_each_need()])
