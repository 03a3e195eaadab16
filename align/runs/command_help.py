"""What `align COMMAND --help` lists beside the command's keys: the files that each of its groups may take."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf


def register() -> None:
    """Makes `${align_groups:}` known to Hydra's help, hydra_conf/hydra/help/align.yaml."""
    OmegaConf.register_new_resolver("align_groups", list_groups, replace=True)


def list_groups(_root_: Any = None) -> str:
    """A line a group that the composed configuration chooses from: `memory: auto, default`.

    Folders of `--config-dir` take part; Hydra's own groups, and groups of other commands, do not.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.object_type import ObjectType

    assert isinstance(_root_, DictConfig)
    loader = GlobalHydra.instance().config_loader()
    lines = []
    for choice in sorted(map(str, _root_.hydra.runtime.choices)):
        group = choice.partition("@")[0]
        if not group.startswith("hydra/"):
            lines.append(f"{choice}: {', '.join(loader.get_group_options(group, ObjectType.CONFIG))}")
    return "\n".join(lines)
