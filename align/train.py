"""`align train`: one Hydra main that reads as its table of contents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
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
from align.reference import (
    AdapterOff,
    Frozen,
    Itself,
    Reference,
    ReferenceSettings,
    autocast_forward,
    reference_model,
    resolve_source,
)
from align.reference_cache import check_folder, open_cache
from align.reference_fill import fill
from align.reference_key import Identity, check_cacheable
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
    if run.reference.fill_only:
        fill_cache(build_trainer(run, tokenizer, data), run, data)
        return
    claim_output(run.output, config, ignore=("resume", "hydra", "reference.cache", "reference.fill_only"))
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
    if source != "none":
        check_reference(reference, model)
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


def check_reference(reference: ReferenceSettings, model: ModelSettings) -> None:
    """The reference's configuration, before its weights load."""
    config = load_config(reference_model(reference, model))
    check_config(config)
    if reference.cache is not None:
        check_cacheable(config)
        check_folder(Path(reference.cache))


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
        require_short=run.method.needs.short,
    )
    check_config(load_config(run.model), longest_sequence=data.counts["longest_sequence"])
    return data


def build_trainer(run: Run, tokenizer: PreTrainedTokenizerBase, data: PreferenceData) -> PreferenceTrainer:
    """Loads policy and reference and puts them, the data and the display into a trainer."""
    set_seed(run.seed)  # adapters draw their weights
    # A cache is filled by the reference alone, which then stands in the policy's place.
    settings = reference_model(run.reference, run.model) if run.reference.fill_only else run.model
    base = load_causal_lm(settings, attention=ATTENTION)
    check_supported(base)
    policy = add_lora(base, settings.lora)
    apply_checkpointing(policy, run.memory.checkpointing)
    trainer = PreferenceTrainer(
        model=policy,
        args=run.arguments,
        method=run.method,
        reference=build_reference(run, policy),
        logits_chunk=run.memory.logits_chunk,
        train_dataset=data.train,
        eval_dataset=data.eval,
        data_collator=Collator(tokens_per_row=run.data.tokens_per_row, short=run.method.needs.short),
        processing_class=tokenizer,
    )
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(ProgressDisplay())
    return trainer


def build_reference(run: Run, policy: Any) -> Reference | None:
    """The reference that `reference.source` stands for, behind its cache where there is one."""
    if run.reference_source == "none":
        return None
    precision = torch.bfloat16 if run.arguments.bf16 else torch.float16 if run.arguments.fp16 else None
    forward = autocast_forward(partial(pair_logps, chunk_size=run.memory.logits_chunk), precision)
    live: AdapterOff | Frozen | Itself
    if run.reference.fill_only:
        live = Itself(forward)
    elif run.reference_source == "adapter_off":
        live = AdapterOff(policy, forward)
    else:
        live = Frozen(partial(_frozen_model, run), forward)
    if run.reference.cache is None:
        return live
    folder = Path(run.reference.cache)
    with run.arguments.main_process_first(local=False, desc="hash of the reference's weights"):
        identity = Identity.of(reference_model(run.reference, run.model), autocast=precision, cache=folder)
    return open_cache(live, folder, identity, describe=run.arguments.process_index == 0)


def _frozen_model(run: Run) -> PreTrainedModel:
    """The reference model in evaluation mode, on the training device."""
    settings = reference_model(run.reference, run.model)
    model = load_causal_lm(settings, attention=ATTENTION, device=run.arguments.device)
    check_supported(model)
    return model.eval().requires_grad_(False)


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
