"""`align train`: one Hydra main that reads as its table of contents."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from datasets import Dataset
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from transformers import (
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

import align
from align.core.errors import UserError
from align.data.dataset import PreferenceData, load_preference_data
from align.data.settings import PositionSettings
from align.distributed.agreement import check_agreement, check_same_settings
from align.distributed.wrappers import check_launch, expected_wrapper
from align.evaluation.in_training import SuitesInTraining
from align.longseq.attention import ATTENTIONS
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.parallel import SequenceParallel, choose_exchange, start_parallel
from align.longseq.support import check_config, check_supported
from align.models.loading import load_causal_lm, load_config, load_tokenizer, native_window
from align.models.lora import add_lora
from align.planning.fit import fit_memory
from align.reference.build import build_reference, frozen_model
from align.runs import checkpoints
from align.runs.command import hydra_entry
from align.runs.continuation import FREE_KEYS, StepShape, check_continuation
from align.runs.folder import claim_output
from align.runs.jobs import launch
from align.runs.preemption import EXIT_CODE, Preemption
from align.training import results
from align.training.collate import Collator
from align.training.fill import fill
from align.training.progress import ProgressDisplay
from align.training.settings import Run, check
from align.training.trainer import PreferenceTrainer

BEFORE = "before.json"  # in the output folder: held-out metrics of the untrained policy


@hydra_entry("train")
def main(config: DictConfig) -> int | float | None:
    """Checks everything, reads the data, loads the model, trains, and shows what changed."""
    run = check(config)
    if launch(config) is not None:
        return objective(run)
    check_launch(run.arguments)
    check_same_settings(launched_settings(config, run), device=run.arguments.device)
    tokenizer = load_tokenizer(
        run.model.path, trust_remote_code=run.model.trust_remote_code, revision=run.model.revision
    )
    data = read_data(run, tokenizer)
    check_same_data(data, run)
    if run.suites and data.eval is None:
        raise UserError(
            "suites run when held-out rows are evaluated, and there are none: set data.eval_size or data.eval_path."
        )
    if run.reference.fill_only:
        fill_cache(build_trainer(run, tokenizer, data), run, data)
        return None
    run = replace(run, memory=fit_memory(run, data))
    claim_output(run.output, config, ignore=FREE_KEYS)
    checkpoint = checkpoints.find_resume(run.output, run.resume)
    shape = StepShape.of(run.arguments, run.parallel.degree)
    if checkpoint is not None:
        check_continuation(checkpoint, shape)
    trainer = build_trainer(run, tokenizer, data)
    trainer.add_callback(shape)
    trainer.args.eval_on_start = data.eval is not None and checkpoint is None
    with Preemption() as preemption:
        trainer.add_callback(preemption)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if preemption.stopped:
        return say_stopped(trainer)
    finish(trainer, run, data)
    return objective(run)


def launched_settings(config: DictConfig, run: Run) -> dict[str, Any]:
    """What every process has to have been started with: the configuration and the launcher's wrapper."""
    settings: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return {**settings, "wrapper": expected_wrapper(run.arguments), "align version": align.__version__}


def check_same_data(data: PreferenceData, run: Run) -> None:
    """Processes with unlike numbers of rows would make unlike numbers of steps, and wait for each other."""
    if run.arguments.world_size > 1:
        check_agreement(data.counts, dist.group.WORLD, what="data", device=run.arguments.device)


def read_data(run: Run, tokenizer: PreTrainedTokenizerBase) -> PreferenceData:
    """Tokenised rows, cut to the model's window, split and with their positions."""
    settings = run.data
    if settings.max_length is None:
        settings = replace(settings, max_length=native_window(run.model))
    data = load_preference_data(
        settings,
        tokenizer,
        positions=run.positions,
        seed=run.seed,
        require_rejected=run.method.uses_rejected(),
        require_short=run.method.needs.short,
    )
    check_config(load_config(run.model), longest_sequence=data.counts["longest_sequence"])
    return data


def read_pairs(run: Run, tokenizer: PreTrainedTokenizerBase, path: str) -> Dataset:
    """Every row of another path, at its own positions."""
    data = replace(run.data, path=path, eval_path=None, eval_size=0, mix=[])
    return read_data(replace(run, data=data, positions=PositionSettings()), tokenizer).train


def load_policy(run: Run) -> Any:
    """The model that trains, with its adapter and its memory levers."""
    base = load_causal_lm(run.model, attention=ATTENTIONS[run.model.attention])
    check_supported(base)
    policy = add_lora(base, run.model.lora)
    apply_checkpointing(policy, run.memory.checkpointing, **run.memory.levers())
    return policy


