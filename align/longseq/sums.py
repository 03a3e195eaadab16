"""What is summed over each answer's tokens beside their log-probs, only where it is asked for; and the log-probs' sums.

- **weighted** sums, where tokens have weights (`token_weights`): Σ w·log p.
- **fronts**, where a method cuts both answers of a pair to one length (`needs.fronts`): Σ log p over the first
  min(|y_w|, |y_l|) tokens of each. With M rejected answers the chosen one has M of them.
- **collisions**, where a method asks how sure the policy is (`needs.collision`): Σ log Σ_v p_v² over the vocabulary v.

The first two are sums of log-probs times a factor, 0 or 1 for a front: linear in what is there, so that packing, shards
and gradients need nothing more. K numbers of each answer come of a row: the plain sum, then these in their order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from align.longseq.logps import sum_by_index
from align.longseq.moving import from_bits
from align.longseq.shared_prefix import SharedPrefixBatch, SharedPrefixRow


def factors_of(row: SharedPrefixRow) -> Tensor:
    """`[S, F]` what the log-prob of each scored token is multiplied with: its weight, then 1 in the M fronts, else 0.

    F = 0 where nothing is asked for. Answers of 3 and 2 tokens without weights: 1 1 0 for the chosen one's, 1 1.
    """
    weight = from_bits(row.weight)
    factors = weight.new_empty(len(row.answer), 0)
    if row.weight_sum.shape[1]:
        factors = weight[:, None]
    if row.cuts.shape[1]:
        within = row.order[:, None] < row.cuts[row.answer // row.lengths.shape[1]]
        factors = torch.cat([factors, within.to(factors.dtype)], dim=1)
    return factors


def token_values(logps: Tensor, factors: Tensor) -> list[Tensor]:
    """`[S]` each: what is summed of the scored tokens.

    Args:
        logps: `[S]` log-probs, or `[S, 2]` with the log of Σ_v p_v² behind each.
        factors: `[S, F]`.
    """
    plain, *more = per_token(logps)
    return [plain, *(plain * factor for factor in factors.unbind(1)), *more]


def per_token(logps: Tensor) -> tuple[Tensor, ...]:
    """`[S]` log-probs alone, or with what stands behind each in `[S, 2]`."""
    return (logps,) if logps.dim() == 1 else logps.unbind(1)


def sums_of_row(row: SharedPrefixRow, logps: Tensor) -> Tensor:
    """`[b, K·A + 1]`: the K sums of each answer, `[K, A]`, and last the log-probs of the context that the NLL adds.

    Args:
        row: b prompts with A answers each, or a process's shard of it.
        logps: of `row.scored_tokens(…)`, as `token_values` takes them.
    """
    prompts, answers = row.lengths.shape
    scored, context = logps[: len(row.predictor)], logps[len(row.predictor) :]
    sums = [
        sum_by_index(values, row.answer, prompts * answers).view(prompts, answers)
        for values in token_values(scored, factors_of(row))
    ]
    plain = per_token(context)[0]
    context_sums = sum_by_index(plain, row.context_prompt[: len(plain)], prompts)
    return torch.cat([*sums, context_sums[:, None]], dim=1)


def table_of(totals: Tensor, answers: int) -> tuple[Tensor, Tensor]:
    """`[B, K, A]` sums and `[B]` context out of `[B, K·A + 1]`."""
    return totals[:, :-1].unflatten(1, (-1, answers)), totals[:, -1]


def named_sums(table: Tensor, batch: SharedPrefixBatch, *, collision: bool) -> dict[str, Any]:
    """The sums beside the plain one, as fields of `PairLogps`.

    Args:
        table: `[B, K, A]`.
        batch: what they are of.
        collision: whether they were asked for.
    """
    first, at = batch.rows[0], 1
    named: dict[str, Any] = {}
    if first.weight_sum.shape[1]:
        weight = from_bits(torch.cat([row.weight_sum for row in batch.rows]))
        named |= {"weighted": table[:, at], "weight": weight}
        at += 1
    if fronts := first.cuts.shape[1]:
        own = table[:, at : at + fronts]
        named["chosen_front"] = own[:, :, 0]
        named["rejected_front"] = own[:, :, 1:].diagonal(dim1=1, dim2=2)
        at += fronts
    if collision:
        named["collision"] = table[:, at].detach()
    return named
