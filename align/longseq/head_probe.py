"""Whether a model gives its decoder, its last hidden states and its output embedding, between which tail.py looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from align.longseq.settings import cannot_share
from align.models.text_part import text_decoder


def check_parts(model: PreTrainedModel) -> None:
    """Refuses a model that does not give its decoder and its output embedding as modules of their own.

    Raises:
        UserError: names the model's class.
    """
    text_decoder(model)
    if not isinstance(model.get_output_embeddings(), nn.Module):
        raise cannot_share(
            f"{type(model).__name__} gives no output embedding of its own, which the shared-prefix forward puts itself "
            "before"
        )


def check_last_hidden_state(model: PreTrainedModel, output: Any) -> None:
    """Refuses a decoder that does not return its last hidden states under the library's name.

    Raises:
        UserError: names the model's class.
    """
    if not isinstance(output, Mapping) or "last_hidden_state" not in output:
        raise cannot_share(
            f"{type(model).__name__} has a decoder that returns no last_hidden_state, which the shared-prefix forward "
            "scores"
        )
