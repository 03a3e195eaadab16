"""A loss or a gradient that is not finite ends a run before its step is made, and is named with its rows."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from align.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

_CURE = (
    "lower trainer.learning_rate, train in float32, or look at these rows with `align inspect`; the last checkpoint is "
    "whole."
)


class FiniteLosses:
    """Watches the losses of a step's prompts; they stay on the device until the step's last micro-batch."""

    def __init__(self) -> None:
        self._seen: list[tuple[Tensor, list[str | None]]] = []

    def watch(self, losses: Tensor, inputs: Mapping[str, Any]) -> None:
        """Takes in a micro-batch: its `[B]` losses, `real` `[B]` and, where the collator gives them, `sources`."""
        names = inputs.get("sources") or [f"prompt {i + 1} of a micro-batch" for i in range(len(losses))]
        counted = [name if real else None for name, real in zip(names, inputs["real"].tolist(), strict=True)]
        self._seen.append((~losses.detach().isfinite(), counted))

    def check(self, *, step: int) -> None:
        """Looks at what has been seen since the last call; one wait for the device.

        Args:
            step: the optimizer step that would be made, from 1.

        Raises:
            UserError: names the rows.
        """
        rows = self.rows()
        if rows:
            raise UserError(
                f"Step {step}: the loss is not finite for {listed(rows)}, so the step was not made: {_CURE}"
            )

    def rows(self) -> list[str]:
        """The rows with a loss that is not finite since the last call; one wait for the device."""
        seen, self._seen = self._seen, []
        if not seen:
            return []
        flags = torch.cat([bad for bad, _ in seen]).tolist()
        names = [name for _, names in seen for name in names]
        return [name for flag, name in zip(flags, names, strict=True) if flag and name is not None]


def warn_of_rows(rows: Sequence[str]) -> None:
    """Names held-out rows of which the loss is not finite; the means that they are part of are not either."""
    if rows:
        logger.warning("Held-out rows without a finite loss: %s. Their means are NaN.", listed(rows))


def check_gradient_norm(norm: Any, *, step: int, scaled: bool) -> None:
    """Ends a run whose losses are finite and whose gradient is not.

    Args:
        norm: over all parameters; None where the wrapper does not say.
        step: the optimizer step, from 1.
        scaled: losses are scaled (fp16): the scaler leaves such a step out, lowers its scale and goes on.

    Raises:
        UserError: names the step.
    """
    if norm is not None and not scaled and not math.isfinite(float(norm)):
        raise UserError(f"Step {step}: the gradient's norm is {float(norm)}, and is not followed: {_CURE}")


def listed(rows: Sequence[str], *, most: int = 5) -> str:
    """`a:1, a:2 and 3 more`."""
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return ", ".join(rows[:most]) + more
