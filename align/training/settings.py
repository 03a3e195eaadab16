"""A training run's settings, typed and checked against each other without torch: a slip is answered at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from align.adapters.reading import read_model
from align.core.config import check_choice, typed
from align.core.errors import UserError
from align.core.instantiate import build
from align.data.position_settings import read_positions
from align.data.settings import DataSettings, PositionSettings
from align.longseq.settings import (
    ATTENTION_CHOICES,
    MemorySettings,
    ParallelSettings,
    check_library_settings,
)
from align.models.checks import check_model
from align.models.paths import check_path
from align.models.settings import ModelSettings
from align.reference.settings import ReferenceSettings, check_follow, check_sharding, resolve_source
from align.runs.objective import AUTO
from align.training.method_settings import Needs, check_method, check_token_weights
from align.training.trainer_keys import check_trainer_keys

if TYPE_CHECKING:
    from align.data.orders import Order
    from align.data.weighing import Weigher


@dataclass(frozen=True)
class GeneralSettings:
    """Top-level keys; see hydra_conf/train.yaml."""

    output: str = "outputs/train"
    seed: int = 42
    resume: str = "auto"
    objective: str = AUTO
    allow_targets: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    """What a training run is to do, by group.

    Attributes:
        reference_source: `none`, `adapter_off` or `frozen`: what `reference.source` stands for in this run.
        token_weights: says what tokens of answers weigh; None leaves all at 1.
    """

    output: Path
    seed: int
    resume: str
    objective: str
    allow_targets: list[str]
    model: ModelSettings
    data: DataSettings
    order: Order
    positions: PositionSettings
    memory: MemorySettings
    parallel: ParallelSettings
    reference: ReferenceSettings
    reference_source: str
    token_weights: Weigher | None


def read_settings(config: DictConfig) -> Settings:
    """Every setting as its type, contradictions refused, as far as that needs neither torch nor a file's content.

    Raises:
        UserError: names the key and what to set instead.
    """
    general = typed(GeneralSettings, config, "")
    needs = check_method(config.method, allow_targets=general.allow_targets)
    token_weights: Weigher | None = build(config, "token_weights") if config.get("token_weights") else None
    check_token_weights(str(config.method.name), needs, token_weights)
    model = read_model(config)
    memory = typed(MemorySettings, config, "memory")
    parallel = typed(ParallelSettings, config, "parallel")
    reference = typed(ReferenceSettings, config, "reference")
    trainer: Any = OmegaConf.to_container(config.trainer, resolve=True)
    check_trainer_keys(trainer)
    memory.check(accelerator=True)
    parallel.check()
    check_model(model)
    check_choice("model.attention", model.attention, ATTENTION_CHOICES)
    check_library_settings(model.attention, memory, parallel)
    if reference.fill_only and model.quantization != "none":
        raise UserError(
            "reference.fill_only has no adapter, which model.quantization needs: fill the cache while training."
        )
    positions = read_positions(config)
    check_redraw(positions, needs, reference)
    source = resolve_source(
        reference, needs=needs.reference, adapter=model.adapter, method=str(config.method.name)
    )
    check_sharding(reference.sharding, source=source, model=model)
    check_follow(reference, source=source, adapter=model.adapter)
    if source == "frozen" and reference.model is not None:
        check_path(reference.model, key="reference.model")
    return Settings(
        output=Path(general.output),
        seed=general.seed,
        resume=general.resume,
        objective=general.objective,
        allow_targets=general.allow_targets,
        model=model,
        data=typed(DataSettings, config, "data"),
        order=read_order(config),
        positions=positions,
        memory=memory,
        parallel=parallel,
        reference=reference,
        reference_source=source,
        token_weights=token_weights,
    )


def check_redraw(positions: PositionSettings, needs: Needs, reference: ReferenceSettings) -> None:
    """Refuses positions that are drawn anew each epoch beside a cache that knows rows by them.

    A reference that reads short contexts alone is none of these: they keep their positions.

    Raises:
        UserError: the cache would be filled in every epoch and read in none.
    """
    if positions.redrawn and needs.reference == "same" and reference.cache is not None:
        raise UserError(
            "positions.redraw=epoch gives rows other positions in each epoch, so that reference.cache holds none of "
            "them: set positions.redraw=never, or reference.cache=null."
        )


def read_order(config: DictConfig) -> Order:
    """`data.order`, held against `data.mix` and where the run ends.

    Raises:
        UserError: a key out of its range, or an order in which a mixture would have other shares.
    """
    order: Order = build(config, "data.order", kind="order")
    if config.data.mix:
        steps, epochs = config.trainer.get("max_steps", -1), config.trainer.get("num_train_epochs", 1)
        order.check_mixture(whole_epochs=steps <= 0 and float(epochs).is_integer())
    return order
