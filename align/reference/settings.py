"""Group `reference` as a dataclass, and what it stands for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from align.core.config import check_choice
from align.core.errors import UserError
from align.distributed.names import SHARDED
from align.models.settings import ModelSettings, MoeSettings, RopeSettings

_OWNERS = ("policy", "checkpoint")  # of `reference.rope` and `reference.query_scale`: whose it is


@dataclass(frozen=True)
class ReferenceSettings:
    """Group `reference`; see hydra_conf/reference/default.yaml."""

    source: str | None = None
    model: str | None = None
    rope: str = "policy"
    query_scale: str = "policy"
    sharding: str | None = None
    cache: str | None = None
    fill_only: bool = False
    follow_steps: int | None = None
    follow_alpha: float = 0.6


def resolve_source(settings: ReferenceSettings, *, needs: str, adapter: Any, method: str) -> str:
    """Where reference log-probs come from, `none`, `adapter_off` or `frozen`: as set, or what fits method and model.

    With nothing set, `method=simpo` gives `none`, `method=dpo` with an adapter that can be switched off
    `adapter_off`, and else `frozen`.

    Args:
        settings: group `reference`.
        needs: the method's `needs.reference`.
        adapter: what trains of the policy (align/adapters/adapter.py); None: all parameters.
        method: its name, for messages.

    Raises:
        UserError: the settings contradict each other, the method or the model.
    """
    check_choice("reference.source", str(settings.source or "none"), ("none", "adapter_off", "frozen"))
    check_choice("reference.rope", settings.rope, _OWNERS)
    check_choice("reference.query_scale", settings.query_scale, _OWNERS)
    if settings.fill_only:
        _check_fill(settings, needs=needs, method=method)
    if needs == "none":
        return "none"
    if settings.source is None:
        return _default_source(settings, adapter=adapter)
    if settings.source == "none":
        raise UserError(
            f"method={method} needs a reference, but reference.source=none: "
            "set reference.source=adapter_off (with an adapter) or frozen."
        )
    if settings.source == "adapter_off":
        _check_adapter_off(settings, adapter=adapter)
    return settings.source


def _default_source(settings: ReferenceSettings, *, adapter: Any) -> str:
    """Where reference log-probs come from when `reference.source` is not set.

    With an adapter the policy without it is the starting model and costs no memory: `adapter_off`. Where all parameters
    train, the adapter cannot be switched off exactly (PiSSA), or the reference is another model or reads with its own
    RoPE or query scale, it is a model by itself: `frozen`.
    """
    differs = settings.model is not None or "checkpoint" in (settings.rope, settings.query_scale)
    return "adapter_off" if adapter is not None and adapter.removable and not differs else "frozen"


def _check_fill(settings: ReferenceSettings, *, needs: str, method: str) -> None:
    """`reference.fill_only` needs a method with a reference, and a folder to fill."""
    if needs == "none":
        raise UserError(
            f"reference.fill_only: method={method} has no reference, so there is nothing to fill."
        )
    if settings.cache is None:
        raise UserError("reference.fill_only fills a cache: name its folder, reference.cache=FOLDER.")


def _check_adapter_off(settings: ReferenceSettings, *, adapter: Any) -> None:
    """The policy without its adapter is the starting model as the policy loaded it, and nothing else."""
    if adapter is None:
        raise UserError(
            "reference.source=adapter_off needs an adapter to switch off: set adapter=lora, or reference.source=frozen."
        )
    if not adapter.removable:
        raise UserError(
            f"reference.source=adapter_off needs the starting model where the adapter is off, and adapter="
            f"{adapter.kind} changes it: set reference.source=frozen."
        )
    if settings.model is not None:
        raise UserError(
            "reference.model names another model: it goes with reference.source=frozen, not adapter_off."
        )
    for key, words in (("rope", "RoPE"), ("query_scale", "query scale")):
        if getattr(settings, key) == "checkpoint":
            raise UserError(
                f"reference.{key}=checkpoint goes with reference.source=frozen: adapter_off reads with the policy's "
                f"{words}."
            )


def reference_model(settings: ReferenceSettings, policy: ModelSettings) -> ModelSettings:
    """The model settings of the reference: the starting model's, or those of `reference.model`, never with an adapter.

    A policy of `model.path=A adapter=lora` has the reference A without LoRA; with `reference.model=B` it is B.

    Args:
        settings: group `reference`.
        policy: group `model`.
    """
    experts = MoeSettings(experts=policy.moe.experts)  # nothing of it trains
    model = replace(policy, adapter=None, moe=experts)
    if settings.model is not None:
        model = replace(model, path=settings.model, revision=None, moe=MoeSettings())
    if settings.query_scale == "checkpoint":
        model = replace(model, query_scale=None)
    return replace(model, rope=RopeSettings()) if settings.rope == "checkpoint" else model


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


def resolve_sharding(sharding: str | None, *, wrapper: str, processes: int, quantised: bool) -> str:
    """`none`, `full` or `hybrid`: as `reference.sharding` says; by default split where the policy's weights are.

    Args:
        sharding: None where it is not set.
        wrapper: of the policy, one of `WRAPPERS`.
        processes: in all.
        quantised: weights of four bits are whole everywhere.
    """
    if processes == 1 or quantised:
        return "none"
    return sharding or ("full" if wrapper in SHARDED else "none")


def check_follow(settings: ReferenceSettings, *, source: str, adapter: Any) -> None:
    """Refuses a reference that is to follow the policy and cannot (training/following.py).

    Args:
        settings: group `reference`.
        source: where the reference comes from, see `resolve_source`.
        adapter: what trains of the policy; None: all parameters.

    Raises:
        UserError: names the key and what to set instead.
    """
    steps = settings.follow_steps
    if steps is None:
        return
    check_pace(steps, settings.follow_alpha)
    moves = f"reference.follow_steps={steps} moves the weights of the reference"
    if source == "none":
        raise UserError(f"{moves}, and this method has none: leave it out.")
    if adapter is not None:
        raise UserError(
            f"{moves} towards all of the policy's, and adapter={adapter.kind} trains others: set adapter=none and "
            "reference.source=frozen, or leave it out."
        )
    if settings.cache is not None:
        raise UserError(
            f"{moves}, so that log-probs of earlier steps say nothing: leave reference.cache out, or follow_steps."
        )
    if settings.sharding not in (None, "none"):
        raise UserError(
            f"{moves}, which have to be whole on every process: leave reference.sharding={settings.sharding} out."
        )


def check_pace(steps: int, alpha: float) -> None:
    """Refuses numbers by which nothing follows.

    Raises:
        UserError: names the key.
    """
    if steps < 1:
        raise UserError(
            f"reference.follow_steps={steps} has to be 1 or more: optimizer steps between two updates."
        )
    if not 0 < alpha <= 1:
        raise UserError(
            f"reference.follow_alpha={alpha} has to lie in (0, 1]: the policy's part in the new reference."
        )


def check_follow_wrapper(settings: ReferenceSettings, wrapper: str) -> None:
    """Refuses a policy whose weights are split: no process has them to follow.

    Args:
        settings: group `reference`.
        wrapper: of the policy, one of `WRAPPERS`.

    Raises:
        UserError: says which wrappers keep them whole.
    """
    if settings.follow_steps is not None and wrapper in SHARDED:
        raise UserError(
            f"reference.follow_steps={settings.follow_steps} needs the policy's weights whole on every process, and "
            f"{wrapper} splits them: launch with ddp, zero1 or zero2, or leave it out."
        )
