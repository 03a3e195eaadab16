"""A loss of your own: a function and a YAML; tried alone, held against its formula, then trained with.

    python examples/own_loss.py

Less than a minute on two cores. Everything is written below outputs/examples/ of the folder that you start it in.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

import align
from losses import LossOutput, PairLogps

OUTPUT = Path("outputs/examples")
CONF = Path(__file__).parent / "conf"  # its method/simper.yaml names the function below


def simper_loss(policy: PairLogps, reference: PairLogps | None = None, *, weight: float) -> LossOutput:
    """SimPER (arXiv 2502.00883): `−1/PPL(y_w) + weight · 1/PPL(y_l)`, averaged over the rejected answers.

    Args:
        policy: log-probs of B prompts' answers in nats; `chosen` is `[B]`, `rejected` is `[B, M]`.
        reference: not read.
        weight: of the rejected answers.
    """
    chosen = torch.exp(policy.chosen / policy.chosen_length)  # [B], between 0 and 1
    rejected = torch.exp(policy.rejected / policy.rejected_length.clamp(min=1))  # [B, M]
    present = policy.rejected_length > 0  # an answer that a row does not have takes no part
    mean_rejected = (rejected * present).sum(1) / present.sum(1).clamp(min=1)
    return LossOutput(weight * mean_rejected - chosen, chosen.detach(), rejected.detach())


def made_up() -> PairLogps:
    """One prompt: a chosen answer of 5 tokens, rejected ones of 7 and 4, and a place that is empty."""
    return PairLogps(
        chosen=torch.tensor([-10.0]),
        rejected=torch.tensor([[-14.0, -12.0, 0.0]]),
        chosen_length=torch.tensor([5]),
        rejected_length=torch.tensor([[7, 4, 0]]),
    )


def by_hand() -> float:
    """The formula for `made_up`, with a weight of 1: perplexities e², e² and e³."""
    return (math.exp(-2) + math.exp(-3)) / 2 - math.exp(-2)


def train(rows: list[dict[str, Any]]) -> Any:
    """The method by its name, as any other."""
    return align.train(
        "method=simper",
        "allow_targets=[own_loss]",
        "model.path=embedded",
        "model.lora.r=8",
        "trainer.learning_rate=2e-3",
        "trainer.gradient_accumulation_steps=2",
        "trainer.save_strategy=no",
        "data.eval_size=4",
        f"output={OUTPUT / 'own_loss'}",
        config_dir=CONF,
        data=rows,
    )


def main() -> None:
    """The function alone, then on the rows of the first example."""
    from train import make_rows

    loss = simper_loss(made_up(), weight=1.0).loss
    print(f"by the function {loss.item():.6f}, by hand {by_hand():.6f}")
    result = train(make_rows())
    for name in ("rewards/chosen", "rewards/rejected"):
        before, after = result.before[f"eval_{name}"], result.after[f"eval_{name}"]
        print(f"{name}: 1/perplexity {before:.3f} → {after:.3f}")


if __name__ == "__main__":
    main()
