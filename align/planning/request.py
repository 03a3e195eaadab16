"""What the configuration of a run asks for, as a `Job`: the same settings as `align train`, without its files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc
from omegaconf import DictConfig

from align.core.config import check_choice, typed
from align.core.errors import UserError
from align.data.dataset import PreferenceData
from align.data.totals import column_of, lengths_of
from align.longseq.settings import MemorySettings
from align.models.loading import resolve_dtype
from align.models.precision import trains_checkpoint_weights
from align.models.quantization import QUANTIZATIONS
from align.models.settings import ModelSettings
from align.planning.architecture import Architecture
from align.planning.job import GB, Job, Levers, Machine, Precision, Rows, as_read
from align.planning.settings import GpuSettings, RowSettings, optimizer_slots
from align.reference.settings import ReferenceSettings, resolve_source
from align.training.method_settings import Needs
from align.training.methods import Method, load_method


@dataclass(frozen=True)
class Request:
    """The job, and the model's settings that it is about."""

    job: Job
    method: Method
    model: ModelSettings
    prompts: int


def row_lengths(config: DictConfig, method: Method, *, otherwise: int | None = None) -> Rows:
    """Rows by the numbers of the key `rows`.

    Args:
        config: the whole configuration.
        method: whether it reads rejected answers and short contexts.
        otherwise: tokens of a prompt where neither `rows.prompt` nor `data.max_length` says how long it is; None asks.

    Raises:
        UserError: no length is given, or one is too small.
    """
    settings = typed(RowSettings, config, "rows")
    rejected = settings.rejected if method.uses_rejected() else 0
    prompt = settings.prompt
    if prompt is None and config.data.max_length is None and otherwise is not None:
        prompt = otherwise
    if prompt is None:
        if config.data.max_length is None:
            raise UserError("rows.prompt is not set: give it, data.max_length or data.path.")
        prompt = int(config.data.max_length) - settings.answer
    for key, value, least in (
        ("prompt", prompt, 1),
        ("answer", settings.answer, 1),
        ("rejected", rejected, 0),
        ("short_prompt", settings.short_prompt, 1),
    ):
        if value < least:
            raise UserError(f"rows.{key}={value} is too small: give a number from {least} on.")
    mean = settings.mean_prompt
    if mean is not None and not 1 <= mean <= prompt:
        raise UserError(
            f"rows.mean_prompt={mean} has to lie between 1 and the {prompt} tokens of the longest prompt."
        )
    return Rows(
        prompt=prompt,
        answers=(settings.answer,) * (1 + rejected),
        short_prompt=settings.short_prompt if method.needs.short else 0,
        prompts=int(config.trainer.per_device_train_batch_size),
        mean_prompt=mean,
    )


def check_batch(trainer: Any) -> None:
    """Raises UserError for a step of no prompts."""
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        value = trainer[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"trainer.{name}={value} has to be a whole number from 1 on.")


def data_lengths(data: PreferenceData, needs: Needs, *, prompts: int) -> Rows:
    """The longest row of the data, prompt and answers, and the mean prompt."""
    lengths = column_of(data.train, "num_tokens")
    tokens = pc.max(lengths).as_py()
    longest = data.train[pc.index(lengths, tokens).as_py()]
    answers = tuple(int(length) for length in longest["answer_lengths"])
    mean = pc.mean(lengths_of(data.train, "prompt_ids")).as_py()
    short = 0
    if needs.short:
        short = int(pc.max(lengths_of(data.train, "short_prompt_ids")).as_py())
    return Rows(tokens - sum(answers), answers, short, prompts, round(mean))


def precision_of(model: ModelSettings, trainer: Any, *, device: str) -> Precision:
    """Bytes of weights and products; `dtype=auto` on a GPU is bfloat16, or float32 under autocast where it trains."""
    check_choice("model.quantization", model.quantization, QUANTIZATIONS)
    dtype, autocast = model.dtype, trainer is not None and bool(trainer.bf16 or trainer.fp16)
    if dtype == "auto":
        trains = trainer is not None and trains_checkpoint_weights(model)
        dtype = "bfloat16" if device == "cuda" and not trains else "float32"
        autocast |= device == "cuda" and trains and trainer.bf16 is None
    weights = resolve_dtype(dtype).itemsize
    autocast = autocast and weights == 4
    return Precision(weights, autocast, model.quantization != "none")


