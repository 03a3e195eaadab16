"""`align verify`, and `align.verify(…)` from Python: padded rows against the shared prefix against shards.

With `model.attention=library` it is rows of their own that are held against padded ones.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from align.adapters.reading import read_model
from align.core.config import check_choice, typed
from align.core.errors import UserError
from align.core.readable import Readable
from align.longseq.settings import (
    ATTENTION_CHOICES,
    OF_SOME_GPUS,
    MemorySettings,
    ParallelSettings,
    check_library_settings,
)
from align.models.checks import check_model
from align.models.settings import ModelSettings
from align.runs.api import make_callable
from align.runs.command import hydra_entry

AUTO = "auto"
TOLERANCE = 1e-5  # where rounding is less

if TYPE_CHECKING:
    from align.verification.comparison import Difference


@dataclass(frozen=True)
class Verification(Readable):
    """How exact each way to compute a step is.

    Attributes:
        differences: of each way from padded rows in fp32.
        tolerance: largest relative error that counts as exact.
    """

    differences: list[Difference]
    tolerance: float

    @property
    def exact(self) -> bool:
        """Whether all are within the tolerance."""
        return all(max(each.loss, each.gradient) <= self.tolerance for each in self.differences)


@hydra_entry("verify")
def main(config: DictConfig) -> int:
    """The command: 1 where an error exceeds the tolerance."""
    return 0 if verify(config).exact else 1


def verify(config: DictConfig) -> Verification:
    """Computes one step in every way that the launch allows, on two random layers of the model's architecture."""
    model, memory, shards = check(config)
    # Nothing above imports torch, so that a slip is answered at once.
    from align.planning.published import or_published

    with tempfile.TemporaryDirectory() as folder:
        return _verify(config, or_published(model, Path(folder)), memory, shards)


def _verify(
    config: DictConfig, model: ModelSettings, memory: MemorySettings, shards: ParallelSettings
) -> Verification:
    """The same for settings that are read, of a model whose configuration is there."""
    import torch

    from align.core.telling import tell
    from align.distributed.agreement import check_same_settings
    from align.longseq.checkpointing import apply_checkpointing
    from align.longseq.probe import check_architecture
    from align.longseq.settings import attention_name
    from align.longseq.support import check_degree
    from align.models.loading import load_config
    from align.planning.fit import fit_verify
    from align.planning.job import Rows
    from align.verification import comparison
    from align.verification.launched import start_accelerator
    from align.verification.small_copy import build_small_copy
    from align.verification.unshown import unshown

    memory.check(accelerator=torch.accelerator.is_available())
    if model.kernels != "none":
        tell(f"align verify computes the model's own modules: model.kernels={model.kernels} is left out.")
    check_architecture(model)
    check_degree(load_config(model), shards.degree)
    # Built before the launcher's plugins are active: ZeRO-3 would scatter the reference's weights.
    plain, shared, launched = (
        build_small_copy(model, attention=attention, seed=config.seed)
        for attention in (None, attention_name(model.attention), attention_name(model.attention))
    )
    for sentence in unshown(plain.config, config.prompt_tokens + config.answer_tokens):
        tell(sentence)
    answers = (config.answer_tokens, max(1, config.answer_tokens // 2), max(1, config.answer_tokens // 3))
    accelerator = start_accelerator()
    try:
        check_same_settings(dict(config))
        memory = fit_verify(
            model, memory, rows=Rows(config.prompt_tokens, answers), degree=shards.degree, at=accelerator
        )
        for copied in (shared, launched):
            apply_checkpointing(copied, memory.checkpointing, **memory.levers())
        parallel = comparison.form_groups(shards, plain.config, config, accelerator)
        outcomes = comparison.run_all(config, memory, (plain, shared, launched), accelerator, parallel)
        differences = comparison.compare(outcomes)
        tolerance, why = config.tolerance, ""
        if tolerance == AUTO:
            groups = accelerator.num_processes // shards.degree
            examples = comparison.examples_of(config, plain, groups=groups)
            tolerance, why = comparison.tolerated(differences, TOLERANCE, plain, examples, outcomes[0])
        if accelerator.is_main_process:
            compared = len(outcomes[0].gradients)
            comparison.show(
                differences, title=config.model.path, tolerance=tolerance, why=why, gradients=compared
            )
    finally:
        accelerator.end_training()
    return Verification(differences, tolerance)


def check(config: DictConfig) -> tuple[ModelSettings, MemorySettings, ParallelSettings]:
    """Refuses what leaves nothing to compare, without torch."""
    for key, least in (("prompt_tokens", 2), ("answer_tokens", 3)):
        if not isinstance(config[key], int) or config[key] < least:
            raise UserError(f"{key}={config[key]} must be a whole number from {least} on.")
    given = config.tolerance
    if given != AUTO and (not isinstance(given, (int, float)) or given <= 0):
        raise UserError(f"tolerance={given} must be a positive number, or {AUTO}.")
    model = read_model(config)
    check_model(model)
    check_choice("model.attention", model.attention, ATTENTION_CHOICES)
    if model.attention in OF_SOME_GPUS:
        raise UserError(
            f"align verify compares gradients in float32, which model.attention={model.attention} does not take: "
            "set model.attention=sdpa here; the tests of the kernels are `pytest -m gpu`."
        )
    memory = typed(MemorySettings, config, "memory")
    memory.check(accelerator=True)
    parallel = typed(ParallelSettings, config, "parallel")
    parallel.check()
    check_library_settings(model.attention, memory, parallel)
    return model, memory, parallel


make_callable(__name__)

if __name__ == "__main__":
    main()
