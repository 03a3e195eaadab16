"""A reference that follows the policy: TR-DPO (arXiv 2404.09656), and its weights in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.core.errors import UserError
from align.reference.settings import check_pace
from align.reference.sources import Frozen

if TYPE_CHECKING:
    from align.training.trainer import PreferenceTrainer

FILE = "reference.safetensors"  # in a checkpoint: the reference's weights as they were then


class Following(TrainerCallback):
    """Every `steps` optimizer steps θ_ref ← α·θ + (1 − α)·θ_ref, computed in fp32 and rounded to θ_ref's type.

    With α = 0.6 a weight 1.0 of the reference and 2.0 of the policy become 1.6. With α = 1 the reference becomes the
    policy, bit for bit where their types are the same. Every process has whole weights and computes the same.

    Args:
        reference: a model of its own, of the policy's architecture.
        steps: N ≥ 1, the paper's τ.
        alpha: α in (0, 1].
    """

    def __init__(self, reference: Frozen, *, steps: int, alpha: float) -> None:
        self._reference, self._steps, self._alpha = reference, steps, alpha

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Follows after the optimizer's step, before a checkpoint of it is written."""
        if model is not None and state.global_step % self._steps == 0:
            self.follow(model)

    @torch.no_grad()
    def follow(self, policy: nn.Module) -> None:
        """Moves the reference towards the policy.

        Raises:
            UserError: their parameters have other names or shapes.
        """
        own = self._weights()
        theirs: dict[str, Tensor] = dict(policy.named_parameters())
        check_alike(own, theirs)
        for name, weight in own.items():
            # `lerp` leaves weights that are equal as they are, and ends at the policy's where α is 1.
            moved = torch.lerp(weight.float(), theirs[name].to(weight.device).float(), self._alpha)
            weight.copy_(moved)

    def save(self, folder: Path, *, writes: bool) -> None:
        """See `saving.Kept`."""
        if writes:
            held = {name: weight.detach().cpu().contiguous() for name, weight in self._weights().items()}
            save_file(held, folder / FILE)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """See `saving.Kept`."""
        try:
            saved = load_file(folder / FILE)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{folder / FILE}, the weights of the reference that follows the policy, cannot be read: go on from "
                "another checkpoint, or begin anew with resume=never."
            ) from error
        own = self._weights()
        check_alike(own, saved)
        for name, weight in own.items():
            weight.copy_(saved[name])

    def _weights(self) -> dict[str, Tensor]:
        return dict(self._reference.model.named_parameters())


def check_alike(reference: Mapping[str, Tensor], policy: Mapping[str, Tensor]) -> None:
    """Refuses a reference that cannot follow, since it is another model than the policy.

    Raises:
        UserError: names the first parameter that only one of them has, or that has another shape.
    """
    for name in sorted(reference.keys() | policy.keys()):
        shapes = [tuple(side[name].shape) if name in side else None for side in (reference, policy)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"reference.follow_steps needs a reference of the policy's architecture, and their weights {name} are "
                f"of the shapes {shapes[0]} and {shapes[1]}: leave reference.model out."
            )


def follow(trainer: PreferenceTrainer, *, steps: int, alpha: float) -> None:
    """Lets a trainer's reference follow its policy, through checkpoints and resumed runs.

    Args:
        trainer: before it trains; its reference is a model of its own (`Frozen`).
        steps: optimizer steps between two updates.
        alpha: α, the policy's part in the new reference; 1 makes it the policy.

    Raises:
        UserError: α or `steps` out of range; a reference that is the policy without its adapter, comes from a cache or
            is another model than the policy.
    """
    check_pace(steps, alpha)
    reference, policy = trainer.reference, trainer.model
    if not isinstance(reference, Frozen) or policy is None:
        raise UserError(
            "Only a reference that is a model of its own can follow the policy: a frozen copy, no cache."
        )
    check_alike(dict(reference.model.named_parameters()), dict(policy.named_parameters()))
    following = Following(reference, steps=steps, alpha=alpha)
    trainer.add_callback(following)
    trainer.kept = (*trainer.kept, following)
