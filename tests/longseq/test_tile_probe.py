"""Tiles of a layer against the whole layer, before weights are read."""

from __future__ import annotations

import pytest
from transformers import CONFIG_MAPPING

from align.core.errors import UserError
from align.longseq.settings import MemorySettings
from align.longseq.tile_probe import check_tiles
from align.models.settings import ModelSettings

TILED = MemorySettings(checkpointing="full", mlp_chunk=512)
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}


def folder_of(tmp_path, kind: str, **values) -> ModelSettings:
    """A folder that holds a configuration and nothing else."""
    CONFIG_MAPPING[kind](**(SIZES | values)).save_pretrained(tmp_path / kind)
    return ModelSettings(path=str(tmp_path / kind))


@pytest.mark.parametrize("kind", ["llama", "qwen3_next"])
def test_layers_that_hand_on_their_output_alone_are_cut(tmp_path, kind):
    check_tiles(folder_of(tmp_path, kind, num_hidden_layers=4), TILED)


def test_layers_that_take_over_keys_and_values_are_refused(tmp_path):
    """Gemma-4's last layers attend with the keys of earlier ones; without tiles nothing is said."""
    gemma = folder_of(tmp_path, "gemma4_text", num_hidden_layers=12, num_kv_shared_layers=6)
    check_tiles(gemma, MemorySettings())
    for _ in range(2):  # found out, and remembered
        with pytest.raises(UserError, match=r"in tiles .*: set memory\.mlp_chunk=null\."):
            check_tiles(gemma, TILED)
