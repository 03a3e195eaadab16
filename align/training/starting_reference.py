"""The reference that a trainer makes where none is given: the starting model, adapter off or as a frozen copy."""

from __future__ import annotations

import copy
import warnings

from peft import PeftModel
from torch import nn
from transformers import TrainingArguments

from align.core.errors import AlignWarning
from align.longseq.parallel import SequenceParallel
from align.models.precision import cast_parameters
from align.reference.sources import AdapterOff, Frozen, Reference, computing_precision, reference_forward
from align.training.method_settings import Needs


def make_reference(
    needs: Needs,
    policy: nn.Module,
    arguments: TrainingArguments,
    *,
    parallel: SequenceParallel | None,
    logits_chunk: int,
) -> Reference | None:
    """The starting model as reference: a frozen copy; None where none is needed.

    Of a policy with an adapter it is the policy with the adapter off: the base model. That is the policy at the start
    only where the adapter is new, so one that has been trained is warned of.

    Args:
        needs: of the method.
        policy: before its first step.
        arguments: the precision that the policy computes in.
        parallel: as the trainer's.
        logits_chunk: as the trainer's.
    """
    if needs.reference == "none":
        return None
    forward = reference_forward(arguments, parallel=parallel, logits_chunk=logits_chunk)
    if isinstance(policy, PeftModel):
        if any("lora_B" in name and bool(values.any()) for name, values in policy.named_parameters()):
            warnings.warn(
                "the policy's adapter has been trained already, and the reference is the base model without it: merge "
                "the adapter first (merge_and_unload) to start from the policy as it is.",
                AlignWarning,
                stacklevel=3,
            )
        return AdapterOff(policy, forward)
    frozen = copy.deepcopy(policy).eval().requires_grad_(False)
    cast_parameters(frozen, computing_precision(arguments).weights)
    frozen.to(arguments.device)
    return Frozen(lambda: frozen, forward)
