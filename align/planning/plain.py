"""The same job as toolkits run it that do not share the prompt, so that a plan can say what sharing saves.

Each answer stands behind its own copy of the prompt, padded to the longest, with checkpoints of whole layers; all else
is as given, and a frozen reference reads the same rows. A prompt of 1,000 tokens with answers of 100 and 50, one row of
1,150 here, becomes two rows of 1,100: P + Σ a tokens become (1 + M) · (P + max a).
"""

from __future__ import annotations

from dataclasses import replace

from align.planning.job import Job, Levers, Rows, Strategy


def fused_head(job: Job, strategy: Strategy) -> tuple[Job, Strategy]:
    """Padded rows whose head reads the answers alone, some tokens at a time, as TRL's DPOTrainer does (1.16)."""
    return replace(job, rows=_copied(job.rows)), replace(strategy, levers=Levers(checkpointing="full"))


def all_logits(job: Job, strategy: Strategy) -> tuple[Job, Strategy]:
    """Padded rows through the model's own forward, which makes the logits of all positions at once.

    So do LLaMA-Factory with sequence parallelism (360-LLaMA-Factory) and LongPO's released code.
    """
    rows = _copied(job.rows)
    levers = Levers(checkpointing="full", logits_chunk=rows.tokens)
    return replace(job, rows=rows, nll_scope="sequence"), replace(strategy, levers=levers)


def _copied(rows: Rows) -> Rows:
    return Rows(**{**vars(rows), "answers": (max(rows.answers),), "copies": len(rows.answers)})
