"""Flags of other programs, `--max-steps 1`: refused with the key that sets the same here."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from align.core.errors import UserError
from align.runs.composition import known_keys

# Hydra's flags, and which of them take the next word.
_ALONE = (
    *("--help", "-h", "--hydra-help", "--version", "--run", "-r", "--multirun", "-m", "--resolve"),
    *("--shell-completion", "-sc", "--info", "-i"),
)
_WITH_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"),
    *("--config-dir", "-cd", "--experimental-rerun"),
)
FLAGS = frozenset((*_ALONE, *_WITH_VALUE))
# Names that other trainers have → ours.
_ELSEWHERE = {
    "lr": "trainer.learning_rate",
    "epochs": "trainer.num_train_epochs",
    "batch_size": "trainer.per_device_train_batch_size",
    "model_name_or_path": "model.path",
    "model": "model.path",
    "dataset": "data.path",
    "dataset_name": "data.path",
    "data": "data.path",
    "train_file": "data.path",
    "output_dir": "output",
    "loss_type": "method",
    "beta": "method.loss.beta",
}


def check_flags(words: Sequence[str], command: str) -> None:
    """Refuses a flag that is none of Hydra's.

    Args:
        words: those of the command line, behind the command.
        command: its name.

    Raises:
        UserError: with the key to write instead, where one is near.
    """
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        before = words[i - 1] if i else ""
        if not word.startswith("-") or name in FLAGS or before in _WITH_VALUE:
            continue
        after = words[i + 1] if i + 1 < len(words) else ""
        if not equals:
            value = after if after and not after.startswith("-") and "=" not in after else "VALUE"
        key = nearest_key(name.lstrip("-"), command, words)
        written = "keys are set as KEY=VALUE" if key is None else f"write {key}={value}"
        raise UserError(
            f"{name} is no flag of this command: {written}; `align {command} --help` lists the keys."
        )


def nearest_key(name: str, command: str, words: Sequence[str]) -> str | None:
    """The key whose last part, or whole, is the name of a flag or near to it; None where none is."""
    meant = name.replace("-", "_")
    keys = known_keys(command, [word for word in words if "=" in word and not word.startswith("-")])
    if _ELSEWHERE.get(meant) in keys:
        return _ELSEWHERE[meant]
    lasts: dict[str, str] = {}
    for key in sorted(keys, key=lambda key: key.count(".")):  # of several with one last part the outermost
        lasts.setdefault(key.rpartition(".")[2], key)
    if meant in keys:
        return meant
    close = difflib.get_close_matches(meant, lasts, n=1, cutoff=0.75)
    return lasts[close[0]] if close else None
