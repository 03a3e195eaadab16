"""What a configuration asks `align plan` about: the model's sizes, the job, the machine, and the given settings."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig
from transformers import PreTrainedConfig

from align.adapters.reading import read_model
from align.core.config import typed
from align.core.errors import UserError
from align.data.position_settings import read_positions
from align.data.positions_of_model import fit_positions
from align.data.settings import DataSettings
from align.distributed.names import check_wrapper_name
from align.longseq.parallel import choose_exchange, make_groups
from align.longseq.settings import MemorySettings, ParallelSettings
from align.longseq.support import check_degree
from align.models.loading import model_tokenizer
from align.models.settings import ModelSettings
from align.planning.architecture import Architecture, measure, read_config
from align.planning.here import available_memory, resident_memory
from align.planning.job import Job, Machine, Rows, Strategy
from align.planning.request import (
    check_batch,
    data_lengths,
    levers_of,
    machine_of,
    make_job,
    precision_of,
    read_method,
    row_lengths,
)
from align.planning.settings import GpuSettings
from align.reference.settings import ReferenceSettings
from align.training.methods import Method
from align.training.preparation import read_rows_of_model
from align.training.soft_prompts import soft_tokens


@dataclass(frozen=True)
class Asked:
    """Of one configuration; `architecture` is the model's, `strategy` what its keys say."""

    sizes: Architecture
    source: str
    architecture: PreTrainedConfig
    model: ModelSettings
    job: Job
    machine: Machine
    strategy: Strategy


def read_asked(config: DictConfig, *, otherwise: int | None = None) -> Asked:
    """Reads config.json, and a tokenizer where data.path is set.

    Args:
        config: the composed configuration.
        otherwise: tokens of a prompt where nothing says how long prompts are.

    Raises:
        UserError: what `align train` would refuse too, and lengths or machines that make no sense.
    """
    method = read_method(config)
    check_batch(config.trainer)
    model = read_model(config)
    gpus = typed(GpuSettings, config, "gpus")
    check_wrapper_name(config.wrapper, gpus.device)
    architecture, source = read_config(model)
    sizes = measure(architecture, model)
    fit_positions(read_positions(config), model, read=lambda own: read_config(own)[0])
    job = make_job(
        method,
        model,
        typed(ReferenceSettings, config, "reference"),
        config.trainer,
        read_rows(config, model, method, otherwise=otherwise),
        device=gpus.device,
    )
    machine = machine_of(
        gpus,
        memory=available_memory(),
        runtime=resident_memory(),
        products=precision_of(model, config.trainer, device=gpus.device).products,
    )
    check_degree(architecture, config.parallel.degree)
    strategy = given_strategy(config, sizes, job, machine)
    if model.kernels != "none":
        source += f"; model.kernels={model.kernels} is not counted: the plan is of the plain modules, which take more"
    return Asked(sizes, source, architecture, model, job, machine, strategy)


def read_rows(
    config: DictConfig, model: ModelSettings, method: Method, *, otherwise: int | None = None
) -> Rows:
    """Lengths of the data as training will read it, or of the key `rows`; `otherwise` as in `read_asked`."""
    if config.data.path is None:
        return row_lengths(config, method, otherwise=otherwise)
    data = read_rows_of_model(
        method,
        typed(DataSettings, config, "data"),
        model_tokenizer(model),
        model=model,
        positions=read_positions(config),
        seed=config.seed,
    )
    rows = data_lengths(data, method.needs, prompts=int(config.trainer.per_device_train_batch_size))
    return rows.behind(soft_tokens(model.adapter))


def given_strategy(config: DictConfig, sizes: Architecture, job: Job, machine: Machine) -> Strategy:
    """Wrapper, exchange, degree and levers as they are set.

    Raises:
        UserError: a degree that does not divide the GPUs.
    """
    parallel = typed(ParallelSettings, config, "parallel")
    memory = typed(MemorySettings, config, "memory")
    make_groups(machine.count, parallel.degree)
    exchange = "none" if parallel.degree == 1 else parallel.kind
    if exchange == "auto":
        exchange, _ = choose_exchange(
            heads=sizes.heads, kv_heads=sizes.kv_heads, degree=parallel.degree, length=job.rows.tokens
        )
    wrapper = "none" if machine.count == 1 else config.wrapper
    if machine.count > 1 and wrapper == "none":
        raise UserError(f"wrapper=none is for one process, and gpus.count={machine.count}: name a wrapper.")
    return Strategy(wrapper, exchange, parallel.degree, levers_of(memory))
