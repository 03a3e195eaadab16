"""A command's configuration composed from its overrides, outside Hydra's own way in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from align.core.errors import UserError
from align.runs.quoting import quoted


def compose_command(
    command: str, overrides: Iterable[str], *, config_dir: str | Path | None = None
) -> DictConfig:
    """The configuration that a command line with these overrides would have; raises as Hydra does.

    Args:
        command: `train`, `evaluate`, …
        overrides: Hydra's.
        config_dir: a folder of more configuration files.
    """
    with composing() as compose:
        return compose(command, overrides=[*overrides, *searched(config_dir)])


def known_keys(command: str, overrides: Iterable[str]) -> list[str]:
    """Every dotted key that a command has, groups taken as the overrides choose them."""
    groups = [word for word in overrides if word.partition("=")[0].replace("/", "_").isidentifier()]
    try:
        config = compose_command(command, groups)
    except Exception:  # an override of these is wrong too, and its turn comes later
        config = compose_command(command, [])
    plain: Any = OmegaConf.to_container(config, resolve=False)
    return list(_dotted(plain, ""))


def _dotted(node: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, value in node.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{name}.")


@contextmanager
def composing() -> Iterator[Callable[..., DictConfig]]:
    """Hydra's `compose` on `hydra_conf`, as if nobody had used Hydra: a notebook may have, for a program of its own."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("hydra_conf", version_base="1.3"):
            yield compose
    finally:
        GlobalHydra.instance().hydra = before


def searched(config_dir: str | Path | None) -> list[str]:
    """The override that has Hydra look into a folder too."""
    if config_dir is None:
        return []
    folder = Path(config_dir).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"config_dir={config_dir} is no folder.")
    return [f"hydra.searchpath=[{quoted(f'file://{folder}')}]"]
