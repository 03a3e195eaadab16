"""A recipe's model where the Hub cannot be reached: what reads its configuration and no weights needs no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import AutoConfig

from align.core.errors import UserError
from align.core.telling import tell
from align.models.loading import load_config
from align.models.settings import ModelSettings
from align.planning.known import KNOWN


def or_published(settings: ModelSettings, folder: Path) -> ModelSettings:
    """The settings; of a known model whose config.json is not to be had those of its published sizes, which is said.

    Extra tokens are left out then: they need its tokenizer.

    Args:
        settings: group `model`.
        folder: an empty one, where that configuration is written; it has to stay while the settings are used.

    Raises:
        UserError: nothing has the model, or its settings do not go together.
    """
    try:
        load_config(settings)
    except UserError as error:
        facts = KNOWN.get(settings.path)
        if facts is None or not isinstance(error.__cause__, OSError):
            raise
        AutoConfig.for_model(**facts).save_pretrained(folder)
        tell(
            f"model.path={settings.path} is not to be had here: its published sizes count (align/planning/known.py)."
        )
        return replace(settings, path=str(folder), extra_tokens=[])
    return settings
