"""`align plan`, and `align.plan(…)` from Python: what a run will need per GPU and step; no GPU, no weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from align.adapters.reading import read_model
from align.core.config import check_choice, typed
from align.core.errors import UserError
from align.data.position_settings import read_positions
from align.data.settings import DataSettings
from align.data.sources import check_row_paths
from align.distributed.names import check_quantised, check_wrapper_name
from align.longseq.settings import (
    ATTENTION_CHOICES,
    MemorySettings,
    ParallelSettings,
    check_library_settings,
)
from align.models.paths import check_path
from align.models.settings import ModelSettings
from align.planning.settings import GOALS, LENGTH, GpuSettings, RowSettings, optimizer_slots
from align.reference.settings import ReferenceSettings
from align.runs.api import make_callable
from align.runs.command import hydra_entry
from align.runs.outputs import asked_file, is_json
from align.training.method_settings import check_method
from align.training.trainer_keys import check_trainer_numbers

if TYPE_CHECKING:
    from align.planning.length_plan import LengthPlan
    from align.planning.planner import Plan

# Of the file `json`, as planner.to_json and length_plan.to_json make them: by them an earlier plan is known.
FIELDS = (
    "model",
    "rows",
    "machine",
    "given",
    "cheapest",
    "row_an_answer_fused_head",
    "row_an_answer",
)
LENGTH_FIELDS = ("model", "rows", "machine", "at_least", "given", "longest", "ways")


@hydra_entry("plan")
def main(config: DictConfig) -> int:
    """The command: 1 where nothing fits."""
    return 0 if plan(config, own=sys.argv[1:]).best is not None else 1


def plan(config: DictConfig, *, own: list[str] | None = None) -> Plan | LengthPlan:
    """Prints the plan, and the command to paste.

    Args:
        config: the composed configuration.
        own: the user's overrides, which the command repeats.
    """
    check(config)
    written = json_file(config)
    # Nothing above imports torch, so that a slip is answered at once.
    from align.core.files import write_json
    from align.planning import length_plan, planner

    repeated = planner.own_overrides(own or [], rows=config.data.path)
    if config.goal == LENGTH:
        longest = length_plan.make_length_plan(config)
        length_plan.show(longest, repeated)
        if written is not None:
            write_json(written, length_plan.to_json(longest))
        return longest
    made = planner.make_plan(config)
    planner.show(made, repeated)
    if written is not None:
        write_json(written, planner.to_json(made))
    return made


def json_file(config: DictConfig) -> Path | None:
    """The file for the whole plan, which may be an earlier plan and no other file; None where none is asked for.

    Raises:
        UserError: it cannot be written, or holds something else.
    """
    return asked_file(config, "json", lambda path: is_json(path, FIELDS) or is_json(path, LENGTH_FIELDS))


def check(config: DictConfig) -> None:
    """Refuses unknown keys, values and files, without torch."""
    check_choice("goal", str(config.goal), GOALS)
    check_method(config.method, allow_targets=list(config.allow_targets))
    model = read_model(config)
    check_path(model.path)
    typed(ReferenceSettings, config, "reference")
    typed(RowSettings, config, "rows")
    gpus = typed(GpuSettings, config, "gpus")
    gpus.check()
    memory, parallel = typed(MemorySettings, config, "memory"), typed(ParallelSettings, config, "parallel")
    memory.check(accelerator=True)
    parallel.check()
    check_choice("model.attention", model.attention, ATTENTION_CHOICES)
    check_library_settings(model.attention, memory, parallel)
    read_positions(config)
    check_wrapper_name(config.wrapper, gpus.device)
    if gpus.count > 1:
        check_quantised(model.quantization, config.wrapper)
        check_adapter(model, config.wrapper)
    check_trainer_numbers(OmegaConf.to_container(config.trainer, resolve=True))  # type: ignore[arg-type]
    optimizer_slots(str(config.trainer.optim))
    data = typed(DataSettings, config, "data")
    if data.path is not None:
        check_row_paths(data)


def check_adapter(model: ModelSettings, wrapper: str) -> None:
    """Refuses a wrapper that splits what an adapter needs whole on every process."""
    if model.adapter is not None and not model.adapter.takes_wrapper(wrapper):
        raise UserError(
            f"adapter={model.adapter.kind} does not train under wrapper={wrapper}: set wrapper=ddp."
        )


make_callable(__name__)

if __name__ == "__main__":
    main()
