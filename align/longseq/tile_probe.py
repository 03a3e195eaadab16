"""Whether a layer gives in tiles (`memory.mlp_chunk`) what it gives over a whole row, found out before weights load.

What one layer leaves for another while it runs, such as keys and values that Gemma-4's last layers take over, would be
that of the last tile alone. A small random copy of the architecture computes a step both ways.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from align.core.errors import UserError, first_line
from align.longseq.attention import ATTENTION
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.forward import pair_logps
from align.longseq.numeric import TOLERANCE, Outcome, compare, examples, outcome
from align.longseq.settings import MemorySettings
from align.longseq.shared_prefix import pack
from align.longseq.small_model import build_small
from align.longseq.verdicts import DIFFERS, EXACT, REFUSED, UNPROVEN, Verdict, key_of, recall, remember
from align.models.loading import causal_lm_class, load_config
from align.models.settings import OF_LIBRARY, ModelSettings
from align.models.text_part import set_attention

TILE = 5  # tokens, of rows of 46


def check_tiles(model: ModelSettings, memory: MemorySettings) -> None:
    """Refuses `memory.mlp_chunk` for an architecture whose layers cannot be cut into tiles; reads no weights.

    Args:
        model: group `model`, of an architecture that the shared prefix computes (probe.py).
        memory: group `memory`.

    Raises:
        UserError: what to set instead.
    """
    if memory.mlp_chunk is not None and model.attention not in OF_LIBRARY:
        config = load_config(model)
        kind = causal_lm_class(model, config)
        if kind is not None:
            check_tiles_of(kind, config)


def check_tiles_of(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> None:
    """The same for a class and its configuration; the verdict is remembered."""
    key = key_of(model_class, config, ["tiles"])
    verdict = recall(key)
    if verdict is None:
        verdict = prove_tiles(model_class, config)
        remember(key, verdict)
    verdict.check()


def prove_tiles(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> Verdict:
    """A step of the small model over whole rows and in tiles; one that cannot be built or run whole proves nothing."""
    try:
        whole, tiled = (build_small(model_class, config, dtype=torch.float32) for _ in range(2))
        expected = _step(whole)
    except Exception as error:  # of which the check of the architecture itself has spoken
        return Verdict(UNPROVEN, first_line(error))
    instead = "set memory.mlp_chunk=null"
    try:
        apply_checkpointing(tiled, "full", mlp_chunk=TILE)
        found = compare(_step(tiled), expected, TOLERANCE[torch.float32])
    except UserError as error:
        return Verdict(REFUSED, str(error))
    except Exception as error:
        problem = f"{model_class.__name__} cannot be computed in tiles ({first_line(error)})"
        return Verdict(REFUSED, f"{problem}: {instead}.")
    if found.exact:
        return Verdict(EXACT, "", found.loss, found.gradient, "float32")
    sentence = (
        f"{model_class.__name__} computes something else in tiles of memory.mlp_chunk tokens than over whole rows (the "
        f"loss differs by {found.loss:.0e}, gradients by up to {found.gradient:.0e}), since its layers hand on more "
        f"than their output: {instead}."
    )
    return Verdict(DIFFERS, sentence, found.loss, found.gradient, "float32")


def _step(model: nn.Module) -> Outcome:
    """Loss and gradients on packed rows."""
    lm: Any = model
    set_attention(lm, ATTENTION)
    batch = pack(examples())
    return outcome(model, lambda: pair_logps(model, batch))
