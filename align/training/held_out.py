"""Held-out rows measured: the same numbers whatever the batches, the number of processes and the degree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.trainer_utils import EvalLoopOutput

from align.training.divergence import FiniteLosses, warn_of_rows
from align.training.metric_names import METRICS
from align.training.metrics import mean_metrics, prompt_metrics
from align.training.weighting import held_out_columns

if TYPE_CHECKING:
    from align.training.trainer import PreferenceTrainer


def measure(trainer: PreferenceTrainer, model: nn.Module, loader: Any, *, prefix: str) -> EvalLoopOutput:
    """Means of `METRICS` over the held-out prompts, each counted once; the loss weighted as in training.

    A loss over the whole step is called with all held-out prompts at once.

    Args:
        trainer: gives log-probs, and the loss of its method.
        model: the policy in evaluation mode.
        loader: of the held-out rows.
        prefix: before each metric's name: `eval`.
    """
    args, weighting = trainer.args, trainer.method.needs.weighting
    counts = args.process_index % trainer.degree == 0  # the ranks of a group hold the same
    parts, marks, names = [], [], list[dict[str, Any]]()
    for inputs in loader:
        with torch.no_grad(), trainer.compute_loss_context_manager():
            inputs = trainer._prepare_inputs(inputs)
            parts.append(trainer.scored(model, inputs))
        nothing = parts[-1].policy.chosen[:, None][:, :0]
        marks.append(held_out_columns(nothing, inputs, weighting, counts=counts))
        names.append({name: inputs[name] for name in ("real", "sources") if name in inputs})
        trainer.control = trainer.callback_handler.on_prediction_step(args, trainer.state, trainer.control)
    finite, rows = FiniteLosses(), [torch.zeros(0, len(METRICS) + 2, device=args.device)]
    for part, output, own, name in zip(parts, trainer.step.held_out(parts), marks, names, strict=True):
        finite.watch(output.loss, name)
        columns = torch.cat([prompt_metrics(part.policy, output), own], dim=1)
        rows.append(trainer.accelerator.gather(columns) if args.world_size > 1 else columns)
    warn_of_rows(finite.rows())
    gathered = torch.cat(rows).cpu()
    gathered = gathered[gathered[:, -1] > 0]
    table, weights = gathered[:, :-2], gathered[:, -2]
    return EvalLoopOutput(
        predictions=table.numpy(),
        label_ids=None,
        metrics=mean_metrics(table, weights, prefix=prefix),
        num_samples=len(table),
    )
