"""`model.query_scale` put into a model's configuration, which is where attention finds it and where it is saved.

So whoever loads the checkpoint with this toolkit reads with it without being told. Other programs do not know it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from align.core.errors import UserError
from align.models.text_part import text_config
from align.query_scale.scale import KEY, STORED, QueryScale, built, plain, with_window

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def override_query_scale(config: PreTrainedConfig, scale: QueryScale | None, *, window: int | None) -> None:
    """Puts `model.query_scale` into the text part's configuration, in place; None keeps what the checkpoint has.

    Args:
        config: the model's.
        scale: as set; its `window` of None becomes that of the checkpoint's own scale, where it has one of this kind,
            else the checkpoint's window.
        window: tokens that the checkpoint was made to read; None where it does not say.

    Raises:
        UserError: a model that scales queries by their position already, or a scale in the checkpoint that cannot be
            read.
    """
    text = text_config(config)
    stored: Any = getattr(text, STORED, None)
    if scale is None and stored is None:
        return
    own = _of_its_own(text)
    if own is not None:
        raise UserError(
            f"{KEY}: {config.model_type} models scale queries by their position themselves ({own} of their "
            f"configuration): leave {KEY} out."
        )
    if scale is None:
        built(stored)
        return
    if stored is not None and type(built(stored)) is type(scale):
        window = getattr(built(stored), "window", window)
    setattr(text, STORED, plain(with_window(scale, window)))


def _of_its_own(text: PreTrainedConfig) -> str | None:
    """The key by which a model scales queries by their position by itself (Ministral-3, Llama-4, Inkling), if any."""
    rope: Any = getattr(text, "rope_parameters", None) or {}
    if rope.get("llama_4_scaling_beta") is not None:
        return "rope_parameters.llama_4_scaling_beta"
    if getattr(text, "attn_temperature_tuning", False):
        return "attn_temperature_tuning"
    return "log_scaling_n_floor" if getattr(text, "log_scaling_n_floor", None) is not None else None


def scale_of(config: PreTrainedConfig) -> QueryScale | None:
    """The query scale that a model's text part reads with; None where it has none."""
    stored: Any = getattr(text_config(config), STORED, None)
    return None if stored is None else built(stored)


def scale_words(config: PreTrainedConfig) -> str | None:
    """What is said once of a checkpoint that comes with a query scale; None of one without."""
    scale = scale_of(config)
    if scale is None:
        return None
    return f"The model's config.json has a query scale, which is honoured: queries at position p × {scale.words()}."


def serving_words(config: PreTrainedConfig) -> str | None:
    """What whoever serves such a model has to do, in a sentence; None of a model without a query scale."""
    scale = scale_of(config)
    if scale is None:
        return None
    return (
        f"This model multiplies the query at position p (counted from 0) by {scale.words()}, behind its rotary "
        f"embedding and before attention, as `{STORED}` of its config.json says; an engine that does not computes "
        "another model."
    )
