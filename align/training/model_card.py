"""A model card from a run's configuration and results: method, data, settings and metrics, and nothing private.

Only the keys named here leave the run folder, local paths by their last part alone, and no key whose name says
that it holds a secret.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from align.models.settings import EMBEDDED
from align.training import card_words
from align.training.metric_names import COST_ROWS, ROWS, shown

_EMBEDDED_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_SECRET = re.compile(r"token$|secret|password|passwd|credential|api_?key|auth", re.IGNORECASE)
# Group → the keys of it that a card states; None: all of them.
_STATED: dict[str, tuple[str, ...] | None] = {
    "model": ("revision", "dtype", "kernels", "quantization", "lora", "rope", "query_scale"),
    "attention": None,
    "positions": None,
    "reference": ("source", "model", "rope", "query_scale"),
    "parallel": ("kind", "degree"),
    "trainer": (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "max_steps",
        "num_train_epochs",
        "optim",
        "adam_beta1",
        "adam_beta2",
        "weight_decay",
        "max_grad_norm",
        "bf16",
        "fp16",
    ),
}
_DATA = ("limit", "eval_size", "max_length", "cut", "keep_tail", "tokens_per_row", "chat")
_PATHS = {"model", "path", "eval_path"}
_FILES = {".jsonl", ".json", ".parquet", ".gz", ".csv", ".txt", ".arrow", ".zip"}


def model_card(
    config: Mapping[str, Any],
    results: Mapping[str, Any],
    *,
    name: str,
    chat: bool = True,
    loader: str = "AutoModelForCausalLM",
    parts: bool = False,
    local: Collection[str] = (),
    serving: str | None = None,
) -> str:
    """The card as Markdown with its YAML header.

    Args:
        config: the run's resolved configuration.
        results: `before`, `after`, `training` and `data` of results.json; empty where the run has not ended.
        name: the model's, for the title.
        chat: whether its tokenizer has a chat template.
        loader: the library's door to it.
        parts: whether its chat template takes a content as a list of parts alone.
        local: values of the configuration that were files or folders where the run was started: from elsewhere
            `folder/model` cannot be told from a Hub id.
        serving: what whoever serves it has to compute beside what its architecture says; None is nothing.
    """
    config = _without_folders(config, local)
    method = config["method"]["name"]
    base = public_name(config["model"]["path"])
    sections = [
        _header(config, method),
        f"# {name}\n",
        f"{base}, trained with the method `{method}` of long-preference {version()}.\n",
        card_words.change(results),
        serving and f"{serving}\n",
        _use(name, config["data"], chat=chat, loader=loader, parts=parts),
        _metrics(results),
        _section("Method", _leaves(config["method"])),
        _section("Data", _data_facts(config["data"], results.get("data", {}))),
        _section("Settings", _setting_facts(config)),
    ]
    return "\n".join(section for section in sections if section)


def public_name(path: str) -> str:
    """A Hub id as it is; of a local path the last part, since folders tell about their owner."""
    if path == EMBEDDED:
        return _EMBEDDED_ID
    return path if _is_hub_id(path) else _last_part(path)


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _without_folders(value: Any, local: Collection[str]) -> Any:
    """The configuration with the last part alone of every text that is among `local`."""
    if isinstance(value, Mapping):
        return {key: _without_folders(entry, local) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_folders(entry, local) for entry in value]
    return _last_part(value) if isinstance(value, str) and value in local else value


def _is_hub_id(path: str) -> bool:
    is_file = Path(path).exists() or Path(path).suffix in _FILES
    return not is_file and bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+", path))


def _header(config: Mapping[str, Any], method: str) -> str:
    path = config["model"]["path"]
    header: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if path == EMBEDDED or _is_hub_id(path):
        header["base_model"] = public_name(path)
    header["tags"] = ["long-preference", "preference-optimization", "long-context", method]
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n"


def version() -> str:
    """This package's version, for cards."""
    try:
        return importlib.metadata.version("long-preference")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return "(development version)"


def _data_facts(data: Mapping[str, Any], counts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in ("path", "eval_path"):
        if data.get(key) is not None:
            yield key, public_name(data[key])
    yield from ((key, data[key]) for key in _DATA if data.get(key) is not None)
    yield from _leaves(counts)


def _setting_facts(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for group, keys in _STATED.items():
        node = config.get(group, {})
        chosen = node if keys is None else {key: node[key] for key in keys if key in node}
        yield from ((f"{group}.{key}", value) for key, value in _leaves(_in_effect(group, chosen)))
    if "seed" in config:
        yield "seed", config["seed"]


def _in_effect(group: str, node: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without keys that their group's main key turns off."""
    # A run of version 0.2.0 has `mode` in the place of `_target_`.
    if group == "positions" and "_target_" not in node and node.get("mode", "none") == "none":
        return {}
    if group == "model" and not node.get("lora", {}).get("r"):
        return {key: value for key, value in node.items() if key != "lora"}
    return node


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of what is set and may be seen."""
    for key, value in node.items():
        if _SECRET.search(str(key)) or value is None or key == "_partial_":
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _public(key, value)


def _public(key: str, value: Any) -> Any:
    """What of a value may be seen: whatever its key, text with a slash in it may be a path."""
    if isinstance(value, list):
        return [_public(key, entry) for entry in value]
    is_path = isinstance(value, str) and (key in _PATHS or "/" in value or "\\" in value)
    return public_name(value) if is_path else value


def _use(name: str, data: Mapping[str, Any], *, chat: bool, loader: str, parts: bool) -> str:
    """How the model is asked."""
    given = data.get("template_kwargs") or {}
    code = card_words.use(
        name,
        template=data.get("template") or "{context}\n\n{question}",
        chat=chat and data.get("chat") != "never",
        loader=loader,
        parts=parts,
        template_kwargs={key: value for key, value in given.items() if not _SECRET.search(str(key))},
        system=data.get("system"),
    )
    return f"## Use\n\n```python\n{code}\n```\n"


def _section(title: str, facts: Iterator[tuple[str, Any]]) -> str:
    rows = [f"| {_cell(key)} | {_cell(value)} |" for key, value in facts]
    return "\n".join([f"## {title}\n", "| | |", "|---|---|", *rows, ""])


def _metrics(results: Mapping[str, Any]) -> str:
    """Held-out metrics before and after, and what the run cost; empty where there are none."""
    before, after = results.get("before", {}), results.get("after", {})
    rows = [
        f"| {label} | {shown(before[key], form)} | {shown(after[key], form)} |"
        for key, (label, form) in ROWS.items()
        if key in before and key in after
    ]
    costs = results.get("training", {})
    cost_rows = [
        f"| {label} | {form.format(costs[key])} |" for key, (label, form) in COST_ROWS.items() if key in costs
    ]
    parts = []
    if rows:
        parts += ["## Metrics on held-out rows\n", "| | before | after |", "|---|---|---|", *rows, ""]
    if cost_rows:
        parts += ["## Training\n", "| | |", "|---|---|", *cost_rows, ""]
    return "\n".join(parts)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
