"""What a command does of that before it loads a model: the warning that it will not fit, and `memory=auto`."""

from __future__ import annotations

from dataclasses import replace

import torch
from accelerate import Accelerator
from transformers import TrainingArguments

from align.core.allocator import advice
from align.core.config import check_choice
from align.core.telling import tell
from align.data.dataset import PreferenceData
from align.distributed.wrappers import launched_wrapper
from align.longseq.parallel import choose_exchange
from align.longseq.settings import CHOICES, MemorySettings, ParallelSettings
from align.models.loading import load_config, native_window
from align.models.settings import ModelSettings
from align.planning.architecture import Architecture, UnknownModelError, measure
from align.planning.here import choose_levers, machine_here, warning
from align.planning.job import Job, Machine, Rows, Strategy
from align.planning.request import data_lengths, levers_of, make_job, precision_of
from align.planning.settings import UnknownOptimizerError
from align.training.run import Run
from align.training.soft_prompts import soft_tokens


def fit_memory(run: Run, data: PreferenceData) -> MemorySettings:
    """The run's memory levers: as given, with a warning where they will not fit; with `memory=auto` chosen.

    Args:
        run: the checked settings.
        data: its longest row decides.

    Raises:
        UserError: `memory=auto` for a model or an optimizer whose memory the formulas do not know.
    """
    check_choice("memory.choose", run.memory.choose, CHOICES)
    arguments = run.arguments
    rows = data_lengths(data, run.method.needs, prompts=arguments.per_device_train_batch_size)
    rows = rows.behind(soft_tokens(run.model.adapter))
    device = _device_kind(arguments.device)
    try:
        job = make_job(run.method, run.model, run.reference, arguments, rows, device=device)
        sizes = measure(load_config(run.model), run.model)
    except (UnknownModelError, UnknownOptimizerError) as error:
        if run.memory.choose == "auto":
            raise
        if arguments.process_index == 0:
            tell(f"align train: whether it fits this machine is not looked at: {error}")
        return run.memory
    machine = machine_here(
        arguments.device,
        arguments.world_size,
        products=job.precision.products,
        degree=run.parallel.degree,
        folder=run.memory.offload_folder,
    )
    strategy = _strategy(sizes, rows, run.parallel, run.memory, arguments)
    advised = advice() if machine.device == "cuda" and arguments.process_index == 0 else None
    if advised is not None:
        tell(f"align train: {advised}")
    if run.memory.choose == "auto":
        return _chosen(sizes, job, strategy, machine, run.memory, say=arguments.process_index == 0)
    sentence = warning(sizes, job, strategy, machine)
    if sentence is not None and arguments.process_index == 0:
        tell(f"align train: warning: {sentence}")
    return run.memory


def fit_verify(
    model: ModelSettings,
    memory: MemorySettings,
    *,
    rows: Rows,
    degree: int,
    at: Accelerator,
) -> MemorySettings:
    """`memory=auto` for `align verify`: what training on rows as long as the model's window would take here.

    Args:
        model: whose sizes count, with all layers.
        memory: group `memory`; without `choose: auto` it is returned as it is.
        rows: their answers; the prompt fills the window, where the model has one.
        degree: processes that share a row.
        at: the launch: its device and number of processes.
    """
    check_choice("memory.choose", memory.choose, CHOICES)
    if memory.choose != "auto":
        return memory
    window = native_window(model)
    if window is not None:
        rows = replace(rows, prompt=max(rows.prompt, window - max(rows.answers)))
    precision = precision_of(model, None, device=_device_kind(at.device))
    sizes = measure(load_config(model), model)
    processes = at.num_processes
    machine = machine_here(
        at.device,
        processes,
        products=precision.products,
        degree=degree,
        folder=memory.offload_folder,
    )
    exchange = "none" if degree == 1 else "gather"
    strategy = Strategy("none" if processes == 1 else "ddp", exchange, degree, levers_of(memory))
    return _chosen(sizes, Job(rows, precision), strategy, machine, memory, say=at.is_main_process)


def _device_kind(device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else "cuda"


def _strategy(
    sizes: Architecture,
    rows: Rows,
    parallel: ParallelSettings,
    memory: MemorySettings,
    arguments: TrainingArguments,
) -> Strategy:
    exchange = "none" if parallel.degree == 1 else parallel.kind
    if exchange == "auto":
        exchange, _ = choose_exchange(
            heads=sizes.heads, kv_heads=sizes.kv_heads, degree=parallel.degree, length=rows.tokens
        )
    return Strategy(launched_wrapper(arguments), exchange, parallel.degree, levers_of(memory))


def _chosen(
    sizes: Architecture,
    job: Job,
    strategy: Strategy,
    machine: Machine,
    memory: MemorySettings,
    *,
    say: bool,
) -> MemorySettings:
    levers, reason = choose_levers(sizes, job, strategy, machine)
    if say:
        tell(reason)
    return replace(
        memory,
        choose="given",
        checkpointing=levers.checkpointing,
        logits_chunk=levers.logits_chunk,
        offload=levers.offload,
        mlp_chunk=levers.mlp_chunk,
    )
