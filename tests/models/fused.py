"""Small models of the families of `model.kernels=liger`, and a step of each: what both tests of the kernels share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig

from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.small_model import build_small
from align.models.kernels import FAMILIES
from align.models.loading import library_class
from align.models.text_part import set_attention
from benchmarks.architecture_worker import Architecture
from tests.longseq.plain import gradients, make_example

# Text parts that come with images alone → the composite that has them.
COMPOSITES = {"qwen2_5_vl_text": "qwen2_5_vl", "qwen3_vl_text": "qwen3_vl"}
VOCABULARY = 50


def family_config(family: str) -> PreTrainedConfig:
    """The class's own defaults."""
    return Architecture(CONFIG_MAPPING[COMPOSITES.get(family, family)]).config()


def family_model(family: str) -> Any:
    """A model of the family, small in everything, with our attention; the same weights every time, fp32."""
    config = family_config(family)
    model = build_small(library_class(config), config, dtype=torch.float32)  # type: ignore[arg-type]
    set_attention(model, ATTENTION)
    return model


def loss_of(model: nn.Module) -> Tensor:
    """Of one prompt with three answers: a number that every parameter takes part in."""
    rng = np.random.default_rng(0)
    example = make_example(rng, prompt=14, answers=(5, 4, 3), vocabulary=VOCABULARY)
    device = next(model.parameters()).device
    logps = pair_logps(model, pack([example]).to(device))
    return (logps.chosen - logps.rejected.sum(-1)).sum()


def step(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss, and the gradient of every parameter that trains."""
    loss = loss_of(model)
    return loss.detach(), gradients(model, loss)


def assert_counts(family: str, counts: dict[str, int], *, layers: int) -> None:
    """Every layer's MLP and attention, and at least two norms a layer and the last."""
    fused = FAMILIES[family]
    of_layers = {} if fused.mlp is None else {fused.mlp.module: layers}
    if fused.rotary:
        of_layers["LigerRopeFunction"] = layers
    assert counts["LigerRMSNorm"] >= 2 * layers + 1
    assert counts == {"LigerRMSNorm": counts["LigerRMSNorm"], **of_layers}
