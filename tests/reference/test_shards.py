"""A frozen reference split over processes says what a whole one says, and is a share of it in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from align.core.errors import UserError
from align.longseq import ATTENTION, pack, pair_logps
from align.models.identity import Identity
from align.models.settings import ModelSettings
from align.reference.cache import Cached, LogpStore
from align.reference.key import row_keys
from align.reference.settings import SHARDINGS, check_sharding, resolve_sharding
from align.reference.shards import load_reference
from align.reference.sources import Frozen
from losses import PairLogps
from tests.distributed import run_distributed
from tests.tiny import tiny_model
from tests.training.helpers import Rows

SOMEBODY = Identity({"model": "somebody"})


def load(device: torch.device | None) -> Any:
    """Head and embeddings are one weight, as in SmolLM2."""
    model = tiny_model(seed=3, initializer_range=0.1, tie_word_embeddings=True)
    model.set_attn_implementation(ATTENTION)
    return model


def share(model: torch.nn.Module) -> int:
    """Numbers of the weights that this process keeps."""
    kept = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in model.parameters())
    return sum(weight.numel() for weight in kept)


def table(logps: PairLogps) -> torch.Tensor:
    return torch.cat([logps.chosen[:, None], logps.rejected], dim=1)


def on_two_machines(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Four processes of which two share a machine; each has rows of its own, packed into 1 to 4 rows."""
    arguments = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[])
    os.environ["LOCAL_WORLD_SIZE"] = "2"  # accelerate would look for the other machine
    rows = Rows(size, seed=rank)
    batch = pack([rows[i] for i in range(1 + rank)], tokens_per_row=1)
    found: dict[str, Any] = {}
    for sharding in SHARDINGS:
        model = load_reference(load, sharding, arguments=arguments, quantised=False)
        reference = Frozen(lambda model=model: model, pair_logps)
        before = share(model)
        logps = [table(reference(model, batch)) for _ in range(2)]
        found[sharding] = {"logps": logps, "shares": (before, share(model)), "training": model.training}
    found["half cached"] = half_cached(rank, folder, batch, arguments)
    return found


@torch.no_grad()
def half_cached(rank: int, folder: Path, batch: Any, arguments: TrainingArguments) -> torch.Tensor:
    """The first process finds all its rows in the cache, the others none: they have to meet all the same."""
    split = load_reference(load, "full", arguments=arguments, quantised=False)
    cached = Cached(Frozen(lambda: split, pair_logps), LogpStore(folder / str(rank)), SOMEBODY)
    if rank == 0:
        values = table(pair_logps(load(None), batch)).tolist()
        keys = [key for row in batch.rows for key in row_keys(row, SOMEBODY)]
        cached.store.add(dict(zip(keys, map(tuple, values), strict=True)))
    return table(cached(split, batch))


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, Any]]:
    return run_distributed(on_two_machines, 4, tmp_path_factory.mktemp("shards"))


@pytest.mark.parametrize("sharding", SHARDINGS[1:])
def test_values_are_those_of_a_whole_reference(found, sharding):
    """Twice, since the second forward gathers again, and with unlike numbers of rows on the processes."""
    for rank, one in enumerate(found):
        (whole, again), split = one["none"]["logps"], one[sharding]["logps"]
        assert whole.shape[0] == 1 + rank and torch.equal(whole, again)
        for values in split:
            torch.testing.assert_close(values, whole, rtol=1e-6, atol=1e-5)
        assert not one[sharding]["training"]


@pytest.mark.parametrize(("sharding", "parts"), [("none", 1), ("full", 4), ("hybrid", 2)])
def test_a_process_keeps_its_share_before_and_after_a_forward(found, sharding, parts):
    whole = share(load(None))
    for one in found:
        assert one[sharding]["shares"] == (whole / parts, whole / parts)


def test_processes_meet_where_only_some_have_cached_rows(found):
    for one in found:
        torch.testing.assert_close(one["half cached"], one["none"]["logps"][0], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("sharding", "wrapper", "processes", "quantised", "expected"),
    [
        (None, "none", 1, False, "none"),
        (None, "ddp", 8, False, "none"),
        (None, "zero2", 8, False, "none"),
        (None, "fsdp2", 8, False, "full"),
        (None, "zero3_offload", 8, False, "full"),
        (None, "fsdp2", 8, True, "none"),
        ("none", "zero3", 8, False, "none"),
        ("hybrid", "ddp", 8, False, "hybrid"),
        ("full", "none", 1, False, "none"),
    ],
)
def test_weights_are_split_where_the_policys_are(sharding, wrapper, processes, quantised, expected):
    found = resolve_sharding(sharding, wrapper=wrapper, processes=processes, quantised=quantised)
    assert found == expected


@pytest.mark.parametrize(
    ("sharding", "source", "quantization", "message"),
    [
        ("half", "frozen", "none", "reference.sharding=half is not known"),
        ("full", "adapter_off", "none", "this one is the policy without its adapter"),
        ("full", "frozen", "nf4", "cannot split weights of four bits"),
        ("hybrid", "frozen", "none", "6 do not divide by the 4 of this one"),
    ],
)
def test_what_cannot_be_split_is_refused(sharding, source, quantization, message):
    model = ModelSettings(path="embedded", quantization=quantization)
    environment = {"WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "4"}
    with pytest.raises(UserError, match=message):
        check_sharding(sharding, source=source, model=model, environment=environment)
    check_sharding(None, source=source, model=model, environment=environment)
