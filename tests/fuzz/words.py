"""Command lines with something wrong in them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from random import Random

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


@cache
def leaves(command: str) -> tuple[str, ...]:
    """Every dotted key of a command."""
    from align.runs.composition import known_keys

    keys = [key for key in known_keys(command, BASES[command]) if not key.startswith("hydra")]
    return tuple(keys)


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
    for _ in range(random.randint(1, 3)):
        words.append(_odd_word(random, command))
    return command, words


def _odd_word(random: Random, command: str) -> str:
    key = random.choice(leaves(command))
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
