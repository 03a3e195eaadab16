"""Temperature and top-p sampling with one random number generator a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from align.core.errors import UserError

HEAD = 1024  # candidates looked at first; a full sort of a large vocabulary costs as much as a small model


class RowSampler(LogitsProcessor):
    """Draws the next token of each row and leaves it as the only one, for greedy decoding to take.

    `generate(do_sample=True)` draws for the whole batch from one global generator, so that a row's sample
    depends on its batch. Here each row inverts its own distribution at one uniform number a step.

    Args:
        seeds: `[B]` one a row.
        temperature: 0 leaves the logits alone, so that greedy decoding takes the likeliest token.
        top_p: mass of the nucleus, 0 < top_p ≤ 1 (Holtzman et al. 2020).
    """

    def __init__(self, seeds: Sequence[int], *, temperature: float, top_p: float) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = temperature
        self.top_p = top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`[B, n]` ids so far, `[B, V]` logits → `[B, V]`: 0 at the drawn token, −∞ elsewhere."""
        if self.temperature == 0:
            return scores
        draws = [torch.rand((), generator=generator, dtype=torch.float64) for generator in self.generators]
        uniforms = torch.stack(draws).to(scores.device)
        tokens = draw_nucleus(scores, uniforms, temperature=self.temperature, top_p=self.top_p)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


class FiniteLogits(LogitsProcessor):
    """Ends the run where a row has no likeliest token: NaN would be drawn from in vain, or be taken for token 0.

    Args:
        ids: `[B]` what each row answers, for people.
        name: of the model.
    """

    def __init__(self, ids: Sequence[str], *, name: str) -> None:
        self.ids = ids
        self.name = name

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The logits as they are."""
        wrong = ~torch.isfinite(scores.amax(-1))
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0, 0])
            raise UserError(
                f"{self.ids[row]}: the model {self.name} gives no number ({float(scores[row].amax())}) for the next "
                "token: take model.dtype=float32, or other weights, since these have come apart."
            )
        return scores


def draw_nucleus(logits: Tensor, uniforms: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """The token at which the cumulated, renormalised probability of the nucleus passes the uniform number.

    Of probabilities 0.5, 0.3, 0.2 and `top_p` 0.75 the nucleus is the first two, which renormalised are 0.625 and
    0.375: a uniform number of 0.6 draws the first one, 0.7 the second.

    Args:
        logits: `[B, V]`.
        uniforms: `[B]` in [0, 1), fp64.
        temperature: greater than 0.
        top_p: the nucleus holds the likeliest tokens, up to and with the one that reaches this mass.

    Returns:
        `[B]` token ids.
    """
    logits = logits.double()
    # Less its maximum a row survives being divided by the smallest temperature.
    probabilities = torch.softmax((logits - logits.amax(-1, keepdim=True)) / temperature, dim=-1)
    values, tokens = _head(probabilities, top_p)
    before = values.cumsum(-1) - values
    nucleus = before < top_p
    cumulated = torch.where(nucleus, values, 0.0).cumsum(-1)
    drawn = torch.searchsorted(cumulated, uniforms[:, None] * cumulated[:, -1:], right=True)
    last = nucleus.sum(-1, keepdim=True) - 1  # a uniform number next to 1 may round up to the whole mass
    return tokens.gather(1, torch.minimum(drawn, last))[:, 0]


def _head(probabilities: Tensor, mass: float) -> tuple[Tensor, Tensor]:
    """The likeliest tokens, in falling order, as many as every row needs to reach `mass`."""
    size, count = probabilities.shape[-1], HEAD
    while True:
        values, tokens = probabilities.topk(min(count, size), dim=-1)
        if count >= size or bool((values.sum(-1) >= mass).all()):
            return values, tokens
        count *= 8
