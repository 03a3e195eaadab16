"""Rows of a step shared out by their cost: the same rows, the same loss, and groups that are done at about one time."""

from __future__ import annotations

from functools import partial
from itertools import chain, permutations
from typing import Any

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from torch.utils.data import BatchSampler

from align.core.errors import UserError
from align.data.orders import Buckets, Grow, Shuffled
from align.data.stored_rows import FEATURES, to_example, to_row
from align.longseq import ATTENTION, pack
from align.training.collate import Collator
from align.training.even_groups import Arrangement, share_out
from align.training.row_costs import costs_of, tokens_of
from align.training.sampling import PLACEHOLDER, EpochSampler
from align.training.trainer import PreferenceTrainer
from tests.distributed import run_distributed
from tests.longseq.plain import assert_close, make_example
from tests.tiny import tiny_model
from tests.training.helpers import LOGO, make_trainer, weights


def stored(count: int, seed: int = 0) -> Dataset:
    """Rows of unlike sizes as `align.data` stores them."""
    rng = np.random.default_rng(seed)
    rows = [
        to_row(make_example(rng, prompt=int(rng.integers(4, 60)), answers=rng.integers(1, 9, 3)))
        for _ in range(count)
    ]
    return Dataset.from_list(rows, features=FEATURES).with_format("numpy")


# ---- costs


def test_costs_are_what_the_docstring_says():
    example = make_example(np.random.default_rng(0), prompt=1000, answers=[100, 50])
    rows = Dataset.from_list([to_row(example)], features=FEATURES)
    of = partial(costs_of, rows, attention="auto", hidden=1024)
    assert of("none") is None
    assert of("tokens") == [1150]
    assert of("pairs") == [656_825]
    assert of("work") == pytest.approx([1256.9], abs=0.05)


@pytest.mark.parametrize("attention", ["auto", "library", "masked"])
def test_costs_count_the_tokens_and_pairs_that_are_read(attention):
    """Against masks that are written out; rows that were selected keep their own costs."""
    rows = stored(9).select([7, 2, 2, 0])
    expected = [counted(to_example(row), attention) for row in rows]
    for name, column in (("tokens", 0), ("pairs", 1)):
        found = costs_of(rows, name, attention=attention, hidden=64)
        assert found.tolist() == [each[column] for each in expected]
    work = costs_of(rows, "work", attention=attention, hidden=64)
    np.testing.assert_allclose(work, [tokens + pairs / 384 for tokens, pairs in expected])


def counted(example: Any, attention: str) -> tuple[int, int]:
    prompt, answers = len(example.prompt_ids), [len(answer.input_ids) for answer in example.answers]
    if attention == "library":
        sizes = [prompt + answer for answer in answers]
        return sum(sizes), sum(int(np.tril(np.ones((size, size))).sum()) for size in sizes)
    whole = prompt + sum(answers)
    if attention == "masked":
        return whole, whole * whole
    seen, start = np.tril(np.ones((whole, whole))), prompt
    for answer in answers:
        seen[start + answer :, start : start + answer] = 0
        start += answer
    return whole, int(seen.sum())


def test_tokens_are_those_of_the_packed_rows():
    rows = stored(5)
    packed = pack([to_example(row) for row in rows])
    assert tokens_of(rows).sum() == packed.num_tokens


def test_rows_without_lengths_have_no_order():
    with pytest.raises(UserError, match="leave out the data collator"):
        tokens_of([1, 2, 3])


# ---- dealing


