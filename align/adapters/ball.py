"""Rows that stay near where they began: the ball of Context-aware Prompt Tuning (arXiv 2410.17222)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

WIDTH = 2048  # of the embeddings that CPT gives its radius for


def into_ball(moved: Tensor, *, radius: float) -> Tensor:
    """Each row δ that is longer than ε = radius · √(H / 2048) cut to that length: δ · ε / max(‖δ‖, ε).

    With H = 576 and a radius of 0.1, ε is 0.0530. PEFT's CPT does the same before each forward pass, with a radius for
    each kind of token.

    Args:
        moved: `[k, H]` δ, how far each row is from where it began.
        radius: above 0.
    """
    most = radius * (moved.shape[-1] / WIDTH) ** 0.5
    return moved * (most / moved.norm(dim=-1, keepdim=True).clamp(min=most))


class StayInBall(TrainerCallback):
    """After each step of the optimizer the rows of a soft prompt go back into the ball around where they began.

    Every process does the same with the same rows.

    Args:
        layer: PEFT's, which holds rows that train and the ones that they began with.
        radius: see `into_ball`.
    """

    def __init__(self, layer: nn.Module, radius: float) -> None:
        self.layer, self.radius = layer, radius

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Puts rows that have left the ball on its surface."""
        layer: Any = self.layer
        weight, first = layer.ln_tuning_layers["default"].weight, layer.base_layer.weight
        with torch.no_grad():
            weight.copy_(first + into_ball(weight - first, radius=self.radius))
