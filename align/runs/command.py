"""The one way in that every command shares: Hydra, one sentence for what a user can put right, jobs of a sweep."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from align.runs import command_help, exit_codes
from align.runs.console import quiet_libraries, tolerate_any_terminal
from align.runs.leaving import leaves_process_group


def hydra_entry(config_name: str) -> Callable[[Callable[[Any], int | float | None]], Callable[[], None]]:
    """Makes `function(config)` a Hydra application on `hydra_conf/<config_name>.yaml`.

    What a user can put right ends in one sentence on stderr: settings and data with exit code 2, what the machine
    refuses with 1 (sentences.py). Anything else is a defect, and ends in its traceback, whom to tell, and 1. An int
    that `function` returns is the exit code, a float what a sweeper optimises.

    Under `-m` every job has the folder `OUTPUT/<job number>`, and one that fails says why and lets the others run;
    the command then ends with exit code 1.
    """

    def decorate(function: Callable[[Any], int | float | None]) -> Callable[[], None]:
        import hydra

        work = _Work(config_name, function)

        @functools.wraps(function)
        def task(config: Any) -> float | None:
            return work.run(config)

        application = hydra.main(version_base="1.3", config_path="pkg://hydra_conf", config_name=config_name)(
            task
        )

        @functools.wraps(function)
        def entry() -> None:
            with leaves_process_group():
                work.enter(application)

        return entry

    return decorate


class _Work:
    """A command's function between Hydra's way in and the exit code.

    Attributes:
        command: its name.
        function: what it does with its configuration.
        begun: whether that has begun; what ends a command before is about its words or its output folder.
    """

    def __init__(self, command: str, function: Callable[[Any], int | float | None]) -> None:
        self.command, self.function, self.begun = command, function, False

    def enter(self, application: Callable[[], Any]) -> None:
        """Runs Hydra's application, which composes the configuration and calls `run`."""
        # With this variable Hydra re-raises instead of printing its own several lines.
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")
        from align.runs.flags import check_flags
        from align.runs.jobs import JobFailedError, check_no_sweep_inside
        from align.runs.recipes import check_recipe

        self.begun = False
        tolerate_any_terminal()
        try:
            if command_help.is_asked(sys.argv[1:]):
                command_help.show(self.command, sys.argv[1:])
                return
            check_flags(sys.argv[1:], self.command)
            check_no_sweep_inside(sys.argv[1:], self.command)
            check_recipe(sys.argv[1:])
            with quiet_libraries():
                application()
        except JobFailedError:  # each has been told
            print(
                f"align {self.command}: some jobs of the sweep failed: why stands above, and in their folders.",
                file=sys.stderr,
            )
            sys.exit(1)
        except KeyboardInterrupt:
            print(f"align {self.command}: interrupted.", file=sys.stderr)
            sys.exit(exit_codes.INTERRUPTED)
        except Exception as error:
            _end(self.command, error, early=not self.begun)

    def run(self, config: Any) -> float | None:
        """The function's work, in a job of a sweep or by itself."""
        from align.core.config import check_shared
        from align.runs import jobs

        self.begun = True
        if jobs.is_job():
            return _run_job(self.function, config, self.command)
        # Leaves through SystemExit, which Hydra lets pass without a report of its own.
        try:
            check_shared(config)
            result = self.function(config)
        except Exception as error:
            _end(self.command, error)
        return _exit_or_value(result)


def _exit_or_value(result: int | float | None) -> float | None:
    """Ends with an int as exit code; hands a float on."""
    if isinstance(result, int) and result:
        sys.exit(result)
    return result if isinstance(result, float) else None


def _run_job(function: Callable[[Any], int | float | None], config: Any, command: str) -> float | None:
    """One job of a sweep, in a folder of its own; a failure is shown, recorded there and raised as JobFailedError."""
    import traceback

    from align.core.config import check_shared
    from align.runs import jobs
    from align.runs.sentences import sentence

    folder = jobs.own_folder(config)
    jobs.record_failure(folder, None)
    try:
        check_shared(config)
        result = function(config)
    except Exception as error:
        said = sentence(error, command=command, overrides=sys.argv[1:])
        if said is None:
            traceback.print_exc()
            said = f"{type(error).__name__}: {error}"
        print(f"align {command}: job {folder} failed: {said}", file=sys.stderr)
        jobs.record_failure(folder, said)
        raise jobs.JobFailedError(said) from None
    return _exit_or_value(result)


def _end(command: str, error: Exception, *, early: bool = False) -> NoReturn:
    """Ends with one sentence where the user can put it right; a defect of ours with its traceback and whom to tell.

    Args:
        command: its name.
        error: what it ended with.
        early: whether its own work had not begun.
    """
    from align.runs.sentences import early_sentence, machine_fault, sentence

    if isinstance(error, BrokenPipeError):  # who read the output has stopped: cli.main knows what to do
        raise error
    _tell_launcher(error)
    fault = None if early else machine_fault(error)
    said = early_sentence(error, overrides=sys.argv[1:]) if early else fault
    said = said or sentence(error, command=command, overrides=sys.argv[1:])
    if said is None:
        _show_defect(command, error)
        sys.exit(exit_codes.FAULT)
    if not early:
        _remove_empty_folder()
    print(f"align {command}: {said}", file=sys.stderr)
    sys.exit(exit_codes.USAGE if fault is None else exit_codes.FAULT)


def _show_defect(command: str, error: Exception) -> None:
    """The traceback, and under it that it is ours and what to do with it."""
    import traceback

    import align

    traceback.print_exception(error)
    print(
        f"align {command}: this is a defect of align {align.__version__}, not of your settings: please report it to "
        "its maintainers with the lines above and the command that you gave.",
        file=sys.stderr,
    )


def _remove_empty_folder() -> None:
    """Takes the output folder away that Hydra has made, where the command wrote nothing into it."""
    from hydra.core.hydra_config import HydraConfig

    folder = Path(HydraConfig.get().runtime.output_dir)
    if folder != Path.cwd():
        with contextlib.suppress(OSError):  # something is in it, or another process was faster
            folder.rmdir()


def _tell_launcher(error: Exception) -> None:
    """Leaves the error where torch's launcher looks for it: its report names the first process that failed, and why."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
