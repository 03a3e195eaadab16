"""`align train`: one Hydra main that reads as its table of contents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainingArguments,
    set_seed,
)

from align import checkpoints, results
from align.cli import hydra_entry
from align.config import check_arguments, check_choice, typed
from align.data.dataset import Collator, DataSettings, PositionSettings, PreferenceData, load_preference_data
from align.errors import UserError
from align.longseq import ATTENTION, pair_logps
from align.longseq.forward import DEFAULT_CHUNK
from align.longseq.memory import CHECKPOINTING, apply_checkpointing
from align.longseq.support import check_config, check_supported
from align.methods import Method, load_method
from align.model import (
    ModelSettings,
    add_lora,
    load_causal_lm,
    load_config,
    load_tokenizer,
    resolve_dtype,
)
from align.progress import ProgressDisplay
from align.reference import AdapterOff, Frozen, NoReference, Reference, ReferenceSettings, resolve_source
from align.runfolder import claim_output
from align.trainer import PreferenceTrainer

# Keywords of TrainingArguments that this toolkit sets itself → the key to use instead.
RESERVED = {
    "output_dir": "output",
    "seed": "seed",
    "data_seed": "seed",
    "resume_from_checkpoint": "resume",
    "gradient_checkpointing": "memory.checkpointing",
    "gradient_checkpointing_kwargs": "memory.checkpointing",
    "remove_unused_columns": "the default, which keeps the rows whole",
    "average_tokens_across_devices": "the default: the loss is the mean over the prompts of the step",
    "label_smoothing_factor": "method.loss.label_smoothing",
}


@dataclass(frozen=True)
class MemorySettings:
    """Group `memory`; see hydra_conf/memory/default.yaml."""

    checkpointing: str = "keep_attention"
    logits_chunk: int = DEFAULT_CHUNK


@dataclass(frozen=True)
class GeneralSettings:
    """Top-level keys; see hydra_conf/train.yaml."""

    output: str = "outputs/train"
    seed: int = 42
    resume: str = "auto"
    allow_targets: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """A training run whose settings have all been checked; no weights are loaded yet."""

    output: Path
    seed: int
    resume: str
    method: Method
    model: ModelSettings
    data: DataSettings
    positions: PositionSettings
    memory: MemorySettings
    reference: ReferenceSettings
    reference_source: str
    arguments: TrainingArguments


@hydra_entry("train")
def main(config: DictConfig) -> None:
    """Checks everything, reads the data, loads the model, trains, and shows what changed."""
    run = check(config)
    tokenizer = load_tokenizer(
        run.model.path, trust_remote_code=run.model.trust_remote_code, revision=run.model.revision
    )
    data = read_data(run, tokenizer)
    claim_output(run.output, config, ignore=("resume", "hydra"))
    checkpoint = checkpoints.find_resume(run.output, run.resume)
    trainer = build_trainer(run, tokenizer, data)
    before = metrics_before(trainer, run.output)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finish(trainer, run, data, before)


def check(config: DictConfig) -> Run:
    """Every setting as its type, contradictions refused; reads no data and no weights."""
    general = typed(GeneralSettings, config, "")
    method = load_method(config.method, allow_targets=general.allow_targets)
    model = typed(ModelSettings, config, "model")
    memory = typed(MemorySettings, config, "memory")
    reference = typed(ReferenceSettings, config, "reference")
    check_choice("memory.checkpointing", memory.checkpointing, CHECKPOINTING)
    check_choice("model.attention", model.attention, ("sdpa",))
    resolve_dtype(model.dtype)
    source = resolve_source(
        reference, needs=method.needs.reference, lora=model.lora.r > 0, method=method.name
    )
    check_config(load_config(model))
    return Run(
        output=Path(general.output),
        seed=general.seed,
        resume=general.resume,
        method=method,
        model=model,
        data=typed(DataSettings, config, "data"),
        positions=typed(PositionSettings, config, "positions"),
        memory=memory,
        reference=reference,
        reference_source=source,
        arguments=training_arguments(config),
    )


def training_arguments(config: DictConfig) -> TrainingArguments:
    """The group `trainer` as TrainingArguments, with what this toolkit sets itself."""
    values: dict[str, Any] = OmegaConf.to_container(config.trainer, resolve=True)  # type: ignore[assignment]
    check_arguments(values, TrainingArguments, group="trainer", reserved=RESERVED)
    try:
        return TrainingArguments(
            output_dir=str(config.output),
            seed=config.seed,
            remove_unused_columns=False,
            **values,
        )
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error


def read_data(run: Run, tokenizer: PreTrainedTokenizerBase) -> PreferenceData:
    """Tokenised rows, split and with their positions; the longest is held against the model's window."""
    data = load_preference_data(
        run.data,
        tokenizer,
        positions=run.positions,
        seed=run.seed,
        require_rejected=run.method.uses_rejected(),
    )
    check_config(load_config(run.model), longest_sequence=data.counts["longest_sequence"])
    return data


