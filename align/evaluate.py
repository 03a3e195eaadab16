"""`align evaluate`, and `align.evaluate(…)` from Python: what a model can do."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, open_dict
from rich.console import Console

from align.adapters.reading import read_model
from align.core.config import check_choice, typed
from align.core.errors import UserError
from align.core.instantiate import build
from align.core.telling import tell
from align.data.sources import check_row_paths
from align.evaluation.ask import exclusive_of_all, join_processes
from align.evaluation.suite import Evaluation, Result, Suite, show_result, write_result
from align.generation.generators import GeneratorSettings, digest_of
from align.generation.pace import changes_no_answer
from align.generation.stage import WORK, Workspace
from align.models.checks import check_model
from align.models.settings import ModelSettings
from align.patterns.layers import FULL_ATTENTION, evaluating_patterns, patterns_words
from align.runs.api import make_callable
from align.runs.command import hydra_entry
from align.runs.folder import RESUME, claim_output
from align.runs.outputs import check_folder
from align.training.settings import read_settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.evaluation.suite import ScoredPairs

PRECISION = ("bf16", "fp16", "tf32")  # of the group `trainer`: what scores of pairs depend on


@dataclass(frozen=True)
class TopSettings:
    """The keys beside the groups; see hydra_conf/evaluate.yaml."""

    output: str
    seed: int = 42
    resume: str = "auto"
    allow_targets: list[str] = field(default_factory=list)


@hydra_entry("evaluate")
def main(config: DictConfig) -> None:
    """The command."""
    evaluate(config)


def evaluate(config: DictConfig) -> Result:
    """Checks everything, runs the suite or goes on running it, and shows scores with their intervals."""
    suite, generator, model = check(config)
    # Nothing above imports torch, so that a slip is answered at once.
    import torch
    from accelerate import PartialState

    from align.models.loading import load_causal_lm, load_config, model_tokenizer, native_window
    from align.models.text_part import text_config

    # Unless it is told, it takes several processes without an accelerator for one each.
    join_processes(cpu=bool(config.trainer.get("use_cpu")) or not torch.accelerator.is_available())
    said = patterns_words(text_config(load_config(model)))
    if said is not None and PartialState().is_main_process:
        tell(said)
    tokenizer = model_tokenizer(model)
    opened = generator.open(model, tokenizer)
    load = partial(load_causal_lm, model, device=PartialState().device)
    weights = partial(weights_of_model, model, tokenizer)
    with exclusive_of_all(config.output):  # before anything there changes
        output = claim(config)
        workspace = Workspace(output, config.seed, tokenizer, opened, Console(stderr=True))
        window = partial(native_window, model)
        with evaluating_patterns():
            result = suite.run(Evaluation(load, workspace, partial(score_pairs, config), weights, window))
    if PartialState().is_main_process:
        write_result(result, output)
        subject = model.path if getattr(suite, "asks", True) else "answers made elsewhere"
        show_result(result, output, Console(), title=f"{type(suite).__name__}: {subject}")
    return result


def weights_of_model(model: ModelSettings, tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest of weights, configuration, dtype and tokenizer; reads the weight files once."""
    from align.core.files import cache_folder
    from align.models.identity import Identity
    from align.models.precision import Precision

    identity = Identity.of(model, precision=Precision(), cache=cache_folder(), key="model.path")
    vocabulary = tokenizer.backend_tokenizer.to_str()  # type: ignore[attr-defined]
    return digest_of([identity.digest, vocabulary])


def check(config: DictConfig) -> tuple[Suite, GeneratorSettings, ModelSettings]:
    """Every setting as its type, contradictions refused; reads no weights."""
    typed(TopSettings, config, "")
    model = read_model(config)
    check_patterns(model)
    check_model(model)
    check_choice("resume", str(config.resume), RESUME)
    check_folder(config.output)
    suite: Suite = build(config, "suite")
    check_pairs(config, suite)
    return suite, build(config, "generator"), model


def check_patterns(model: ModelSettings) -> None:
    """Refuses patterns that nothing would be read with.

    Raises:
        UserError: the group `attention` has some for training alone.
    """
    if model.layer_patterns is not None and model.layer_patterns.patterns.evaluate == FULL_ATTENTION:
        raise UserError(
            "attention.evaluate=full reads everything with full attention here: set attention.evaluate=same to measure "
            "the patterns, or attention=own."
        )


def check_pairs(config: DictConfig, suite: Suite) -> None:
    """Which pairs the suite measures, of the group `data` or its own, and against which reference; loads nothing.

    Raises:
        UserError: rows for a suite that reads none, none for one that does, or a model that is its own reference.
    """
    if config.data.eval_path is not None:
        raise UserError("align evaluate measures the rows of data.path: name these there, data.path=….")
    reads_rows = getattr(suite, "reads_rows", False)
    if not reads_rows and getattr(suite, "pairs", None) is None:
        if config.data.path is not None:
            raise UserError(
                f"{type(suite).__name__} measures no rows of data.path: leave it out, or take suite=preference."
            )
        return
    settings = read_settings(config)
    if reads_rows:
        check_row_paths(settings.data)
    if settings.reference_source != "none" and settings.reference.model is None:
        raise UserError(
            f"method={config.method.name} takes margins against the model that training started from: name it, "
            "reference.model=…, or take a method without a reference, method=simpo."
        )


def claim(config: DictConfig) -> Path:
    """The output folder as this configuration's own; `resume=never` empties it of earlier answers."""
    from accelerate import PartialState

    output = Path(config.output)
    free = (f"trainer.{key}" for key in config.trainer if key not in PRECISION)
    claim_output(output, config, ignore=("resume", *free, *changes_no_answer(config)))
    if config.resume == "never" and PartialState().is_main_process and (output / WORK).is_dir():
        shutil.rmtree(output / WORK)
    PartialState().wait_for_everyone()
    return output


def score_pairs(config: DictConfig, path: str | None) -> ScoredPairs:
    """The rows of `path`, or of the group `data`, through the training forward, wrapped and sharded as in training.

    Of a folder or data set with held-out splits the others; `FOLDER:test` names one.
    """
    import numpy as np

    from align.evaluation.suite import ScoredPairs
    from align.models.loading import model_tokenizer
    from align.training.run import check as check_run
    from align.training.setup import build_trainer, read_data, read_pairs

    whole = config.copy()
    with open_dict(whole):
        whole.data.eval_size = 0
    run = check_run(whole)
    tokenizer = model_tokenizer(run.model)
    data = read_data(run, tokenizer) if path is None else read_pairs(run, tokenizer, path)
    trainer = build_trainer(run, tokenizer, data)
    found = trainer.predict(data.train)
    rows = data.train.select_columns(["source", "longest_sequence"])
    return ScoredPairs(np.asarray(found.predictions), [dict(row) for row in rows])


make_callable(__name__)

if __name__ == "__main__":
    main()
