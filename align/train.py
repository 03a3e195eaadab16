"""`align train`, and `align.train(…)` from Python: one function that reads as its table of contents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from align.core.allocator import let_segments_grow
from align.core.telling import tell
from align.data.sources import check_row_paths
from align.evaluation.suite import Suite, build_suites
from align.runs import exit_codes, jobs
from align.runs.api import make_callable
from align.runs.command import hydra_entry
from align.runs.folder import check_resume
from align.runs.outputs import check_folder
from align.training.settings import read_settings

if TYPE_CHECKING:
    from align.data.dataset import PreferenceData
    from align.runs.continuation import RowsNote
    from align.training.finish import TrainResult
    from align.training.run import Run
    from align.training.trainer import PreferenceTrainer


@hydra_entry("train")
def main(config: DictConfig) -> int | float | None:
    """The command: its exit code where SIGTERM stopped it, else what a sweeper optimises."""
    said = let_segments_grow()  # before torch is imported, which reads it
    if said is not None:
        tell(said)
    result = train(config)
    return exit_codes.STOPPED if result.stopped else result.objective


def train(config: DictConfig) -> TrainResult:
    """Checks everything, reads the data, loads the model, trains, and shows what changed."""
    settings = read_settings(config)
    check_row_paths(settings.data)
    check_resume(settings.resume)
    check_folder(config.output)
    jobs.read_launch(config)
    suites = build_suites(config)
    # Nothing above imports torch, so that a slip is answered at once.
    from align.evaluation.in_training import check_suites
    from align.training.finish import read_result
    from align.training.run import check

    run = check(config)
    check_suites(suites, run.arguments)
    if jobs.launch(config) is not None:
        return read_result(run.output, objective=run.objective)
    return _train(run, config, suites)


def _train(run: Run, config: DictConfig, suites: Mapping[str, Suite]) -> TrainResult:
    """In this process, one of those that were launched."""
    from align.evaluation.ask import exclusive_of_all
    from align.longseq.tile_probe import check_tiles
    from align.planning.fit import fit_memory
    from align.runs import continuation
    from align.runs.folder import has_saved
    from align.training import fill, finish, setup

    setup.check_processes(run, config)
    tokenizer = setup.tokenizer_of(run)
    earlier = continuation.run_of(run.output, run.resume)
    noted = continuation.RowsNote.read(earlier) if run.resume != "never" and has_saved(earlier) else None
    if noted is not None and run.data.date is None:
        run = replace(run, data=replace(run.data, date=noted.date))
    data = setup.read_data(run, tokenizer)
    setup.check_same_data(data, run)
    setup.check_held_out(data, run, suites=bool(suites))
    setup.say_of_rows(data, run)
    if run.reference.fill_only:
        fill.fill_cache(setup.build_trainer(run, tokenizer, data), run, data)
        return finish.TrainResult(run.output)
    run = replace(run, memory=fit_memory(run, data))
    check_tiles(run.model, run.memory)  # what memory=auto has chosen
    with exclusive_of_all(str(run.output)):
        return _train_in_folder(run, config, suites, data, tokenizer, noted)


def _train_in_folder(
    run: Run,
    config: DictConfig,
    suites: Mapping[str, Suite],
    data: PreferenceData,
    tokenizer: Any,
    noted: RowsNote | None,
) -> TrainResult:
    """From the claim on the run's folder to what it leaves there; `noted` are the rows of the run that goes on."""
    from align.runs import checkpoints, continuation
    from align.runs.folder import claim_output, note_local_paths
    from align.runs.preemption import Preemption
    from align.training import finish, setup
    from align.training.named_metrics import NamedMetrics

    claim_output(run.output, config, ignore=continuation.FREE_KEYS)
    note_local_paths(run.output, config)
    setup.list_dropped(data, run)
    if checkpoints.agreed(run.resume == "auto" and finish.is_finished(run.output)):
        continuation.check_rows(run.output, noted, continuation.RowsNote(data.digest, data.date))
        finish.say_finished(run, data)
        return finish.read_result(run.output, objective=run.objective)
    checkpoint = checkpoints.agree_resume(run.output, run.resume)
    shape = continuation.StepShape.of(run.arguments, run.parallel.degree)
    rows = continuation.RowsNote(data.digest, data.date)
    if checkpoint is None:
        checkpoints.set_aside(run.output)
    else:
        continuation.check_continuation(checkpoint, shape)
        continuation.check_rows(checkpoint, noted, rows)
        continuation.say_goes_on(checkpoint)
        finish.reopen(run)
    rows.write(run.output)
    trainer = setup.build_trainer(run, tokenizer, data)
    trainer.add_callback(shape)
    ask_suites(suites, trainer, run, tokenizer, config.trainer.greater_is_better)
    # After the suites, whose scores these two look at.
    trainer.add_callback(NamedMetrics(run.objective))
    trainer.add_callback(finish.MetricsBefore(run.output / finish.BEFORE))
    trainer.args.eval_on_start = data.eval is not None and checkpoint is None
    with Preemption() as preemption, finish.interruptible(trainer, run.output):
        trainer.add_callback(preemption)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if preemption.stopped:
        finish.say_stopped(trainer)
        return finish.TrainResult(run.output, stopped=True)
    finish.finish(trainer, run, data)
    return finish.read_result(run.output, objective=run.objective)


def ask_suites(
    suites: Mapping[str, Suite],
    trainer: PreferenceTrainer,
    run: Run,
    tokenizer: Any,
    greater_is_better: bool | None,
) -> None:
    """Has suites run whenever held-out rows are evaluated; `greater_is_better` as in `SuitesInTraining`."""
    from align.evaluation.in_training import SuitesInTraining
    from align.models.loading import native_window
    from align.training.setup import read_pairs

    if suites:
        asked = SuitesInTraining(
            suites,
            trainer,
            tokenizer=tokenizer,
            output=run.output,
            seed=run.seed,
            read_pairs=partial(read_pairs, run, tokenizer),
            greater_is_better=greater_is_better,
            window=partial(native_window, run.model),
        )
        trainer.add_callback(asked)


make_callable(__name__)

if __name__ == "__main__":
    main()
