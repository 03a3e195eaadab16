"""f-divergences between policy and reference: what each makes of a log-ratio (arXiv 2309.16240).

A policy that maximises reward − β·D_f has the reward `β·f'(π/π_ref)`, up to what is the same for both answers of a
pair. Each function takes a log-ratio `x = log π(y) − log π_ref(y)` in nats, of any shape, and returns `f'(eˣ)` of the
same shape, shifted to 0 at x = 0, since constants cancel. All rise with x, at different rates:

    x               −2      −1       0       1       2
    reverse_kl     −2.00   −1.00    0.00    1.00    2.00
    jensen_shannon −1.43   −0.62    0.00    0.38    0.57
    alpha ½        −3.44   −1.30    0.00    0.79    1.26
    forward_kl     −6.39   −1.72    0.00    0.63    0.86
    chi_squared    −2.86   −1.63    0.00    2.72    8.39

Beyond an exponent of 30 the exponentials go on as their tangents: a likelihood that fell by a factor of e³⁰ or more
keeps a finite loss and a gradient, where TRL's overflow (forward KL) or lose the gradient (α).
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from losses._pairs import finite_expm1


def reverse_kl(log_ratio: Tensor) -> Tensor:
    """`x`, of KL(π‖π_ref): f-DPO is then the ordinary DPO."""
    return log_ratio


def forward_kl(log_ratio: Tensor) -> Tensor:
    """`1 − e⁻ˣ`, of KL(π_ref‖π): a likelihood that falls counts exponentially, one that rises less and less."""
    return -finite_expm1(-log_ratio)


def jensen_shannon(log_ratio: Tensor) -> Tensor:
    """`log(2eˣ / (1 + eˣ))`: as the reverse KL where a likelihood falls, at most log 2 where it rises."""
    return math.log(2) + F.logsigmoid(log_ratio)


def alpha(log_ratio: Tensor, *, alpha: float) -> Tensor:
    """`(1 − e^(−αx)) / α`: from the reverse KL (α → 0) to the forward KL (α → 1).

    Args:
        log_ratio: x, nats, of any shape.
        alpha: α in (0, 1), the paper's. TRL's code has (u^(c − 1) − 1) / (c − 1): its coefficient c is 1 − α.

    Raises:
        ValueError: α outside (0, 1).
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(
            f"divergences.alpha: alpha must lie in (0, 1), got {alpha}; take reverse_kl for 0, forward_kl for 1"
        )
    return -finite_expm1(-alpha * log_ratio) / alpha


def chi_squared(log_ratio: Tensor) -> Tensor:
    """`eˣ − 1 + x`, χ² mixed with the reverse KL: the link of χPO (arXiv 2407.13399).

    The reward of an answer grows with its ratio itself, so that the margin asked for is reached while the policy is
    still near the reference: pessimism towards answers that the data say little about. The paper also clips the margin
    at the largest difference of true rewards, which is not known here.
    """
    return finite_expm1(log_ratio) + log_ratio
