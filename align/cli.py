"""`align COMMAND …`: a few lines of dispatch, and the one way in that every command's Hydra main shares."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

COMMANDS = {
    "train": "preference training: LOGO, LongPO, LongWriter and relatives",
    "synthesize": "preference data from documents",
    "inspect": "rows as the model will see them, and checks of the data",
}
USAGE_EXIT_CODE = 2


def main() -> None:
    """Entry point of the console script: `align train method=logo …`."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(_usage())
        return
    if command not in COMMANDS:
        print(f"align: unknown command '{command}'; use one of: {', '.join(COMMANDS)}.", file=sys.stderr)
        sys.exit(USAGE_EXIT_CODE)
    # Hydra reads sys.argv itself; the program's name stays visible in its messages.
    sys.argv = [f"align {command}", *sys.argv[2:]]
    importlib.import_module(f"align.{command}").main()


def _usage() -> str:
    lines = [f"  {name:<12}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: align COMMAND [key=value …]",
            "",
            *lines,
            "",
            "`align COMMAND --help` lists the keys.",
        ]
    )


def hydra_entry(config_name: str) -> Callable[[Callable[[Any], int | None]], Callable[[], None]]:
    """Makes `function(config)` a Hydra application on `hydra_conf/<config_name>.yaml`.

    What a user can put right ends in one sentence on stderr and exit code 2: a `UserError` of ours, and
    Hydra's and OmegaConf's own complaints about overrides. Anything else is a defect and keeps its
    traceback. A number that `function` returns is the exit code.
    """

    def decorate(function: Callable[[Any], int | None]) -> Callable[[], None]:
        import hydra

        @functools.wraps(function)
        def task(config: Any) -> int | None:
            # Hydra logs a job's exit code nowhere: a non-zero result leaves through SystemExit.
            code = function(config)
            if code:
                sys.exit(code)
            return None

        application = hydra.main(version_base="1.3", config_path="pkg://hydra_conf", config_name=config_name)(
            task
        )

        @functools.wraps(function)
        def entry() -> None:
            # With this variable Hydra re-raises instead of printing its own several lines.
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")
            try:
                application()
            except Exception as error:
                sentence = _sentence(error)
                if sentence is None:
                    raise
                print(f"align {config_name}: {sentence}", file=sys.stderr)
                sys.exit(USAGE_EXIT_CODE)

        return entry

    return decorate


def _sentence(error: BaseException) -> str | None:
    """One sentence for an error that the user can put right; None for a defect."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from align.errors import UserError

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return str(seen)
        seen = seen.__cause__
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _hydra_sentence(error)
    return None


def _hydra_sentence(error: Exception) -> str:
    """Hydra's message on one line, followed by the cause that names the key."""
    parts = [str(error).strip()]
    if error.__cause__ is not None and str(error.__cause__) not in parts[0]:
        parts.append(str(error.__cause__).strip())
    lines = [line.strip() for part in parts for line in part.splitlines() if line.strip()]
    return " ".join(line if line.endswith((".", ":", ",")) else f"{line}." for line in lines)
