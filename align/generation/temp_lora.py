"""Temp-LoRA: an adapter that is trained on what a model has just read or written, and thrown away behind the text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from align.adapters.lora import Lora
from align.adapters.targets import ALL_LINEAR, linear_names
from align.core.errors import UserError
from align.longseq.logps import token_logps
from align.longseq.tail import tail_of
from align.models.structure import find_causal_lm
from align.models.text_part import text_decoder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from align.generation.memories import TempLora

HEAD_CHUNK = 1024  # tokens whose vocabulary logits exist at once
BETAS, EPSILON = (0.9, 0.999), 1e-7  # of AdamW (released code)


@contextmanager
def attached(settings: TempLora, model: PreTrainedModel, *, seed: int) -> Iterator[ThrowAway]:
    """Within it an untrained adapter lies on the model; behind it the model is as it was.

    Args:
        settings: of the adapter and its training.
        model: changed in place.
        seed: of the adapter's start and its dropout; torch's own random numbers are left as they were.

    Raises:
        UserError: the model has an adapter already, which would go with this one, or nothing to put one on.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise UserError(
            "memory=temp_lora puts an adapter of its own on the model, which has one already: merge that first by "
            "`align export`."
        )
    if settings.target_modules == [ALL_LINEAR] and not linear_names(model):
        raise UserError(
            f"memory=temp_lora finds no linear layer in {type(model).__name__} but its head: name the modules that it "
            "is put on, memory.target_modules=[…]."
        )
    trained = [(weight, weight.requires_grad) for weight in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    lora = Lora(
        r=settings.r,
        alpha=settings.alpha,
        dropout=settings.dropout,
        target_modules=list(settings.target_modules),
    )
    adapted: PeftModel | None = None
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapted = lora.add(model)
        yield ThrowAway(settings, adapted.eval(), seed=seed)
    finally:
        if adapted is not None:
            adapted.unload()  # type: ignore[operator]
        for weight, trains in trained:
            weight.requires_grad_(trains)
        for module, training in modes:
            module.training = training


class ThrowAway:
    """The adapter of one text with its optimizer; see `Kept`.

    Args:
        settings: of its training.
        adapted: the model inside PEFT, in eval mode.
        seed: of dropout.
    """

    def __init__(self, settings: TempLora, adapted: PeftModel, *, seed: int) -> None:
        self.settings, self.adapted, self.seed = settings, adapted, seed
        self.count = 0
        self._weights = [weight for weight in adapted.parameters() if weight.requires_grad]
        self._dropouts = [
            module for name, module in adapted.named_modules() if name.endswith("lora_dropout.default")
        ]
        self._optimizer = torch.optim.AdamW(self._weights, betas=BETAS, eps=EPSILON, weight_decay=0.0)

    def without(self) -> AbstractContextManager[None]:
        """See `Kept.without`."""
        off: AbstractContextManager[None] = self.adapted.disable_adapter()
        return off

    def read(self, ids: Tensor, first: int) -> None:
        """A few steps of AdamW on the chunk `ids[first:]`, given what is before it; see `Kept.read`.

        Raises:
            UserError: the loss is no number.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.rate(self.count)
        with torch.random.fork_rng(), torch.enable_grad(), self._dropping():
            torch.manual_seed(self.seed + self.count)
            for _ in range(self.settings.steps):
                loss = -chunk_logps(self.adapted, ids, first).mean()
                if not bool(loss.isfinite()):
                    raise UserError(
                        f"memory=temp_lora: the loss of chunk {self.count + 1} is {float(loss.detach())}: lower "
                        "memory.learning_rate."
                    )
                loss.backward()
                nn.utils.clip_grad_norm_(self._weights, self.settings.max_grad_norm)
                self._optimizer.step()
                self._optimizer.zero_grad(set_to_none=True)
        self.count += 1

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        """Within it the adapter's own dropout is on, and no other of the model's."""
        for module in self._dropouts:
            module.train()
        try:
            yield
        finally:
            for module in self._dropouts:
                module.eval()


def chunk_logps(model: Any, ids: Tensor, first: int) -> Tensor:
    """Log-probs, fp32, of the tokens `ids[first:]`, each given all before it; gradients flow where they are on.

    Args:
        model: a causal language model, inside PEFT or not.
        ids: `[n]`.
        first: 1 or more.

    Returns:
        `[n − first]`.
    """
    lm = find_causal_lm(model)
    hidden = text_decoder(lm)(input_ids=ids[None], use_cache=False).last_hidden_state[0, first - 1 : -1]
    slices = math.ceil(len(hidden) / HEAD_CHUNK)
    return token_logps(tail_of(lm).of(lm.get_output_embeddings()), hidden, ids[first:], slices=slices)
