"""Jobs of a sweep: a folder each, a failure that ends its job alone, and processes of their own where asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from align.core.config import typed
from align.core.errors import UserError
from align.core.files import write_atomically
from align.runs import exit_codes
from align.runs.children import run_child
from align.runs.outputs import holds_others
from align.runs.quoting import literal

FAILURE = "failed.txt"  # in a job's folder: why it failed
CHILD = "launch"  # …/launch.yaml: the resolved configuration that a job's processes read
_RUN_FOLDER_SETTINGS = {"job": {"chdir": False}, "run": {"dir": "${output}"}, "output_subdir": None}


class JobFailedError(Exception):
    """A job of a sweep failed; the sweep goes on. The message was shown, and lies in the folder if that is ours."""


@dataclass(frozen=True)
class LaunchSettings:
    """Group `launch`; see hydra_conf/launch/default.yaml."""

    processes: int | None = None
    config: str | None = None


def in_launcher(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `accelerate launch` or torchrun started this process."""
    return "ACCELERATE_MIXED_PRECISION" in environment or "TORCHELASTIC_RUN_ID" in environment


def check_no_sweep_inside(arguments: list[str], command: str) -> None:
    """Refuses a sweep in processes that a launcher has already started.

    Raises:
        UserError: each process would run the whole sweep by itself.
    """
    if in_launcher() and {"-m", "--multirun"} & set(arguments):
        raise UserError(
            "-m inside `accelerate launch` would start the sweep in every process: start it once, "
            f"`align {command} -m …`, with launch.processes=N or launch.config=FILE for the processes of each job."
        )


def is_job() -> bool:
    """Whether this is a job of a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def own_folder(config: DictConfig) -> Path:
    """Resolves a job's configuration, and gives it the folder `SWEEP/<job number>` as its `output`; the folder."""
    from hydra.core.hydra_config import HydraConfig

    # Resolved first: what refers to `output` or to Hydra's own keys means the sweep's folder.
    OmegaConf.resolve(config)
    if "output" not in config:
        return Path(HydraConfig.get().runtime.output_dir)
    folder = Path(config.output) / str(HydraConfig.get().job.num)
    with open_dict(config):
        config.output = str(folder)
    return folder


def record_failure(output: str | Path, sentence: str | None) -> None:
    """Leaves the reason in a job's folder, where `align report` finds it; None takes an earlier one away.

    A folder that is somebody else's is left as it is.
    """
    if holds_others(Path(output)):
        return
    path = Path(output) / FAILURE
    if sentence is None:
        path.unlink(missing_ok=True)
    else:
        write_atomically(path, sentence + "\n")


def read_launch(config: DictConfig) -> LaunchSettings | None:
    """Group `launch`, checked; None where this process is to do the work.

    Raises:
        UserError: no process, a file that is not there, or a launch within a launch.
    """
    settings = typed(LaunchSettings, config, "launch")
    if settings.processes is None and settings.config is None:
        return None
    if in_launcher():
        raise UserError(
            "launch.processes and launch.config go with plain `align train`, not `accelerate launch`."
        )
    if settings.config is not None and not Path(settings.config).is_file():
        raise UserError(f"launch.config={settings.config} is no file: name one of launchers/accelerate/.")
    if settings.processes is not None and settings.processes < 1:
        raise UserError(f"launch.processes={settings.processes}: start at least one.")
    return settings


def launch(config: DictConfig) -> int | None:
    """Runs the command in processes of its own where the group `launch` asks for them.

    Returns:
        None where this process is to do the work; 0 when the processes have done it.

    Raises:
        UserError: as `read_launch`, or the processes failed.
    """
    settings = read_launch(config)
    if settings is None:
        return None
    output = Path(str(config.output))
    _write_child_config(config, output)
    code = run_child(_command(settings, output))
    if code == exit_codes.STOPPED:
        raise SystemExit(exit_codes.STOPPED)
    if code:
        raise UserError(
            f"the processes of {output} ended with exit code {code}; what they said stands above."
        )
    return 0


def _write_child_config(config: DictConfig, output: Path) -> None:
    content: Any = literal(OmegaConf.to_container(config, resolve=True))
    content |= {
        "launch": {"processes": None, "config": None},
        "defaults": ["_self_"],
        "hydra": _RUN_FOLDER_SETTINGS,
    }
    write_atomically(output / f"{CHILD}.yaml", OmegaConf.to_yaml(OmegaConf.create(content)))


def _command(settings: LaunchSettings, output: Path) -> list[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    if settings.config is not None:
        command += ["--config_file", settings.config]
    else:
        command += ["--multi_gpu"] if settings.processes != 1 else []
    if settings.processes is not None:
        command += ["--num_processes", str(settings.processes)]
    # Jobs side by side must not share a port: 0 takes a free one.
    command += ["--main_process_port", "0", "-m", "align.train"]
    return [*command, "--config-dir", str(output.resolve()), "--config-name", CHILD]
