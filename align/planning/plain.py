"""The same job as toolkits run it that do not share the prompt, so that a plan can say what sharing saves."""

from __future__ import annotations

from dataclasses import replace

from align.planning.job import Job, Levers, Rows, Strategy


def plain_rows(job: Job, strategy: Strategy) -> tuple[Job, Strategy]:
    """One padded row an answer, logits of every position at once, checkpoints of whole layers; else as given.

    This is how TRL's DPOTrainer, LLaMA-Factory with sequence parallelism (360-LLaMA-Factory) and LongPO's released code
    lay a pair out: each answer behind its own copy of the prompt, padded to the longest, and the model's own forward,
    whose head reads all tokens. A frozen reference reads the same rows. A prompt of 1,000 tokens with answers of 100
    and 50, one row of 1,150 here, becomes two rows of 1,100.

    Args:
        job: its micro-batch of P + Σ a tokens a prompt becomes (1 + M) · (P + max a).
        strategy: wrapper, exchange and degree stay.
    """
    rows = job.rows
    copied = Rows(
        prompt=rows.prompt,
        answers=(max(rows.answers),),
        short_prompt=rows.short_prompt,
        prompts=rows.prompts * len(rows.answers),
        mean_prompt=rows.mean_prompt,
    )
    levers = Levers(checkpointing="full", logits_chunk=copied.tokens)
    return replace(job, rows=copied, nll_scope="sequence"), replace(strategy, levers=levers)
