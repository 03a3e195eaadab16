"""One sentence for an error that the user can put right, whoever raised it: the one boundary of every command.

A `UserError` says it itself. What libraries and the system raise is known here by its kind: words that Hydra cannot
read, places that may not be written, packages that are not there, memory that ran out. All else is a defect of ours.
"""

from __future__ import annotations

import errno
import re
import shlex
from collections.abc import Sequence

from align.core.config import suggestion
from align.core.errors import UserError, shortage
from align.runs.composition import known_keys

# Groups that take keywords beside those that are listed.
_OPEN = ("trainer.", "method.loss.")
# Numbers of the system's errors about a place that the user has named, or a machine that the user has.
_PLACES = {
    errno.EACCES: "you may not write there",
    errno.EPERM: "you may not write there",
    errno.EROFS: "that disk can only be read",
    errno.EEXIST: "a file of that name is in the way",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EISDIR: "a folder of that name is in the way",
    errno.ENAMETOOLONG: "its name is too long",
    errno.ELOOP: "its links lead in a circle",
    errno.EIO: "the disk could not be read or written",
    errno.ESTALE: "the network's disk has gone away",
    errno.EMFILE: "too many files are open: raise `ulimit -n`",
    errno.ENFILE: "too many files are open on this machine",
}
_OURS = ("align", "losses", "hydra_conf")


def sentence(error: BaseException, *, command: str, overrides: Sequence[str]) -> str | None:
    """The sentence; None for a defect of ours.

    Args:
        error: what a command, or the composition of its configuration, ended with.
        command: `train`, `evaluate`, …
        overrides: what it was given.
    """
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
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
    fault = machine_fault(error)
    if fault is not None:
        return fault
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
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


def machine_fault(error: BaseException) -> str | None:
    """The sentence where the machine refused, and not a setting: a place, a package, memory; None for anything else."""
    if isinstance(error, OSError) and error.errno in _PLACES and error.filename is not None:
        return f"{error.filename}: {_PLACES[error.errno]}; name another place, or make this one usable."
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] not in _OURS:
        package = error.name.split(".")[0]
        return f"the package {package} is not installed, which these settings need: `pip install {package}`."
    if type(error).__name__ == "OutOfMemoryError":  # torch's, known without importing it
        return (
            f"the device's memory ran out ({_one_line(error).split('. ')[0]}): set memory=auto, lower data.max_length, "
            "or see `align plan` for what fits."
        )
    return None


def _unreadable(override: str) -> str:
    """How to write a word that Hydra's grammar takes for something else."""
    key, equals, value = override.partition("=")
    if not equals:
        return f"'{override}' is no setting: write key=value."
    if value[:1] in "[{" and value[-1:] in "]}":
        shown = shlex.quote(f"{key}=['first text', 'second text']")
        return f"{key}=… is no list or mapping that can be read: put each text inside into quotes, as in {shown}."
    mark = "'" if '"' in value else '"'
    # A backslash counts as itself unless it stands before a quotation mark or at the end.
    escaped = re.sub(rf"(\\*){mark}", rf"\1\1\\{mark}", value)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    shown = shlex.quote(f"{key}={mark}{escaped}{mark}")
    return (
        f"{key}=… cannot be read, since its value has a character that is syntax here: put it in quotes, and those in "
        f"the shell's, {shown}."
    )


def _unknown_key(key: str, command: str, overrides: Sequence[str]) -> str:
    """What to write in the place of a key that there is not."""
    parent, _, name = key.rpartition(".")
    parts = [each.rpartition(".") for each in known_keys(command, overrides)]
    meant = suggestion(name, [last for group, _, last in parts if group == parent], group=parent)
    added = f", and +{key}=VALUE gives a keyword that is not listed" if key.startswith(_OPEN) else ""
    return f"{key} is no key of this command{meant}: `align {command} --help` lists the keys{added}."


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
