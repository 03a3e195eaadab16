"""`align COMMAND …`: a few lines of dispatch, and the one way in that every command's Hydra main shares."""

from __future__ import annotations

import importlib
import os
import sys

from align.runs import exit_codes  # nothing slow: what is imported here, Ctrl-C ends in a traceback

COMMANDS = {
    "train": "preference training: LOGO, LongPO, LongWriter and relatives",
    "synthesize": "preference data from documents",
    "evaluate": "what a model can do: retrieval, LongBench, long writing, preference, perplexity, short tasks",
    "rounds": "data and training in turns, each round on longer contexts (LongPO)",
    "inspect": "rows as the model will see them, and checks of the data",
    "verify": "proof that loss and gradients are exact for a model, its wrapper and degree",
    "plan": "memory per GPU and seconds a step before it runs, and the fastest settings that fit",
    "report": "the runs of a sweep, ranked and drawn",
    "export": "a trained policy as an ordinary model folder, with a model card",
    "merge": "the weights of several models, or LoRA adapters, as one, by any of eight rules",
}


def main() -> None:
    """Entry point of the console script: `align train method=logo …`."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        importlib.import_module("align.runs.console").tolerate_any_terminal()
        _dispatch()
        sys.stdout.flush()
    except KeyboardInterrupt:  # while libraries are imported; a command's own work says more (command.py)
        print(f"align{command and ' '}{command}: interrupted.", file=sys.stderr)
        sys.exit(exit_codes.INTERRUPTED)
    except BrokenPipeError:  # who read the output has stopped, as in `align --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more as it ends
        sys.exit(exit_codes.PIPE)


def _dispatch() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(_usage())
        return
    if command not in COMMANDS:
        print(f"align: unknown command '{command}'; use one of: {', '.join(COMMANDS)}.", file=sys.stderr)
        sys.exit(exit_codes.USAGE)
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


if __name__ == "__main__":
    main()
