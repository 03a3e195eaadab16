"""Whole models merged tensor by tensor: at any time one tensor of each is in memory, and one file of the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.serialization import StateDictSplit, split_state_dict_into_shards_factory
from rich.console import Console
from safetensors.torch import save_file

from align.core.display import progress_bar
from align.core.errors import UserError
from align.core.files import write_json
from align.core.telling import tell
from align.merging.rule import Rule, TensorRule
from align.merging.weights import DTYPES, INDEX, Readers, Stored, Weights, opened

SHARD = 2 * 2**30  # bytes of a file of the merged model, which is in memory until it is written
_TIED = "lm_head.weight"  # a copy of the embedding that some files hold beside it
_MIB = 2**20


@dataclass(frozen=True)
class Merge:
    """What is computed.

    Attributes:
        models: the weights of each model.
        base: those of the base, where there is one.
        rule: how they are combined.
        seed: of what the rule draws.
        dtype: `stored`, or one of `align export`'s.
    """

    models: Sequence[Weights]
    base: Weights | None
    rule: Rule
    seed: int
    dtype: str

    @property
    def all(self) -> list[Weights]:
        """Models and base."""
        return [*self.models, *([] if self.base is None else [self.base])]


def write_merged(merge: Merge, folder: Path, *, tied: bool, console: Console) -> None:
    """Writes `model*.safetensors`, and their index where they are several.

    Args:
        merge: what is computed.
        folder: is there, and empty.
        tied: whether the output head is the embedding, of which a file may hold a second copy.
        console: for the bar.

    Raises:
        UserError: tensors that do not match, or values that are no numbers.
    """
    plan = _matched(merge, tied=tied)
    shapes = {name: own.shape for name, own in plan.items() if own.is_float}
    rule = merge.rule.over(shapes, merge.seed)
    shards = split_state_dict_into_shards_factory(
        {name: _bytes(own) for name, own in plan.items()},
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD,
    )
    _tell_memory(plan, len(merge.all))
    with opened(merge.all) as readers, progress_bar(console) as progress:
        total = sum(map(_bytes, plan.values()))
        bar = progress.add_task("MiB merged", total=max(1, total // _MIB))
        done = 0
        for file, names in shards.filename_to_tensors.items():
            tensors = {}
            for name in names:
                tensors[name] = _merged(merge, rule, readers, name, plan[name])
                done += _bytes(plan[name])
                progress.update(bar, completed=done // _MIB)
            save_file(tensors, folder / file, metadata={"format": "pt"})
            del tensors
        progress.update(bar, completed=max(1, total // _MIB))
    if shards.is_sharded:
        _write_index(shards, folder)


def _merged(merge: Merge, rule: TensorRule, readers: Readers, name: str, to: Stored) -> torch.Tensor:
    """One tensor of the result, in the type that it is stored in."""
    found = [readers.of(i, name) for i in range(len(merge.all))]
    if not to.is_float:
        if not all(torch.equal(found[0], other) for other in found[1:]):
            raise UserError(
                f"{name} holds whole numbers that differ between the models: they cannot be merged."
            )
        return found[0]
    found = [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in found]
    models, base = (found, None) if merge.base is None else (found[:-1], found[-1])
    result = rule(name, models, base).to(DTYPES[to.dtype]).contiguous()
    if not result.isfinite().all():
        faulty = next(
            (w.given for w, t in zip(merge.all, found, strict=True) if not t.isfinite().all()), None
        )
        why = (
            "the result is too large for its type: set dtype=float32"
            if faulty is None
            else f"{faulty} holds some"
        )
        raise UserError(f"{name} would have values that are infinite or no numbers: {why}.")
    return result


def _matched(merge: Merge, *, tied: bool) -> dict[str, Stored]:
    """The tensors of the result, in the first model's order; every model has them, of one shape and type.

    Raises:
        UserError: the first difference.
    """
    first = merge.models[0]
    for other in merge.all[1:]:
        odd = sorted(set(first.tensors) ^ set(other.tensors), key=lambda name: (name.count("."), name))
        odd = [name for name in odd if not (tied and name.endswith(_TIED))]
        if odd:
            owner, lacking = (first, other) if odd[0] in first.tensors else (other, first)
            raise UserError(
                f"{owner.given} has a tensor {odd[0]}, and {lacking.given} has none ({len(odd)} such names): if it is "
                "the same model in another layout, load each, save it with the installed transformers, and merge these."
            )
    plan = {}
    for name, own in first.tensors.items():
        if all(name in other.tensors for other in merge.all):
            plan[name] = _target(merge, name, own)
    return plan


def _target(merge: Merge, name: str, own: Stored) -> Stored:
    """How a tensor of the result is stored."""
    first = merge.models[0]
    for other in merge.all[1:]:
        theirs = other.tensors[name]
        if theirs.shape != own.shape:
            raise UserError(
                f"{name} is {_sizes(own)} in {first.given} and {_sizes(theirs)} in {other.given}: models of one shape "
                "can be merged."
            )
        if own.is_float != theirs.is_float or (theirs.dtype != own.dtype and merge.dtype == "stored"):
            raise UserError(
                f"{name} is stored as {own.dtype} in {first.given} and as {theirs.dtype} in {other.given}: set "
                "dtype=float32 or dtype=bfloat16 for the merged model."
            )
    if merge.dtype == "stored" or not own.is_float:
        return own
    return Stored(own.file, own.shape, {"float32": "F32", "bfloat16": "BF16"}[merge.dtype])


def _bytes(tensor: Stored) -> int:
    count = 1
    for size in tensor.shape:
        count *= size
    widths = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2}
    return count * widths.get(tensor.dtype, 1)


def _sizes(tensor: Stored) -> str:
    return " × ".join(map(str, tensor.shape)) or "a single number"


def _tell_memory(plan: Mapping[str, Stored], count: int) -> None:
    largest = max((_bytes(own) for own in plan.values()), default=0)
    whole = sum(map(_bytes, plan.values()))
    tell(
        f"Merging {len(plan)} tensors of {count} models, {_size(whole)}, one at a time: in memory are a file of up to "
        f"{_size(min(SHARD, whole))} and, for each model, some float32 copies of the largest tensor ({_size(largest)})."
    )


def _size(count: int) -> str:
    """`0.54 GB`, `3.1 MB`."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _write_index(shards: StateDictSplit, folder: Path) -> None:
    content = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
    write_json(folder / INDEX, content)
