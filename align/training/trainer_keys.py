"""The group `trainer`: which keywords of transformers' `TrainingArguments` a run may set, known without importing it.

`tests/training/test_trainer_keys.py` holds these lists against the installed library: a new keyword has to be put
into one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from align.core.config import check_arguments
from align.core.errors import UserError
from align.training.trainer_values import check_ranges, check_trainer_values

# Keywords of TrainingArguments that this toolkit sets itself → the key to use instead.
RESERVED = {
    "output_dir": "output",
    "seed": "seed",
    "data_seed": "seed",
    "resume_from_checkpoint": "resume",
    "activation_checkpointing": "memory.checkpointing",
    "activation_checkpointing_kwargs": "memory.checkpointing",
    "gradient_checkpointing": "memory.checkpointing",
    "gradient_checkpointing_kwargs": "memory.checkpointing",
    "use_liger_kernel": "model.kernels=liger",
    "liger_kernel_config": "model.kernels=liger",
    "remove_unused_columns": "the default, which keeps the rows whole",
    "average_tokens_across_devices": "the default: the loss is the mean over the prompts of the step",
    "train_sampling_strategy": "data/order=buckets, or data.order.balance=work, which shares out a step's rows evenly,",
    "label_smoothing_factor": "method.loss.label_smoothing",
    "logging_nan_inf_filter": "the default: a loss that is not finite ends the run",
    "eval_on_start": "the default: held-out rows are measured before the first step",
    "local_rank": "a launcher, which numbers the processes,",
    # A configuration is saved and shown: no secret may stand in it.
    "hub_token": "the environment variable HF_TOKEN, or `hf auth login`,",
    "push_to_hub_token": "the environment variable HF_TOKEN, or `hf auth login`,",
}

# Keywords that the library would take and this toolkit's own trainer never read → why.
WITHOUT_EFFECT = {
    "length_column_name": "rows know their lengths, which data.order reads",
    "include_num_input_tokens_seen": "num_tokens is logged in any case",
    "bf16_full_eval": "held-out rows are read as training rows are",
    "fp16_full_eval": "held-out rows are read as training rows are",
    "prediction_loss_only": "held-out rows give all metrics",
    "eval_do_concat_batches": "held-out metrics are gathered a batch at a time",
    "eval_use_gather_object": "held-out metrics are gathered a batch at a time",
    "eval_accumulation_steps": "held-out metrics are gathered a batch at a time",
    "include_for_metrics": "metrics are computed from log-probs alone",
    "batch_eval_metrics": "metrics are computed from log-probs alone",
    "label_names": "rows have answers and no labels",
    "use_cache": "training keeps no keys and values",
    "do_train": "`align train` trains",
    "do_eval": "eval_strategy says when held-out rows are measured",
    "do_predict": "`align evaluate` predicts",
    "parallelism_config": "the group parallel shares rows among processes",
}

# Keywords that the library would obey in a way that this toolkit's promises do not survive → why.
REFUSED = {
    "neftune_noise_alpha": "the library scales its noise by the length of a packed row and draws it by process, so "
    "that the loss would change with packing and parallel.degree",
}


@dataclass(frozen=True)
class TrainerKeys:
    """What `trainer.KEY` may be; the types are those of `TrainingArguments`, defaults are the library's."""

    per_device_train_batch_size: int
    num_train_epochs: float
    max_steps: int
    learning_rate: float
    lr_scheduler_type: Any
    lr_scheduler_kwargs: Any
    warmup_steps: float
    optim: Any
    optim_args: str | None
    weight_decay: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    optim_target_modules: Any
    gradient_accumulation_steps: int
    max_grad_norm: float
    bf16: bool | None
    fp16: bool
    tf32: bool | None
    torch_compile: bool
    torch_compile_backend: str | None
    torch_compile_mode: str | None
    torch_empty_cache_steps: int | None
    auto_find_batch_size: bool
    logging_strategy: Any
    logging_steps: float
    logging_first_step: bool
    log_on_each_node: bool
    log_level: str
    log_level_replica: str
    disable_tqdm: bool | None
    report_to: Any
    run_name: str | None
    project: str
    trackio_space_id: str | None
    trackio_bucket_id: str | None
    trackio_static_space_id: Any
    eval_strategy: Any
    eval_steps: float | None
    eval_delay: float
    per_device_eval_batch_size: int
    save_only_model: bool
    save_strategy: Any
    save_steps: float
    save_on_each_node: bool
    save_total_limit: int | None
    enable_jit_checkpoint: bool
    push_to_hub: bool
    hub_private_repo: bool | None
    hub_model_id: str | None
    hub_strategy: Any
    hub_always_push: bool
    hub_revision: str | None
    load_best_model_at_end: bool
    metric_for_best_model: str | None
    greater_is_better: bool | None
    ignore_data_skip: bool
    restore_callback_states_from_checkpoint: bool
    full_determinism: bool
    use_cpu: bool
    accelerator_config: Any
    dataloader_drop_last: bool
    dataloader_num_workers: int
    dataloader_pin_memory: bool
    dataloader_persistent_workers: bool
    dataloader_prefetch_factor: int | None
    dataloader_multiprocessing_context: str | None
    dataloader_in_order: bool
    ddp_find_unused_parameters: bool | None
    ddp_bucket_cap_mb: int | None
    ddp_broadcast_buffers: bool | None
    ddp_static_graph: bool | None
    ddp_backend: str | None
    ddp_timeout: int
    fsdp: str | None
    fsdp_config: Any
    deepspeed: Any
    debug: Any
    skip_memory_metrics: bool


def check_trainer_keys(values: Mapping[str, Any]) -> None:
    """Refuses a keyword that is unknown, set elsewhere or without effect, and values that it does not take here.

    Args:
        values: the group `trainer`, in plain values.

    Raises:
        UserError: names the key and what to do.
    """
    check_trainer_numbers(values)
    check_trainer_values(values)


def check_trainer_numbers(values: Mapping[str, Any]) -> None:
    """The same but for what depends on the packages and files of this machine: a run may be planned elsewhere.

    Args:
        values: the group `trainer`, in plain values.

    Raises:
        UserError: names the key and what to do.
    """
    for name in values:
        if name in WITHOUT_EFFECT:
            raise UserError(f"trainer.{name} has no effect here ({WITHOUT_EFFECT[name]}): leave it out.")
        if name in REFUSED:
            raise UserError(f"trainer.{name} is not taken here ({REFUSED[name]}): leave it out.")
    check_arguments(
        values, TrainerKeys, group="trainer", reserved=RESERVED, library="transformers' TrainingArguments"
    )
    check_ranges(values)
