"""Recipes for longer windows in `align plan` and `align verify`, without the Hub; what short rows do not show."""

from __future__ import annotations

import json
from collections import Counter
from unittest.mock import Mock

import hydra
import pytest
from omegaconf import DictConfig

from align import plan, verify
from align.adapters.reading import read_model
from align.core.errors import UserError
from align.models.query_scale import override_query_scale
from align.models.settings import ModelSettings
from align.patterns.choices import EveryWindow
from align.patterns.layers import Chosen, attention_patterns, keep_patterns
from align.patterns.pattern import FULL
from align.planning.architecture import read_config
from align.planning.published import or_published
from align.query_scale.log_length import LogLength
from align.verification.unshown import unshown
from tests.tiny import tiny_model


def compose(command: str, *overrides: str) -> DictConfig:
    with hydra.initialize_config_module("hydra_conf", version_base="1.3"):
        return hydra.compose(command, list(overrides))


# Recipes for longer windows: the layers that are not full, and their pattern.
HALVES = "heads 0 … 15 Chunked(size=8192), heads 16 … 31 Chunked(size=8192, shift=4096)"
LONGER = {
    "logo_llama3_8b_64k": {},
    "prolong_llama3_8b_64k": {},
    "utk_qwen2_7b_128k": {},
    "e2_llama2_13b": {},
    "eabf_llama2_7b": {},
    "longlora_llama2_7b_32k": {HALVES: 32},
    "longgen_llama2_7b_128k": {"Window(size=2048, sinks=64)": 21},
}


@pytest.mark.parametrize("name", LONGER)
def test_recipes_for_longer_windows_are_planned_and_verified(name):
    """`align plan` and `align verify` take them as they stand, and read the same of them."""
    planned, verified = (compose(command, f"experiment={name}") for command in ("plan", "verify"))
    plan.check(planned)
    model, memory, parallel = verify.check(verified)
    assert model == read_model(planned)
    assert (vars(memory), vars(parallel)) == (planned.memory, planned.parallel)
    config, where = read_config(model)
    assert "published sizes" in where
    found = Counter(str(each) for each in attention_patterns(config) if each != FULL)
    assert found == LONGER[name]


def test_a_known_model_needs_no_hub_to_be_verified(tmp_path, monkeypatch, capsys):
    """Where its config.json is not to be had; one that nothing knows stays refused."""
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", Mock(side_effect=OSError("no network")))
    settings = read_model(compose("verify", "experiment=utk_qwen2_7b_128k"))
    found = or_published(settings, tmp_path)
    assert (found.path, found.extra_tokens, found.rope) == (str(tmp_path), [], settings.rope)
    assert json.loads((tmp_path / "config.json").read_text())["num_attention_heads"] == 28
    assert "its published sizes count" in capsys.readouterr().err
    with pytest.raises(UserError, match="no model could be loaded"):
        or_published(ModelSettings(path="nobody/unknown"), tmp_path)


@pytest.mark.parametrize(("window", "tokens", "said"), [(20, 20, 1), (20, 21, 0)])
def test_a_pattern_that_hides_nothing_is_named(window, tokens, said):
    """A window of 20 tokens hides the first one from the 21st."""
    config = tiny_model().config
    keys = {"_target_": "align.patterns.choices.EveryWindow", "window": window}
    keep_patterns(config, Chosen(EveryWindow(window), keys))
    found = list(unshown(config, tokens))
    assert len(found) == said and all("through Window(size=20)" in one for one in found)


@pytest.mark.parametrize(
    ("window", "skip", "tokens", "said"), [(20, 0, 20, 1), (20, 0, 21, 0), (20, 9, 21, 1)]
)
def test_a_query_scale_that_changes_nothing_is_named(window, skip, tokens, said):
    """The factor is above 1 from position 20 on, and in no layer where all are left alone."""
    config = tiny_model().config
    override_query_scale(config, LogLength(window=window, skip_layers=skip), window=None)
    found = list(unshown(config, tokens))
    assert len(found) == said and all("model.query_scale is 1 in" in one for one in found)
