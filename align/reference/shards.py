"""A frozen reference on several processes: whole on each, or its weights split over them.

Split weights are FSDP2's, on a mesh of their own, whatever wraps the policy: a process keeps 1/N of them and gathers
a decoder layer when the forward comes to it. Nothing is trained, so nothing else is exchanged. 8e9 parameters in bf16
are 16 GB on each of 8 processes when whole, and 2 GB when split.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)

from align.distributed.wrappers import launched_wrapper
from align.models.structure import decoder_layers
from align.models.text_part import other_parts
from align.reference.settings import resolve_sharding

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments


def load_reference(
    load: Callable[[torch.device | None], PreTrainedModel],
    sharding: str | None,
    *,
    arguments: TrainingArguments,
    quantised: bool,
) -> PreTrainedModel:
    """The reference in evaluation mode, on the training device, with its weights whole or split.

    With split weights all processes call it, and the model, in step.

    Args:
        load: gives the model on a device; None is the CPU, from where one layer at a time is split.
        sharding: `reference.sharding`.
        arguments: of the run.
        quantised: whether its weights have four bits.
    """
    chosen = resolve_sharding(
        sharding,
        wrapper=launched_wrapper(arguments),
        processes=arguments.world_size,
        quantised=quantised,
    )
    with _outside_of_zero3(arguments):
        model = load(arguments.device if chosen == "none" else None).eval().requires_grad_(False)
    if chosen != "none":
        shard(model, _mesh(chosen, arguments.device.type))
    return model


def shard(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Splits the weights in place: each decoder layer by itself, embeddings and head together, other parts apart.

    Args:
        model: a causal language model.
        mesh: one dimension: splits over it. Two: copies over the first one, splits over the second.
    """
    # A composite's other parts are never called, and so never gathered, where they are units of their own.
    for unit in (*decoder_layers(model), *other_parts(model).values()):
        fully_shard(unit, mesh=mesh)
    # FSDP2 would keep what is gathered for the root, since a backward pass begins there; here is none.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def _mesh(sharding: str, device: str) -> DeviceMesh:
    """All processes for `full`; for `hybrid` machines × processes of one, so that 16 on two machines are 2 × 8."""
    processes = dist.get_world_size()
    if sharding == "full":
        return init_device_mesh(device, (processes,))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    return init_device_mesh(device, (processes // local, local), mesh_dim_names=("replicate", "shard"))


@contextmanager
def _outside_of_zero3(arguments: TrainingArguments) -> Iterator[None]:
    """Within it transformers loads whole weights; ZeRO-3 would scatter them, for an engine that no reference has."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    plugin: Any = arguments.deepspeed_plugin
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(plugin.dschf)
