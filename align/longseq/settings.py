"""`model.attention` and the groups `memory` and `parallel` as types: what may be chosen, checked without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.core.config import check_choice
from align.core.errors import UserError
from align.models.settings import LIBRARY, MASKED, OF_LIBRARY

ATTENTION = "align_shared"
# `model.attention` → the name that transformers knows it by. A name with "flash" or "sdpa" in it would make
# transformers ask whether the package is there, or whether a class allows it, and prepare masks of its own.
CUDNN = "cudnn"
ATTENTIONS = {
    "auto": ATTENTION,
    "sdpa": "align_torch",
    CUDNN: "align_cudnn",
    "flash2": "align_fa2",
    "flash3": "align_fa3",
    "flash4": "align_fa4",
}
# `model.attention` → the module that has to be there, and where it comes from.
FLASH_MODULES = {
    "flash2": ("flash_attn.flash_attn_interface", "the extra `flash` (pip install -e '.[flash]')"),
    "flash3": (
        "flash_attn_interface",
        "FlashAttention 3, which the extra `flash` does not bring: build it in the folder hopper of flash-attn",
    ),
    "flash4": ("flash_attn.cute.interface", "the extra `flash4` (pip install -e '.[flash4]')"),
}
OF_SOME_GPUS = (*FLASH_MODULES, CUDNN)  # of `model.attention`: what not every GPU has, see flash_fit.py
SOFTCAP = " softcap "  # in a kernel's name: between its own name and the cap on scores
ATTENTION_CHOICES = (*ATTENTIONS, *OF_LIBRARY)  # of `model.attention`
CHECKPOINTING_MODES = ("none", "full", "keep_attention")  # of `memory.checkpointing`, see checkpointing.py
OFFLOAD = ("none", "host", "disk")
CHOICES = ("given", "auto")  # of `memory.choose`
EXCHANGES = ("none", "ulysses", "gather", "auto")  # of `parallel.kind`
DEFAULT_CHUNK = 1024  # tokens whose vocabulary logits exist at once
DEFAULT_PREFETCH = 1  # layers whose inputs come back from `memory.offload` before they are asked for


@dataclass(frozen=True)
class MemorySettings:
    """Group `memory`; see hydra_conf/memory/default.yaml."""

    checkpointing: str = "keep_attention"
    logits_chunk: int = DEFAULT_CHUNK
    mlp_chunk: int | None = None
    offload: str = "none"
    offload_folder: str | None = None
    prefetch: int = DEFAULT_PREFETCH
    choose: str = "given"

    def levers(self) -> dict[str, Any]:
        """What `apply_checkpointing` takes beside the mode; `memory=auto` may have chosen one that reads fewer keys."""
        levers: dict[str, Any] = {"mlp_chunk": self.mlp_chunk, "offload": self.offload}
        if self.offload == "disk":
            levers["offload_folder"] = self.offload_folder
        if self.offload != "none":
            levers["prefetch"] = self.prefetch
        return levers

    def check(self, *, accelerator: bool) -> None:
        """Refuses what contradicts itself; `accelerator` says whether the model will be on one."""
        check_choice("memory.choose", self.choose, CHOICES)
        if self.logits_chunk < 1:
            raise UserError(f"memory.logits_chunk={self.logits_chunk} must be a number of tokens, from 1 on.")
        check_memory(
            self.checkpointing, mlp_chunk=self.mlp_chunk, offload=self.offload, accelerator=accelerator
        )
        # What `auto` may choose reads both keys.
        offload = "disk" if self.choose == "auto" else self.offload
        _check_offload(offload, folder=self.offload_folder, prefetch=self.prefetch)


@dataclass(frozen=True)
class ParallelSettings:
    """Group `parallel`; see hydra_conf/parallel/none.yaml."""

    kind: str = "none"
    degree: int = 1

    def check(self) -> None:
        """Refuses an exchange that is not known, and a degree below 1."""
        check_choice("parallel.kind", self.kind, EXCHANGES)
        if self.degree < 1:
            raise UserError(f"parallel.degree={self.degree} must be a number of processes, from 1 on.")


def attention_name(attention: str) -> str | None:
    """What transformers knows `model.attention` by; None for the library's, where each class takes what it supports."""
    return ATTENTIONS.get(attention)


