"""Published set-ups as `align plan` sees them: docs/planning.md shows each command with what it prints.

`docs/tables.py` writes them, and a test holds that the page says what the commands give today.
"""

from __future__ import annotations

import shlex
import textwrap

from align.planning.planner import Plan, make_plan
from align.planning.search import Priced
from align.runs.composition import compose_command

# What is planned → the words behind `align plan`.
SET_UPS = {
    "LongPO's Mistral-7B with 128K tokens on 8 GPUs": (
        "experiment=longpo_mistral_7b_128k rows.short_prompt=4096 wrapper=zero3_offload"
    ),
    "DPO of Qwen2.5-7B, all parameters, with 84K tokens on 8 GPUs (360-LLaMA-Factory)": (
        "model=qwen2_5_7b method=dpo model.dtype=float32 trainer.bf16=true parallel=gather parallel.degree=8 "
        "wrapper=zero3 rows.prompt=84000 rows.answer=512"
    ),
    "DPO of Llama-3-8B, all parameters, with 8K tokens on two machines": (
        "model=llama3_8b method=dpo model.dtype=float32 trainer.bf16=true rows.prompt=8000 gpus=h100_80gb "
        "gpus.count=16 gpus.nodes=2"
    ),
}


def made(words: str) -> Plan:
    """The plan that the command prints."""
    return make_plan(compose_command("plan", shlex.split(words)))


def described(priced: Priced) -> str:
    """`21.6 GB and 195 seconds a step`."""
    return f"{priced.memory.total / 1e9:.1f} GB and {priced.time.total:.3g} seconds a step"


def sentences(plan: Plan) -> str:
    """What the columns say, in words."""
    best = "Nothing fits."
    if plan.best is not None:
        strategy = plan.best.strategy
        degree = f" at degree {strategy.degree} ({strategy.exchange})" if strategy.degree > 1 else ""
        best = f"The fastest that fits: {described(plan.best)}, {strategy.wrapper}{degree}."
    return (
        f"as given {described(plan.given)}; padded rows {described(plan.fused)} with a fused head, "
        f"{described(plan.plain)} with all logits. {best}"
    )


def published() -> str:
    """Every set-up: a paragraph and its command."""
    parts = []
    for name, words in SET_UPS.items():
        text = "\n".join(textwrap.wrap(f"**{name}**: {sentences(made(words))}", 118))
        command = " \\\n  ".join(textwrap.wrap(f"align plan {words}", 110, break_on_hyphens=False))
        parts.append(f"{text}\n\n```bash\n{command}\n```\n")
    return "\n".join(parts)
