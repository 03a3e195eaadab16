"""The model card of a merge: what was merged, with which weights, by which rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from align.merging.places import Place
from align.merging.rule import Rule
from align.training import card_words
from align.training.model_card import public_name, version


def merge_card(
    places: Sequence[Place],
    base: Place | None,
    rule: Rule,
    *,
    name: str,
    seed: int,
    facts: Mapping[str, Any],
    use: str | None,
) -> str:
    """The card as Markdown with its YAML header.

    Args:
        places: what was merged, in order.
        base: the base model, where there is one.
        rule: what they were merged by.
        name: the folder's, for the title.
        seed: the command's.
        facts: of the result: its type, its rank.
        use: Python that asks the model; None for an adapter.
    """
    weights = rule.linear(len(places))
    rows = [(_name(place), "" if weights is None else f"{weights[i]:g}") for i, place in enumerate(places)]
    if base is not None:
        rows.append((f"base: {_name(base)}", ""))
    keys: Any = dataclasses.fields(rule)  # type: ignore[arg-type]
    settings = {"rule": type(rule).__name__, **{key.name: getattr(rule, key.name) for key in keys}}
    settings |= {"seed": seed, **facts}
    sections = [
        _header(places, base, adapter=use is None),
        f"# {name}\n",
        _first_words(rule, adapter=use is None),
        "" if use is None else f"## Use\n\n```python\n{use}\n```\n",
        _table("Merged", rows, ("model", "weight")),
        _table("Settings", [(key, value) for key, value in settings.items() if value is not None], ("", "")),
    ]
    return "\n".join(section for section in sections if section)


def _first_words(rule: Rule, *, adapter: bool) -> str:
    """What it is, by which rule, and where that is from."""
    source = getattr(type(rule), "source", None)
    what = "LoRA adapters joined into one" if adapter else "A model merged from the weights of others"
    named = "" if source is None else f" ({source})"
    return f"{what} by the rule {type(rule).__name__}{named} of long-preference {version()}; nothing was trained.\n"


def use_example(name: str, *, chat: bool, loader: str, parts: bool) -> str:
    """How the merged model is asked; arguments as in `card_words.use`."""
    return card_words.use(
        name,
        template="{context}\n\n{question}",
        chat=chat,
        template_kwargs={},
        loader=loader,
        parts=parts,
    )


def _header(places: Sequence[Place], base: Place | None, *, adapter: bool) -> str:
    named = [place for place in (*places, *([] if base is None else [base])) if _is_public(place)]
    header: dict[str, Any] = {"library_name": "peft" if adapter else "transformers"}
    header["pipeline_tag"] = "text-generation"
    if named:
        header["base_model"] = list(dict.fromkeys(public_name(place.path) for place in named))
        header["base_model_relation"] = "merge"
    header["tags"] = ["long-preference", "merge"]
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n"


def _is_public(place: Place) -> bool:
    return place.kind == "model" and "/" in public_name(place.path)


def _name(place: Place) -> str:
    """A Hub id with its revision; of a folder the last part."""
    shown = public_name(place.path)
    return f"{shown}@{place.revision}" if place.revision else shown


def _table(title: str, rows: Sequence[tuple[Any, Any]], heads: tuple[str, str]) -> str:
    lines = [f"| {_cell(key)} | {_cell(value)} |" for key, value in rows]
    return "\n".join([f"## {title}\n", f"| {heads[0]} | {heads[1]} |", "|---|---|", *lines, ""])


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
