"""A frozen reference on several processes: whole on each, or its weights split over them.

Split weights are FSDP2's, on a mesh of their own, whatever wraps the policy: a process keeps 1/N of them and gathers
a decoder layer when the forward comes to it. Nothing is trained, so nothing else is exchanged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel, TrainingArguments
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)

from align.core.config import check_choice
from align.core.errors import UserError
from align.distributed.wrappers import launched_wrapper
from align.models.settings import ModelSettings
from align.models.structure import decoder_layers
from align.planning.states import resolve_sharding

SHARDINGS = ("none", "full", "hybrid")


def check_sharding(
    sharding: str | None, *, source: str, model: ModelSettings, environment: Mapping[str, str] = os.environ
) -> None:
    """Before anything is loaded.

    Args:
        sharding: `reference.sharding`.
        source: where the reference comes from, see `resolve_source`.
        model: group `model`.
        environment: of the launcher: its number of processes, and of those on this machine.

    Raises:
        UserError: nothing is there to split, weights of four bits, or machines with unlike numbers of processes.
    """
    check_choice("reference.sharding", sharding or "none", SHARDINGS)
    if sharding in (None, "none"):
        return
    if source == "adapter_off":
        raise UserError(
            f"reference.sharding={sharding} splits a frozen reference, but this one is the policy without its "
            "adapter: leave reference.sharding out, or set reference.source=frozen."
        )
    if model.quantization != "none" and source == "frozen":
        raise UserError(
            f"reference.sharding={sharding} cannot split weights of four bits (model.quantization="
            f"{model.quantization}): set reference.sharding=none."
        )
    processes = int(environment.get("WORLD_SIZE", "1"))
    local = int(environment.get("LOCAL_WORLD_SIZE", processes))
    if sharding == "hybrid" and processes % local:
        raise UserError(
            f"reference.sharding=hybrid needs equally many processes on every machine, and {processes} do not "
            f"divide by the {local} of this one: set reference.sharding=full."
        )


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
    """Splits the weights in place: each decoder layer by itself, embeddings and head together.

    Args:
        model: a causal language model.
        mesh: one dimension: splits over it. Two: copies over the first one, splits over the second.
    """
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    # FSDP2 would keep what is gathered for the root, since a backward pass begins there; here is none.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def _mesh(sharding: str, device: str) -> DeviceMesh:
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