def cannot_share(problem: str, *, instead: str | None = None) -> UserError:
    """The refusal of what the shared-prefix forward does not compute, with the way out that rows of their own are.

    Args:
        problem: the model and what of it is not computed, without a full stop.
        instead: another way out, as in `set data.max_length=4096`.
    """
    other = "" if instead is None else f"{instead}, or "
    return UserError(f"{problem}: {other}{BY_ROWS}.")


def by_a_mask(sentence: str) -> str:
    """The same refusal for a model whose prompt a mask shares."""
    return sentence.replace(BY_ROWS, BY_A_MASK)


# The ways out of the shared-prefix forward, as a sentence ends.
BY_ROWS = "set model.attention=library to read a row for each answer"
BY_A_MASK = "set model.attention=masked to share the prompt by a mask"
# `model.attention` of the library's → what is left where it does not compute a model exactly.
INSTEAD = {LIBRARY: "use another model", MASKED: BY_ROWS}


def whole_rows(attention: str, degree: int) -> str:
    """The refusal of a row shared between processes by the library's attention."""
    return (
        f"parallel.degree={degree} shares a row between processes, which model.attention={attention} cannot: "
        "set parallel=none."
    )


def check_library_settings(attention: str, memory: MemorySettings, parallel: ParallelSettings) -> None:
    """Refuses what the library's own attention does without.

    Args:
        attention: `model.attention`, like the groups one that is known.
        memory: group `memory`.
        parallel: group `parallel`.

    Raises:
        UserError: names the key and what to set.
    """
    if attention not in OF_LIBRARY:
        return
    if parallel.degree > 1:
        raise UserError(whole_rows(attention, parallel.degree))
    if memory.mlp_chunk is not None:
        raise UserError(
            f"memory.mlp_chunk={memory.mlp_chunk} cuts layers at our attention, which model.attention={attention} does "
            "without: set memory.mlp_chunk=null."
        )


def check_memory(
    checkpointing: str,
    *,
    mlp_chunk: int | None = None,
    offload: str = "none",
    offload_folder: str | None = None,
    prefetch: int = DEFAULT_PREFETCH,
    accelerator: bool = True,
) -> None:
    """Refuses settings that contradict each other, before a model is loaded.

    Args:
        checkpointing: as the key of the group `memory`, like the next four.
        mlp_chunk: tokens, or None.
        offload: `none`, `host` or `disk`.
        offload_folder: an existing folder, or None.
        prefetch: layers.
        accelerator: whether the model will be on one.

    Raises:
        UserError: names the key, and what to set instead.
    """
    check_choice("memory.checkpointing", checkpointing, CHECKPOINTING_MODES)
    check_choice("memory.offload", offload, OFFLOAD)
    if mlp_chunk is not None and mlp_chunk < 1:
        raise UserError(f"memory.mlp_chunk={mlp_chunk} must be a number of tokens, from 1 on, or null.")
    for key, value, unset in (("mlp_chunk", mlp_chunk, None), ("offload", offload, "none")):
        if checkpointing == "none" and value != unset:
            raise UserError(
                f"memory.{key}={value} works on checkpointed layers: set memory.checkpointing=full or keep_attention."
            )
    if offload == "host" and not accelerator:
        raise UserError(
            "memory.offload=host moves activations off an accelerator, and this run is on the CPU: "
            "set memory.offload=disk or none."
        )
    _check_offload(offload, folder=offload_folder, prefetch=prefetch)


def _check_offload(offload: str, *, folder: str | None, prefetch: int) -> None:
    """Refuses `memory.offload_folder` and `memory.prefetch` where they mean nothing or are not read."""
    if prefetch < 0:
        raise UserError(
            f"memory.prefetch={prefetch} must be a number of layers: 0 fetches each layer's input when it is asked for."
        )
    if offload == "none" and prefetch != DEFAULT_PREFETCH:
        raise UserError(f"memory.prefetch={prefetch} is read with memory.offload=host or disk only.")
    if folder is None:
        return
    if offload != "disk":
        raise UserError(f"memory.offload_folder={folder} is read with memory.offload=disk only.")
    if not Path(folder).is_dir():
        raise UserError(f"memory.offload_folder={folder} is not a folder: make it, or name another.")
