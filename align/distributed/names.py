"""Wrappers by the names of `launchers/accelerate/`: how a policy is spread over processes."""

from __future__ import annotations

DEEPSPEED = {"zero1", "zero2", "zero3", "zero3_offload"}
SHARDED = {"fsdp2", "zero3", "zero3_offload"}
# Those with a configuration in launchers/accelerate/, simplest first.
WRAPPERS = ("none", "ddp", "fsdp2", "zero1", "zero2", "zero3", "zero3_offload")