@pytest.mark.parametrize("groups", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_step_keeps_its_rows(batch, groups):
    rng = np.random.default_rng(0)
    for count in range(1, 40):
        assert sorted(share_out(rng.random(count), batch=batch, groups=groups)) == list(range(count))


def test_rows_of_like_cost_are_read_at_once():
    """8 8, then 1 1: no group waits in any micro-batch."""
    assert share_out(np.array([8, 1, 1, 8]), batch=1, groups=2).tolist() == [0, 3, 1, 2]


@pytest.mark.parametrize(("batch", "groups"), [(1, 2), (1, 3), (2, 3), (3, 2)])
def test_groups_wait_about_as_little_as_they_can(batch, groups):
    """Six rows with a long tail against the best of all ways to share them out, and as they come.

    The largest group's sum is what a step takes where groups meet at its end, the sum of each micro-batch's largest
    where they meet in every layer.
    """
    rng = np.random.default_rng(1)
    ratios = {"ours": [], "as they come": []}
    ways = np.array(list(permutations(range(6))))
    for _ in range(20):
        costs = np.exp(rng.normal(0, 1.2, 6))
        sums = costs[ways].reshape(len(ways), -1, groups, batch).sum(3)
        best = np.array([sums.sum(1).max(1).min(), sums.max(2).sum(1).min()])
        for name, order in (
            ("ours", share_out(costs, batch=batch, groups=groups)),
            ("as they come", range(6)),
        ):
            own = costs[np.array(order)].reshape(-1, groups, batch).sum(2)
            ratios[name].append(np.array([own.sum(0).max(), own.max(1).sum()]) / best)
    assert np.max(ratios["ours"]) < 1.15
    assert (np.mean(ratios["ours"], axis=0) < 1.03).all()
    assert (np.mean(ratios["as they come"], axis=0) > 1.15).all()


@pytest.mark.parametrize("count", [1, 5, 11, 12, 13, 40])
@pytest.mark.parametrize("order", [Shuffled(), Buckets(steps=2), Grow(shortest=1)], ids=repr)
def test_steps_are_the_same_with_any_processes(order, count):
    """12 prompts a step: the same rows, whoever reads them in however many micro-batches; placeholders are last."""
    tokens = np.exp(np.random.default_rng(0).normal(4, 1, count)).astype(np.int64)
    steps = []
    for batch, groups, accumulation in ((12, 1, 1), (1, 1, 12), (2, 3, 2), (3, 2, 2), (1, 4, 3)):
        arrangement = Arrangement(order, tokens, tokens * 1.0, batch, groups, accumulation)
        sampler = EpochSampler(count, multiple=batch * groups, seed=3, arrangement=arrangement)
        rows = list(sampler)
        assert len(rows) == len(sampler) and rows[count:] == [PLACEHOLDER] * (len(sampler) - count)
        steps.append([sorted(rows[start : min(start + 12, count)]) for start in range(0, count, 12)])
    assert all(other == steps[0] for other in steps)
    assert sorted(chain.from_iterable(steps[0])) == list(range(count))


@pytest.mark.parametrize("groups", [2, 3])
def test_groups_read_what_is_shared_out_to_them(groups):
    """As accelerate cuts batches out of the sampler: in a step of 12 no group has much more than another."""
    costs = np.exp(np.random.default_rng(0).normal(4, 1, 48))
    loads = {}
    for balance, each in (("none", None), ("work", costs)):
        arrangement = Arrangement(
            Shuffled(), costs, each, batch=2, groups=groups, accumulation=12 // (2 * groups)
        )
        sampler = EpochSampler(48, multiple=2 * groups, seed=0, arrangement=arrangement)
        shards = [
            BatchSamplerShard(BatchSampler(sampler, 2, False), groups, group) for group in range(groups)
        ]
        read = np.array([list(chain.from_iterable(shard)) for shard in shards])
        assert sorted(read.reshape(-1)) == list(range(48))
        steps = costs[read].reshape(groups, 4, -1).sum(2)
        loads[balance] = steps.max(axis=0).sum() / steps.mean(axis=0).sum()
    assert loads["work"] < 1.15 < 1.2 < loads["none"]


# ---- training

ROWS, EPOCHS, SAVED = 16, 2, 3  # of six prompts an epoch has three steps, the last of four prompts


class Recording(PreferenceTrainer):
    """Remembers the tokens of each training micro-batch's prompts that are no placeholders."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.read: list[list[tuple[int, ...]]] = []

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        (row,) = inputs["batch"].rows
        prompts = [tuple(row.input_ids[0, slice(*packed.prompt)].tolist()) for packed in row.layout.prompts]
        self.read.append([each for each, real in zip(prompts, inputs["real"], strict=True) if real])
        return super().compute_loss(model, inputs, *args, **kwargs)


def trained(folder, order, *, resume=None, **arguments):
    """A run over two epochs in fp64."""
    model = tiny_model(initializer_range=0.1).double()
    model.set_attn_implementation(ATTENTION)
    trainer = make_trainer(
        folder,
        kind=partial(Recording, order=order),
        method=LOGO,
        model=model,
        collator=Collator(),
        rows=ROWS,
        **{"max_steps": -1, "num_train_epochs": EPOCHS, "max_grad_norm": 0.0, "seed": 5} | arguments,
    )
    trainer.train_dataset = stored(ROWS)
    trainer.train(resume_from_checkpoint=resume)
    losses = [each["loss"] for each in trainer.state.log_history if "loss" in each]
    return {"losses": losses, "weights": weights(trainer), "read": trainer.read}


SHAPES = {
    1: (3, 2),
    2: (3, 1),
    3: (1, 2),
}  # processes: rows of a micro-batch, micro-batches; six prompts a step


def on_processes(rank, size, folder, order):
    batch, accumulation = SHAPES[size]
    settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    saving = {"save_strategy": "steps", "save_steps": SAVED - 1}
    unbroken = trained(folder, order, **settings, **saving)
    resumed = trained(folder, order, resume=str(folder / f"checkpoint-{SAVED + 1}"), **settings)
    return {**unbroken, "resumed": resumed}


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_groups_that_share_out_rows_train_as_one_process(tmp_path, size):
    """Loss of every step and weights after six, in fp64; a resumed run reads on where the other had been."""
    order = Buckets(steps=2, balance="work")
    plain = trained(tmp_path / "plain", Buckets(steps=2, balance="none"), per_device_train_batch_size=6)
    found = run_distributed(on_processes, size, tmp_path / "groups", order)
    for each in found:
        np.testing.assert_allclose(each["losses"], plain["losses"], rtol=1e-6)  # logged in fp32
        # Llama's norms compute in fp32, in which the loss times three is rounded otherwise than once or twice the loss.
        assert_close(each["weights"], plain["weights"], tolerance=1e-11 if size == 2 else 1e-7)
        assert_close(each["resumed"]["weights"], each["weights"], tolerance=1e-12)
        assert each["resumed"]["read"] == each["read"][-len(each["resumed"]["read"]) :]
    rows = [row for each in found for batch in each["read"] for row in batch]
    assert len(rows) == ROWS * EPOCHS and len(set(rows)) == ROWS
    per_step = SHAPES[size][1]
    for step, expected in enumerate(plain["read"][:2]):
        span = slice(step * per_step, (step + 1) * per_step)
        own = [row for each in found for batch in each["read"][span] for row in batch]
        assert sorted(own) == sorted(expected)


@pytest.mark.parametrize("order", [Shuffled(balance="pairs"), Grow(cycles=1, shortest=1)], ids=repr)
def test_an_order_trains_every_row_and_weighs_it_alike(tmp_path, order):
    """One process, micro-batches of one row or all six at once: the same losses."""
    whole = trained(tmp_path, order, per_device_train_batch_size=6)
    single = trained(tmp_path, order, per_device_train_batch_size=1, gradient_accumulation_steps=6)
    np.testing.assert_allclose(single["losses"], whole["losses"], rtol=1e-6)  # logged in fp32
    assert_close(single["weights"], whole["weights"], tolerance=1e-11)
    assert len({row for batch in whole["read"] for row in batch}) == ROWS


def test_the_librarys_own_orders_are_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"train_sampling_strategy=batch_rebalance has no effect .*Buckets\(\)"
    ):
        make_trainer(tmp_path, train_sampling_strategy="batch_rebalance")
