"""One sentence for an error that the user can put right, whoever raised it."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence

from align.core.config import suggestion
from align.core.errors import UserError, shortage
from align.runs.composition import known_keys

# Groups that take keywords beside those that are listed.
_OPEN = ("trainer.", "method.loss.")
_PLACES = {
    errno.EACCES: "you may not write there",
    errno.EPERM: "you may not write there",
    errno.EROFS: "that disk can only be read",
    errno.EEXIST: "a file of that name is in the way",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EISDIR: "a folder of that name is in the way",
}


def sentence(error: BaseException, *, command: str, overrides: Sequence[str]) -> str | None:
    """The sentence; None for a defect of ours.

    Args:
        error: what a command, or the composition of its configuration, ended with.
        command: `train`, `evaluate`, …
        overrides: what it was given.
    """
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

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
        return _unknown_key(override[1], command, overrides)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _one_line(error)
    return None


def early_sentence(error: BaseException) -> str | None:
    """The same for what ends a command before its own work begins: an output folder, a word that Hydra misreads."""
    if isinstance(error, OSError) and error.filename is not None:
        reason = _PLACES.get(error.errno or 0, error.strerror)
        return f"output: {error.filename} cannot be made ({reason}): name another folder, output=…."
    if isinstance(error, ValueError):
        return _one_line(error)
    return None


def _unknown_key(key: str, command: str, overrides: Sequence[str]) -> str:
    """What to write in the place of a key that there is not."""
    parent, _, name = key.rpartition(".")
    parts = [each.rpartition(".") for each in known_keys(command, overrides)]
    meant = suggestion(name, [last for group, _, last in parts if group == parent], group=parent)
    added = f", and +{key}=VALUE gives a keyword that is not listed" if key.startswith(_OPEN) else ""
    return f"{key} is no key of this command{meant}: `align {command} --help` lists the keys{added}."


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
