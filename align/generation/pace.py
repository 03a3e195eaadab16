"""Keys of a generator that change no answer: how fast a server is asked, where it stands, where calls are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

NODE = "generator"  # what a generator's node is called, wherever it stands: `generator`, `pipeline.quality.generator`
PACE = (
    "base_url",
    "api_key_env",
    "cache",
    "concurrency",
    "timeout",
    "slowest",
    "retries",
    "backoff",
    "patience",
    "requests_per_minute",
    "tokens_per_minute",
)


def changes_no_answer(config: DictConfig | Mapping[str, Any]) -> set[str]:
    """Dotted keys, of every generator in a configuration, that may differ between two starts of one run.

    A key is named whether it is set or not: `{"judge": {"generator": {}}}` gives `judge.generator.timeout` and so on.
    """
    values = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    return {f"{node}.{key}" for node in _generators(values) for key in PACE}


def _generators(values: Any, prefix: str = "") -> Iterator[str]:
    if not isinstance(values, Mapping):
        return
    for name, value in values.items():
        if name == NODE:
            yield f"{prefix}{name}"
        else:
            yield from _generators(value, f"{prefix}{name}.")
