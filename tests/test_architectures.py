"""The table of architectures: some families still have the verdict that is committed, and the slow run all of them.

An update of transformers that breaks a family shows here by the family's name.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from align.models.loading import library_class
from align.models.settings import LIBRARY, MASKED
from benchmarks.architecture_worker import Architecture, architectures, in_a_process, verdict_of
from benchmarks.architectures import RESULTS

CLASSES: dict[str, Any] = json.loads(RESULTS.read_text())["classes"]
# Name → its verdict, both written down here too, so that a new run cannot quietly say less.
FAMILIES = {
    "llama": "shared",
    "mistral": "shared",
    "qwen2": "shared",
    "qwen3": "shared",
    "qwen3_moe": "shared",
    "gemma3": "shared",
    "gemma3_text": "shared",
    "gemma4_text": "shared",
    "gpt_oss": "shared",
    "olmo3": "shared",
    "cohere2": "shared",
    "deepseek_v3": "shared",
    "glm4_moe_lite": "shared",
    "llama4_text": "shared",
    "phi3": "shared",
    "granite": "shared",
    "smollm3": "shared",
    "qwen3_next": "shared",
    "qwen3_5_text": "shared",
    "kimi_linear": "shared",
    "nemotron_h": "shared",
    "falcon_h1": "shared",
    "jamba": "shared",
    "lfm2": "shared",
    "gemma2": "shared",
    "mamba2": "shared",
    "glm_moe_dsa": "by a mask",
    "falcon": "by a mask",
    "bloom": "own rows",
}


WAYS = {"by a mask": MASKED, "own rows": LIBRARY}  # verdict → `model.attention` that trains


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_its_verdict(name):
    assert CLASSES[name]["verdict"] == FAMILIES[name]
    config = Architecture(CONFIG_MAPPING[name]).config()
    model_class = library_class(config)
    assert model_class is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a class's own code
        verdict = verdict_of(model_class, config, "sdpa")
        if name_of_way := WAYS.get(FAMILIES[name]):
            assert verdict.kind == "refused", verdict.sentence
            assert "model.attention=" in verdict.sentence
            verdict = verdict_of(model_class, config, name_of_way)
    assert verdict.kind == "exact", verdict.sentence
    assert max(verdict.loss, verdict.gradient) < 1e-6


def test_no_class_is_silently_wrong_and_none_ends_in_a_traceback():
    """What runs is exact to rounding; what does not has a sentence."""
    for name, row in CLASSES.items():
        assert row["verdict"] in ("shared", *WAYS, "refused", "unproven", "not built"), name
        if row["verdict"] in ("shared", *WAYS):
            assert max(row["loss"], row["gradient"]) < (1e-6 if row["dtype"] == "float64" else 1e-3), name
        else:
            assert row["sentence"], name


def test_nine_decoders_in_ten_share_a_prompt_and_nearly_all_train():
    """Of those that are decoders by birth and could be built; most by our attention, the others by a mask."""
    decoders = [
        row["verdict"]
        for row in CLASSES.values()
        if row.get("decoder") and "images" not in row["marks"] and row["verdict"] != "not built"
    ]
    ours, masked = decoders.count("shared"), decoders.count("by a mask")
    assert ours >= 0.75 * len(decoders)
    assert ours + masked >= 0.9 * len(decoders)
    assert ours + masked + decoders.count("own rows") >= 0.95 * len(decoders)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", list(architectures()), ids=lambda each: each.name)
def test_every_class_has_its_verdict(architecture):
    found = in_a_process(architecture)
    assert found["verdict"] == CLASSES[architecture.name]["verdict"], found.get("sentence")
