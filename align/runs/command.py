"""The one way in that every command shares: Hydra, one sentence for what a user can put right, jobs of a sweep."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from align.runs import exit_codes
from align.runs.console import quiet_libraries


def hydra_entry(config_name: str) -> Callable[[Callable[[Any], int | float | None]], Callable[[], None]]:
    """Makes `function(config)` a Hydra application on `hydra_conf/<config_name>.yaml`.

    What a user can put right ends in one sentence on stderr and exit code 2: a `UserError` of ours, and
    Hydra's and OmegaConf's own complaints about overrides. Anything else is a defect and keeps its
    traceback. An int that `function` returns is the exit code, a float what a sweeper optimises.

    Under `-m` every job has the folder `OUTPUT/<job number>`, and one that fails says why and lets the others run;
    the command then ends with exit code 1.
    """

    def decorate(function: Callable[[Any], int | float | None]) -> Callable[[], None]:
        import hydra

        @functools.wraps(function)
        def task(config: Any) -> float | None:
            from align.runs import jobs

            if jobs.is_job():
                return _run_job(function, config, config_name)
            # Leaves through SystemExit, which Hydra lets pass without a report of its own.
            try:
                result = function(config)
            except Exception as error:
                _end(config_name, error)
            _leave_process_group()
            return _exit_or_value(result)

        application = hydra.main(version_base="1.3", config_path="pkg://hydra_conf", config_name=config_name)(
            task
        )

        @functools.wraps(function)
        def entry() -> None:
            # With this variable Hydra re-raises instead of printing its own several lines.
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")
            from align.runs.jobs import JobFailedError, check_no_sweep_inside

            try:
                check_no_sweep_inside(sys.argv[1:], config_name)
                with quiet_libraries():
                    application()
            except JobFailedError:  # each has been told
                print(
                    f"align {config_name}: some jobs of the sweep failed; their folders say why.",
                    file=sys.stderr,
                )
                sys.exit(1)
            except Exception as error:
                _end(config_name, error)

        return entry

    return decorate


def _leave_process_group() -> None:
    """After what succeeded on every rank: a process that ends with the group's threads running may abort
    (pytorch/pytorch#190489), and the launcher would report a finished run as failed."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _exit_or_value(result: int | float | None) -> float | None:
    """Ends with an int as exit code; hands a float on."""
    if isinstance(result, int) and result:
        sys.exit(result)
    return result if isinstance(result, float) else None


def _run_job(function: Callable[[Any], int | float | None], config: Any, command: str) -> float | None:
    """One job of a sweep, in a folder of its own; a failure is shown, recorded there and raised as JobFailedError."""
    import traceback

    from align.runs import jobs

    folder = jobs.own_folder(config)
    jobs.record_failure(folder, None)
    try:
        result = function(config)
    except Exception as error:
        said = sentence(error)
        if said is None:
            traceback.print_exc()
            said = f"{type(error).__name__}: {error}"
        print(f"align {command}: job {folder} failed: {said}", file=sys.stderr)
        jobs.record_failure(folder, said)
        raise jobs.JobFailedError(said) from None
    return _exit_or_value(result)


def _end(command: str, error: Exception) -> NoReturn:
    """Ends with one sentence and exit code 2 where the user can put it right; re-raises a defect."""
    _tell_launcher(error)
    said = sentence(error)
    if said is None:
        raise error
    print(f"align {command}: {said}", file=sys.stderr)
    sys.exit(exit_codes.USAGE)


def _tell_launcher(error: Exception) -> None:
    """Leaves the error where torch's launcher looks for it: its report names the first process that failed, and why."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def sentence(error: BaseException) -> str | None:
    """One sentence for an error that the user can put right; None for a defect."""
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    from align.core.errors import UserError, shortage

    seen: BaseException | None = error
    while seen is not None:  # libraries that call ours wrap what we raise
        if isinstance(seen, UserError):
            return str(seen)
        seen = seen.__cause__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={name} is not known: use {', '.join(error.options)}."
    if isinstance(error, OSError) and shortage(error) is not None:
        return f"{error.filename or 'a file'} could not be written: {shortage(error)}; make room and run it again."
    override = re.match(r"Could not override '([^']+)'", str(error))
    if override:
        key = override[1]
        return (
            f"{key} is no key of this command: `--help` lists the keys, and +{key}=VALUE adds one to a group."
        )
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return " ".join(str(error).split())
    return None
