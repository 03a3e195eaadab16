"""One sentence for an error that the user can put right, whoever raised it: the one boundary of every command.

A `UserError` says it itself. What libraries and the system raise is known here by its kind: words that Hydra cannot
read, places that may not be written, packages that are not there, memory that ran out. All else is a defect of ours.
"""

from __future__ import annotations

import errno
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from align.core.config import reference_sentence, suggestion
from align.core.errors import UserError, shortage
from align.runs.composition import compose_command, known_keys
from align.runs.quoting import quoted

# Groups that take keywords beside those that are listed.
_OPEN = ("trainer.", "method.loss.")
# Keys that there were → what to write instead.
_GONE = {"positions.mode": "write positions=NAME, as positions=logo_sparse; each has keys of its own"}
_KEY = re.compile(r"[+~]*[A-Za-z_][\w./@-]*")
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
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    group_word = dotted_group(overrides)
    if group_word is not None:
        return group_word
    seen: BaseException | None = error
    while seen is not None:  # libraries that call ours wrap what we raise
        if isinstance(seen, UserError):
            return re.sub(r"\s*[\r\n]+\s*", " ", str(seen)).strip()  # what it quotes may have lines
        seen = seen.__cause__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={name} is not known: use {', '.join(error.options)}."
    if isinstance(error, OSError) and shortage(error) is not None:
        return f"{error.filename or 'a file'} could not be written: {shortage(error)}; make room and run it again."
    fault = machine_fault(error)
    if fault is not None:
        return fault
    ours = isinstance(error, HydraException | OmegaConfBaseException)
    word = misread_word(error, overrides) if ours else None
    if word is not None:
        return word
    reference = reference_sentence(error)
    if reference is not None:
        return reference
    merging = re.match(r"Error merging override (\S+?)=(.*)", str(error), flags=re.DOTALL)
    if merging:
        return _misfit(merging[1], merging[2], command)
    override = re.match(r"Could not override '([^']+)'", str(error))
    if override:
        return _unknown_key(override[1], command, overrides)
    return _one_line(error) if ours else None


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


def misread_word(error: BaseException, overrides: Sequence[str]) -> str | None:
    """What is wrong with the first word that Hydra's grammar, or a group, cannot take; None where none is.

    Args:
        error: what the composition ended with.
        overrides: all words, flags of the command line included.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for word in overrides:
        try:
            parsed = parser.parse_override(word)
        except (HydraException, RecursionError):
            if "=" in word or f"'{word}'" in str(error):
                return _unreadable(word)
            continue  # a flag, or the value of one
        if parsed.is_sweep_override() and "Ambiguous" in str(error):
            return _several(word)
        if not parsed.key_or_group:
            return _unreadable(word)
        choices = _choices(parsed.key_or_group)
        value = None if parsed.is_delete() or parsed.is_sweep_override() else parsed.value()
        texts = value if isinstance(value, list) else [value]
        if choices and not all(text is None or isinstance(text, str) for text in texts):
            return f"{_short(word)} is not known: the group {parsed.key_or_group} takes {', '.join(choices)}."
    return None


def dotted_group(overrides: Sequence[str]) -> str | None:
    """What to write for the first word that sets a group as if it were a key, data.order=grow; None where none does."""
    for word in overrides:
        key, _, value = word.lstrip("+").partition("=")
        group = key.replace(".", "/")
        choices = _choices(group) if "." in key and value != "null" and value.isidentifier() else []
        if choices:
            return (
                f"{_short(word)}: {group} is a group, chosen with a slash: {group}=NAME, one of {', '.join(choices)}; "
                f"its keys are set as {key}.KEY=VALUE."
            )
    return None


def _unreadable(word: str) -> str:
    """A word that is not of Hydra's grammar, and how the same value is written in it."""
    key, equals, value = word.partition("=")
    if not equals or not _KEY.fullmatch(key):
        return f"{_short(word)} is no setting: write KEY=VALUE, as data.path=rows.jsonl."
    inside = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
    return (
        f"{_short(word)} cannot be read, since its value has characters that mean something to Hydra: give the value "
        f"quotes of its own, and the shell others around the word: {_quoted(key, inside)}."
    )


