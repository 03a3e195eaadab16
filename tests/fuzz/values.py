"""Rows of every layout, and what can be wrong with a value, a row or a column."""

from __future__ import annotations

import copy
from collections.abc import Callable
from random import Random
from typing import Any

Row = dict[str, Any]


def _turns(*texts: str) -> list[Row]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def _ids(length: int) -> list[int]:
    return [8 + i % 100 for i in range(length)]


ROWS: tuple[Row, ...] = (
    {"prompt": "w8 w9", "chosen": "w10 w11", "rejected": "w12"},
    {"prompt": _turns("w8"), "chosen": _turns("w8", "w9")[1:], "rejected": _turns("w8", "w10")[1:]},
    {"chosen": _turns("w8", "w9"), "rejected": _turns("w8", "w10")},
    {
        "context": ["w8 w9", "w10"],
        "question": "w11",
        "chosen": "w12",
        "rejected": ["w13", "w14"],
        "short_prompt": "w8",
    },
    {
        "context": "w8 w9",
        "questions": ["w10", "w11"],
        "chosens": ["w12", "w13"],
        "rejecteds": [["w14"], ["w15"]],
    },
    {
        "conversations": [{"from": "human", "value": "w8"}],
        "chosen": {"from": "gpt", "value": "w9"},
        "rejected": "w10",
    },
    {"prompt": "w8", "completion": "w9", "label": True},
    {"messages": [{"role": "system", "content": "w8"}, *_turns("w9", "w10", "w11", "w12")]},
    {"context": "w8 w9 w10", "query": "w11", "win_response": "w12", "lose_response": "w13"},
    {"instruction": "w8 w9", "input": "", "output": "w10"},
    {"prompt": _turns("w8"), "completion": _turns("w8", "w9")[1:], "label": False, "tools": []},
    {
        **{f"{name}_input_ids": _ids(9) for name in ("chosen", "rejected")},
        **{f"{name}_labels": [-100] * 5 + _ids(4) for name in ("chosen", "rejected")},
        **{f"{name}_attention_mask": [1] * 9 for name in ("chosen", "rejected")},
    },
    {"text": "w8 w9 w10", "id": "one"},
    {"prompt": "w8 w9", "answers": ["w10"]},
)

TEXTS = (
    *(
        "",
        " ",
        "\n\n",
        "\ud800",
        "w8\udfff w9",
        "\x00",
        "﻿w8",
        "<think>w8",
        "</think>",
        "<|im_end|>",
        "a" * 5000,
    ),
    *(
        "w8 " * 400,
        "一千五百字",
        "null",
        "[]",
        "{}",
        '[{"role": "user"}]',
        "\u202ew8",
        "{{ raise_exception('x') }}",
    ),
    *("{% for %}", "${oc.env:HOME}", "%s %n", "[/b] [bold]w8", "'; --", "e\u0301", "😀" * 20, "\r\n", "w8\r"),
)
NUMBERS = (0, 1, -1, -100, 200, 2**31, 2**63, -(2**63), 2**64, 10**400, 0.5, -0.0, 1e308, True, False)


def odd(random: Random) -> Any:
    """A value of any kind."""
    kind = random.randrange(9)
    if kind == 0:
        return None
    if kind == 1:
        return random.choice(NUMBERS)
    if kind == 2:
        return random.choice((float("nan"), float("inf"), float("-inf")))
    if kind in (3, 4):
        return random.choice(TEXTS)
    if kind == 5:
        return [odd(random) for _ in range(random.randrange(4))]
    if kind == 6:
        return {
            random.choice(("role", "content", "value", "from", "", "type", "text")): odd(random)
            for _ in range(3)
        }
    if kind == 7:
        return _nested(random.choice((3, 30, 120)), random.choice(("list", "dict")))
    return [{"type": random.choice(("text", "image", 1, None)), "text": odd(random)}]


def _nested(depth: int, kind: str) -> Any:
    value: Any = "w8"
    for _ in range(depth):
        value = [value] if kind == "list" else {"content": value}
    return value


def damaged(random: Random, row: Row) -> Row:
    """A copy of a row with one to three things wrong."""
    row = copy.deepcopy(row)
    for _ in range(random.randint(1, 3)):
        row = random.choice(_DAMAGES)(random, row)
    return row


def _in_its_place(random: Random, row: Row) -> Row:
    """Replaces a value somewhere inside."""
    places = list(_places(row))
    if places:
        holder, key = random.choice(places)
        holder[key] = odd(random)
    return row


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (list or mapping, place in it) at any depth."""
    if isinstance(value, dict):
        keys: Any = list(value)
    elif isinstance(value, list):
        keys = range(len(value))
    else:
        return []
    return [place for key in keys for place in ((value, key), *_places(value[key]))][:200]


def _without(random: Random, row: Row) -> Row:
    gone = random.choice(list(row) or [""])
    return {key: value for key, value in row.items() if key != gone}


def _renamed(random: Random, row: Row) -> Row:
    names = [key for other in ROWS for key in other] + [
        "",
        " ",
        "Prompt",
        "prompt ",
        "\ud800",
        "a" * 300,
        "ids",
    ]
    old = random.choice(list(row) or [""])
    return {(random.choice(names) if key == old else key): value for key, value in row.items()}


def _more(random: Random, row: Row) -> Row:
    """Columns of another layout beside its own."""
    return (
        row
        | copy.deepcopy(random.choice(ROWS))
        | {random.choice(("margin", "system", "tools", "x")): odd(random)}
    )


def _longer(random: Random, row: Row) -> Row:
    places = [
        (holder, key) for holder, key in _places(row) if isinstance(holder[key], list | str) and holder[key]
    ]
    if places:
        holder, key = random.choice(places)
        holder[key] = holder[key] * random.choice((0, 2, 50))
    return row


_DAMAGES: tuple[Callable[[Random, Row], Row], ...] = (
    *(_in_its_place,) * 6,
    _without,
    _renamed,
    _more,
    _longer,
)


def some_rows(random: Random) -> list[Any]:
    """A few rows of one layout, some of them damaged, now and then something that is no row."""
    good = random.choice(ROWS)
    rows: list[Any] = [copy.deepcopy(good) for _ in range(random.randint(0, 3))]
    for _ in range(random.randint(1, 3)):
        rows.insert(random.randint(0, len(rows)), damaged(random, good))
    if random.random() < 0.1:
        rows.append(odd(random))
    if random.random() < 0.1:
        rows.append(copy.deepcopy(random.choice(ROWS)))
    return rows