def build_trainer(run: Run, tokenizer: PreTrainedTokenizerBase, data: PreferenceData) -> PreferenceTrainer:
    """Loads policy and reference and puts them, the data and the display into a trainer."""
    set_seed(run.seed)  # adapters draw their weights
    base = load_causal_lm(run.model, attention=ATTENTION)
    check_supported(base)
    policy = add_lora(base, run.model.lora)
    apply_checkpointing(policy, run.memory.checkpointing)
    trainer = PreferenceTrainer(
        model=policy,
        args=run.arguments,
        method=run.method,
        reference=build_reference(run, policy),
        logits_chunk=run.memory.logits_chunk,
        train_dataset=data.train,
        eval_dataset=data.eval,
        data_collator=Collator(tokens_per_row=run.data.tokens_per_row),
        processing_class=tokenizer,
    )
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(ProgressDisplay())
    return trainer


def build_reference(run: Run, policy: Any) -> Reference:
    """The reference that `reference.source` stands for."""
    forward = partial(pair_logps, chunk_size=run.memory.logits_chunk)
    if run.reference_source == "adapter_off":
        return AdapterOff(policy, forward)
    if run.reference_source == "frozen":
        return Frozen(_frozen_model(run), forward)
    return NoReference()


def _frozen_model(run: Run) -> PreTrainedModel:
    """The reference model in evaluation mode, on the training device."""
    settings = (
        run.model
        if run.reference.model is None
        else ModelSettings(**{**vars(run.model), "path": run.reference.model, "revision": None})
    )
    model = load_causal_lm(settings, attention=ATTENTION, device=run.arguments.device)
    return model.eval().requires_grad_(False)


def metrics_before(trainer: PreferenceTrainer, output: Path) -> Mapping[str, float]:
    """Held-out metrics of the untrained policy; a resumed run reads them back."""
    path = output / "before.json"
    if path.is_file():
        return json.loads(path.read_text())
    metrics = {} if trainer.eval_dataset is None else trainer.evaluate()
    if trainer.is_world_process_zero():
        results.write_json(path, metrics)
    return metrics


def finish(trainer: PreferenceTrainer, run: Run, data: PreferenceData, before: Mapping[str, float]) -> None:
    """Saves the policy; shows and writes before/after as table, JSON and picture."""
    after = {} if trainer.eval_dataset is None else trainer.evaluate()
    history = trainer.state.log_history
    trainer.save_model(str(run.output / "model"))
    if not trainer.is_world_process_zero():
        return
    costs = results.training_costs(history)
    summary = {"before": before, "after": after, "training": costs, "data": data.counts}
    results.write_json(run.output / "results.json", summary)
    results.draw_training(history, before, after, run.output / "training.png")
    console = Console()
    rows = 0 if data.eval is None else len(data.eval)
    console.print(results.summary_table(summary, rows=rows, kind=run.method.name))
    for label, name in (("policy", "model"), ("results", "results.json"), ("picture", "training.png")):
        console.print(f"{label:<9} {run.output / name}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
