"""Command lines with something wrong in them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any

from omegaconf import OmegaConf

BASES: dict[str, tuple[str, ...]] = {
    "train": ("data.path=ROWS", "model.path=MODEL"),
    "inspect": ("data.path=ROWS", "model.path=MODEL"),
    "synthesize": ("model.path=MODEL",),
    "evaluate": ("suite=retrieval", "model.path=MODEL"),
    "plan": ("model.path=MODEL",),
    "verify": ("model.path=MODEL",),
    "rounds": ("lengths=[100, 200]",),
    "report": ("path=FOLDER",),
    "export": ("path=FOLDER", "output=OUT/model"),
    "merge": ("models=[MODEL,MODEL]", "output=OUT/model"),
}
OFTEN = ("train", "train", "train", "train", "evaluate", "synthesize", "inspect")
VALUES = (
    *(
        "",
        "null",
        "true",
        "false",
        "0",
        "1",
        "-1",
        "-0.0",
        "2",
        "1.5",
        "1e400",
        "-1e9",
        "nan",
        "inf",
        "-inf",
        "9" * 400,
    ),
    *(
        "9223372036854775808",
        "abc",
        "'abc'",
        '"abc"',
        "'",
        '"',
        "\\",
        "''",
        "[]",
        "[1]",
        "[a,b]",
        "[[1]]",
        "[",
        "]",
        "[1,",
    ),
    *(
        "{}",
        "{a: 1}",
        "{a: {b: null}}",
        "{",
        "}",
        "{_target_: os.getcwd}",
        "a=b",
        "=",
        "==",
        "a#b",
        "#",
        "中文",
        "'中文'",
    ),
    *(
        "${seed}",
        "${nowhere}",
        "${oc.env:HOME}",
        "${oc.env:NOWHERE}",
        "${",
        "\\${seed}",
        "${oc.create:{a: 1}}",
        "???",
    ),
    *(
        "a b",
        "a,b",
        "a:b",
        "a;b",
        "~",
        "!x",
        "@x",
        "%",
        "*",
        "\t",
        "\n",
        "é",
        "😀",
        "\ud800",
        "/dev/null",
        "/",
        ".",
        "..",
    ),
    *(
        "range(1,3)",
        "choice(a,b)",
        "int(x)",
        "str(1)",
        "sort(1,2)",
        "glob(*)",
        "1_000",
        "0x10",
        "1e",
        "01",
        "on",
        "yes",
    ),
    *(
        "2024-01-01",
        "1:30",
        "<<",
        "&a",
        "*a",
        "|",
        ">",
        "- a",
        "[/b]",
        "{{x}}",
        "$HOME",
        "`id`",
        "$(id)",
        "a" * 3000,
    ),
    *(
        "auto",
        "none",
        "embedded",
        "bfloat16",
        "ulysses",
        "no/such/folder",
        "rows.jsonl",
        "file:///etc",
        "https://x.y/z",
    ),
)


# What a grammar takes and a command has to look at: by the kind of value that stands there.
EDGES: dict[type, tuple[str, ...]] = {
    int: (
        "0",
        "-1",
        "1",
        "2",
        "3",
        "7",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775809",
        "1.5",
    ),
    float: ("0", "0.0", "-1", "-1.5", "1", "2.5", "1e400", "-1e400", "nan", "1e-320", "99999999999999999999"),
    bool: ("true", "false", "null", "1", "yes", "maybe"),
    str: (
        "''",
        "abc",
        "auto",
        "none",
        "' '",
        "'\ud800'",
        "'a\nb'",
        "null",
        "7",
        "true",
        "FOLDER",
        "ROWS",
        "'[/b]'",
    ),
    list: (
        "[]",
        "[1]",
        "[-1]",
        "[a]",
        "[null]",
        "[[]]",
        "[{}]",
        "[1,a]",
        "[1e400]",
        "[true]",
        "[FOLDER]",
        "[ROWS]",
    ),
    dict: ("{}", "{a: 1}", "{_target_: os.getcwd}", "null", "[]"),
    type(None): (
        "0",
        "1",
        "-1",
        "0.5",
        "1e400",
        "abc",
        "''",
        "true",
        "[]",
        "[1]",
        "{}",
        "FOLDER",
        "ROWS",
        "auto",
    ),
}


WRITTEN = ("findings", "json")


@cache
def defaults(command: str) -> dict[str, Any]:
    """Every dotted key of a command with its value, but for those that name a file to write: it would be written."""
    from align.runs.composition import compose_command, known_keys

    config = compose_command(command, BASES[command])
    keys = [
        key
        for key in known_keys(command, BASES[command])
        if not key.startswith("hydra") and key not in WRITTEN
    ]
    plain: Any = OmegaConf.to_container(config, resolve=False)
    return {key: _inside(plain, key.split(".")) for key in keys}


def _inside(value: Any, path: list[str]) -> Any:
    for name in path:
        value = value[name]
    return value


def groups(command: str) -> tuple[str, ...]:
    """Groups whose choice may be replaced."""
    known = {"train": ("method", "positions", "model", "experiment", "parallel", "memory")}
    return known.get(
        command, {"evaluate": ("suite", "generator"), "synthesize": ("pipeline", "select")}.get(command, ())
    )


def command_line(random: Random) -> tuple[str, list[str]]:
    """A command and its words, one to three of them odd."""
    command = random.choice(OFTEN) if random.random() < 0.8 else random.choice(list(BASES))
    words = list(BASES[command])
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        words.append(_edge(random, command) if random.random() < 0.6 else _odd_word(random, command))
    return command, words


def _edge(random: Random, command: str) -> str:
    """A key with a value of about its own kind, at the edge of what can be meant."""
    key, value = random.choice(list(defaults(command).items()))
    return f"++{key}={random.choice(EDGES[type(value)])}"


def _odd_word(random: Random, command: str) -> str:
    key = random.choice(list(defaults(command)))
    value = random.choice(VALUES)
    kind = random.randrange(12)
    if kind == 0:
        key = _misspelt(random, key)
    elif kind == 1:
        return random.choice(
            (f"~{key}", f"+{key}={value}", f"++{key}={value}", key, f"{key}={value}={value}", value)
        )
    elif kind == 2 and groups(command):
        return f"{random.choice(groups(command))}={value}"
    elif kind == 3:
        key = f"{key}.{random.choice(('x', '', 'y.z', '_target_', '0'))}"
    elif kind == 4:
        return f"{key}=[{value},{random.choice(VALUES)}]"
    elif kind == 5:
        return f"{key}={{a: {value}}}"
    return f"{key}={value}"


def _misspelt(random: Random, key: str) -> str:
    at = random.randrange(len(key))
    return random.choice(
        (key[:at] + key[at + 1 :], key[:at] + "é" + key[at:], key.upper(), key + "s", f"{key}.", f".{key}")
    )


def filled(words: Sequence[str], places: dict[str, str]) -> list[str]:
    """The words with paths in place of `ROWS`, `MODEL`, `FOLDER`, `OUT`."""
    for name, path in places.items():
        words = [word.replace(name, path) for word in words]
    return list(words)