def build_trainer(run: Run, tokenizer: PreTrainedTokenizerBase, data: PreferenceData) -> PreferenceTrainer:
    """Loads policy and reference and puts them, the data and the display into a trainer."""
    set_seed(run.seed)  # adapters draw their weights
    # A cache is filled by the reference alone, which then stands in the policy's place.
    policy = frozen_model(run) if run.reference.fill_only else load_policy(run)
    parallel = start_sequence_parallel(run, policy.config, data)
    trainer = PreferenceTrainer(
        model=policy,
        args=run.arguments,
        method=run.method,
        reference=build_reference(run, policy, parallel),
        parallel=parallel,
        logits_chunk=run.memory.logits_chunk,
        train_dataset=data.train,
        eval_dataset=data.eval,
        data_collator=Collator(tokens_per_row=run.data.tokens_per_row, short=run.method.needs.short),
        processing_class=tokenizer,
    )
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(ProgressDisplay())
    if run.suites:  # before the next, which keeps their scores
        trainer.add_callback(
            SuitesInTraining(
                run.suites,
                trainer,
                tokenizer=tokenizer,
                output=run.output,
                seed=run.seed,
                read_pairs=partial(read_pairs, run, tokenizer),
            )
        )
    trainer.add_callback(MetricsBefore(run.output / BEFORE))
    return trainer


def start_sequence_parallel(
    run: Run, config: PreTrainedConfig, data: PreferenceData
) -> SequenceParallel | None:
    """Forms the sequence-parallel groups; `parallel=auto` takes the exchange that fits and says why."""
    kind = run.parallel.kind
    if kind == "auto" and run.parallel.degree > 1:
        kind, reason = choose_exchange(
            heads=config.num_attention_heads,
            kv_heads=getattr(config, "num_key_value_heads", config.num_attention_heads),
            degree=run.parallel.degree,
            length=data.counts["longest_sequence"],
        )
        if run.arguments.process_index == 0:
            Console(stderr=True).print(reason, highlight=False)
    return start_parallel("none" if run.parallel.degree == 1 else kind, run.parallel.degree)


def fill_cache(trainer: PreferenceTrainer, run: Run, data: PreferenceData) -> None:
    """Fills the reference cache and says what it took."""
    counts = fill(trainer, data.train, data.eval)
    if trainer.is_world_process_zero():
        Console().print(
            f"reference cache {run.reference.cache}: {counts['prompts']} prompts, {counts['tokens']} tokens read, "
            f"{counts['cached']} rows found",
            soft_wrap=True,
            highlight=False,
        )


class MetricsBefore(TrainerCallback):
    """Keeps the held-out metrics of the untrained policy, for the table; a resumed run finds them there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Writes them where no step has been made; a run begun anew writes over an earlier one's."""
        if state.is_world_process_zero and state.global_step == 0:
            results.write_json(self.path, kwargs["metrics"])


def say_stopped(trainer: PreferenceTrainer) -> int:
    """Says where a run that SIGTERM ended goes on from; returns the exit code."""
    if trainer.is_world_process_zero():
        Console(stderr=True).print(
            f"stopped by SIGTERM; step {trainer.state.global_step} is saved, and the same command goes on from it",
            soft_wrap=True,
            highlight=False,
        )
    return EXIT_CODE


def finish(trainer: PreferenceTrainer, run: Run, data: PreferenceData) -> None:
    """Saves the policy; shows and writes before/after as table, JSON and picture."""
    after = {} if trainer.eval_dataset is None else trainer.evaluate()
    history = trainer.state.log_history
    trainer.save_model(str(run.output / "model"))
    if not trainer.is_world_process_zero():
        return
    path = run.output / BEFORE
    before = json.loads(path.read_text()) if path.is_file() else {}
    costs = results.training_costs(history)
    summary = {"before": before, "after": after, "training": costs, "data": data.counts}
    if data.ingredients:
        summary["mixture"] = {one.path: one.rows for one in data.ingredients}
    results.write_json(run.output / "results.json", summary)
    results.draw_training(history, before, after, run.output / "training.png")
    console = Console()
    rows = 0 if data.eval is None else len(data.eval)
    console.print(results.summary_table(summary, rows=rows, kind=run.method.name))
    for label, name in (("policy", "model"), ("results", "results.json"), ("picture", "training.png")):
        console.print(f"{label:<9} {run.output / name}", soft_wrap=True, highlight=False)


def objective(run: Run) -> float | None:
    """What a sweeper optimises; None where no rows are held out."""
    try:
        after = json.loads((run.output / "results.json").read_text())["after"]
    except FileNotFoundError:  # another rank writes it
        return None
    if after and run.objective not in after:
        raise UserError(f"objective={run.objective} is no held-out metric: use {', '.join(sorted(after))}.")
    return float(after[run.objective]) if after else None


if __name__ == "__main__":
    main()