def make_job(
    method: Method,
    model: ModelSettings,
    reference: ReferenceSettings,
    trainer: Any,
    rows: Rows,
    *,
    device: str,
) -> Job:
    """The job of a training run.

    Args:
        method: what it needs.
        model: dtype and LoRA.
        reference: its source.
        trainer: `optim`, `bf16`, `fp16`, `gradient_accumulation_steps`.
        rows: of a micro-batch.
        device: `cuda` or `cpu`.

    Raises:
        UnknownOptimizerError: nothing is known of what `optim` keeps.
    """
    source = resolve_source(
        reference, needs=method.needs.reference, adapter=model.adapter, method=method.name
    )
    slots, each = optimizer_slots(str(getattr(trainer.optim, "value", trainer.optim)))
    return Job(
        rows=as_read(rows, model.attention),
        precision=precision_of(model, trainer, device=device),
        optimizer_slots=slots,
        slot_bytes=each,
        reference=source,
        reference_sharding=reference.sharding,
        reference_short=method.needs.reference == "short",
        policy_short=method.needs.policy_short,
        nll_scope=method.needs.nll_scope,
        accumulation=int(trainer.gradient_accumulation_steps),
    )


def read_method(config: DictConfig) -> Method:
    """Group `method`."""
    return load_method(config.method, allow_targets=list(config.allow_targets))


def levers_of(memory: MemorySettings) -> Levers:
    """Group `memory` as the predictor takes it."""
    return Levers(
        memory.checkpointing, memory.logits_chunk, memory.offload, memory.mlp_chunk, memory.prefetch
    )


def machine_of(settings: GpuSettings, *, memory: float, runtime: float, products: int) -> Machine:
    """Group `gpus` in bytes and seconds.

    Args:
        settings: the group.
        memory: bytes for the CPU where `memory_gb` is null.
        runtime: the same where `runtime_gb` is null.
        products: bytes of a number in products; in fp32 a GPU is planned at half of its bf16 peak.
    """
    settings.check()
    share = settings.count if settings.device == "cpu" else 1
    halved = 2 if settings.device == "cuda" and products == 4 else 1
    return Machine(
        device=settings.device,
        count=settings.count,
        nodes=settings.nodes,
        memory=memory / share if settings.memory_gb is None else settings.memory_gb * GB / share,
        flops=settings.peak_tflops * 1e12 / halved,
        mfu=settings.mfu,
        attention_mfu=settings.attention_mfu,
        intra_bandwidth=settings.intra_gb_per_s * GB,
        inter_bandwidth=settings.inter_gb_per_s * GB,
        host_memory=settings.host_gb * GB,
        host_bandwidth=settings.host_gb_per_s * GB,
        disk_bandwidth=settings.disk_gb_per_s * GB,
        disk_memory=math.inf if settings.disk_gb is None else settings.disk_gb * GB,
        runtime=runtime if settings.runtime_gb is None else settings.runtime_gb * GB,
    )


def describe(model: Architecture, job: Job) -> str:
    """One line: what is planned."""
    rows = job.rows
    whole = "all parameters" if model.trainable == model.parameters else "the text part"
    trains = "LoRA" if model.lora else whole
    types = {4: "float32", 2: "bfloat16"}[job.precision.weights]
    types += " under bf16 products" if job.precision.autocast else ""
    types = "nf4" if job.precision.quantised else types
    return (
        f"{model.parameters / 1e9:.2f}B parameters, {model.trainable / 1e9:.3g}B train ({trains}, {types}); "
        f"prompt {rows.prompt}, answers {' + '.join(map(str, rows.answers))} tokens, reference {job.reference}"
    )


def notes(model: Architecture) -> list[str]:
    """A line for a model whose layers are not Llama's: how they are estimated; none for others."""
    if model.like_llama:
        return []
    active = model.parameters - model.all_layers + model.active
    experts = (
        f"; a token goes through {active / 1e9:.3g}B parameters" if model.active < model.all_layers else ""
    )
    if model.counter is None:
        return [
            f"layers' memory is estimated by the formulas of Llama's layer, which this model's are not{experts}"
        ]
    state = ", states by the library's own code, of which kernels keep less" if model.one_process else ""
    return [
        f"layers' memory is estimated from one layer of each kind ({len(set(model.kinds))}){state}{experts}"
    ]