def _several(word: str) -> str:
    key, _, value = word.partition("=")
    return (
        f"{_short(word)} has several values: write {_short(f'{key}=[{value}]')} for a list, {_quoted(key, value)} for "
        "one text, or add -m to run each."
    )


def _quoted(key: str, value: str) -> str:
    """A word as a shell passes it on to Hydra, which then takes the value as it is."""
    special = re.search(r'["$`!\\]', value)
    if "'" not in value:
        word = f"'{key}={quoted(value, mark=chr(34))}'" if special else f'"{key}={quoted(value)}"'
    elif not special:
        word = f'{key}="\\"{value}\\""'
    else:
        word = shlex.quote(f"{key}={quoted(value)}")
    return _short(word)


def _short(word: str) -> str:
    """A word to show: one line, and not thousands of characters."""
    line = " ".join(word.split())
    return line if len(line) <= 200 else f"{line[:120]} … {line[-20:]}"


def _choices(group: str) -> list[str]:
    """The files of a configuration group; empty for what is none."""
    import hydra_conf

    folder = Path(str(hydra_conf.__file__)).parent / group
    inside = (
        group and "\0" not in group and len(group) < 200 and ".." not in group and not group.startswith("/")
    )
    return sorted(path.stem for path in folder.glob("*.yaml")) if inside and folder.is_dir() else []


def early_sentence(error: BaseException, *, overrides: Sequence[str]) -> str | None:
    """The same for what ends a command before its own work begins: an output folder, a word that Hydra misreads."""
    if isinstance(error, OSError) and error.filename is not None:
        reason = _PLACES.get(error.errno or 0, error.strerror)
        return f"output: {error.filename} cannot be made ({reason}): name another folder, output=…."
    if "full_key: hydra.run.dir" in str(error):  # which follows `output`
        return "output has the wrong type: it takes a folder's name, as in output=outputs/NAME."
    inside = re.match(
        r"Index '(.*)' \(str\) is not an int|invalid literal for int\(\) .*: '(.*)'$", str(error)
    )
    if inside:
        entry = inside[1] or inside[2]
        return (
            f"{entry!r} is no entry of a list: a list is set whole, as in KEY=[a,b], or by places, KEY.0=a."
        )
    if isinstance(error, ValueError | TypeError):
        return misread_word(error, overrides) or (_one_line(error) if isinstance(error, ValueError) else None)
    return None


def _unknown_key(key: str, command: str, overrides: Sequence[str]) -> str:
    """What to write in the place of a key that there is not."""
    if key in _GONE:
        return f"{key} is no key any more: {_GONE[key]}."
    parent, _, name = key.rpartition(".")
    parts = [each.rpartition(".") for each in known_keys(command, overrides)]
    meant = suggestion(name, [last for group, _, last in parts if group == parent], group=parent)
    added = f", and +{key}=VALUE gives a keyword that is not listed" if key.startswith(_OPEN) else ""
    return f"{key} is no key of this command{meant}: `align {command} --help` lists the keys{added}."


def _misfit(key: str, value: str, command: str) -> str:
    """What a key takes whose value is of another form: one mapping in the place of a list of them, say."""
    name = key.lstrip("+~")
    there: Any = OmegaConf.select(compose_command(command, []), name)
    if OmegaConf.is_list(there):
        listed = shlex.quote(f"{key}=[{value}]")
        return f"{_short(f'{key}={value}')}: {name} takes a list, as in {_short(listed)}."
    if OmegaConf.is_dict(there):
        keys = ", ".join(map(str, there))
        return f"{_short(f'{key}={value}')}: {name} takes a mapping with the keys {keys}, each set as {name}.KEY=VALUE."
    return (
        f"{_short(f'{key}={value}')} does not fit its key: `align {command} --help` shows what stands there."
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
