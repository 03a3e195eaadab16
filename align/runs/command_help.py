"""`align COMMAND --help`: a command's groups with what each may be, its keys and their values.

Hydra's own help lists the groups of all commands, and takes as long again for that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from align.runs.composition import composing, searched

_HELP = ("--help", "-h")
_FOLDER = ("--config-dir", "-cd")
FOOTER = """
GROUP=NAME takes another file of a group, KEY=VALUE sets a key: method=dpo trainer.learning_rate=1e-6. What keys mean
stands in hydra_conf/{command}.yaml and the groups' files. --cfg job prints what overrides make of them, -m runs every
combination of KEY=1,2, --hydra-help has all flags."""


def is_asked(words: Sequence[str]) -> bool:
    """Whether a command line asks for help and has no flag but a folder of configurations; others are Hydra's."""
    flags = {word.partition("=")[0] for word in words if word.startswith("-")}
    return bool(flags & set(_HELP)) and flags <= {*_HELP, *_FOLDER}


def show(command: str, words: Sequence[str]) -> None:
    """Prints the help of a command line with these words; raises as Hydra does for overrides that do not compose."""
    overrides, folder = _split(words)
    own = searched(folder)
    with composing() as compose:
        config = compose(command, overrides=[*overrides, *own], return_hydra_config=True)
        groups = list(_groups(config, command, own))
    with open_dict(config):
        del config.hydra
    print(f"align {command}: its groups with what each may be, then its keys and their values\n")
    if groups:
        print("\n".join(groups) + "\n")
    print(OmegaConf.to_yaml(config), FOOTER.format(command=command), sep="")


def _groups(config: DictConfig, command: str, own: list[str]) -> Iterator[str]:
    """A line a group that the configuration chooses from: `memory: auto, default`; Hydra's own are left out.

    Args:
        config: with its part `hydra`.
        command: its name.
        own: the override that names a folder of the user's, whose files are listed too.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.object_type import ObjectType

    loader = GlobalHydra.instance().config_loader()
    for choice in sorted(map(str, config.hydra.runtime.choices)):
        group = choice.partition("@")[0]
        if not group.startswith("hydra/"):
            names = loader.get_group_options(group, ObjectType.CONFIG, config_name=command, overrides=own)
            yield f"{choice}: {', '.join(names)}"


def _split(words: Sequence[str]) -> tuple[list[str], str | None]:
    """The overrides, and the folder of `--config-dir`."""
    overrides: list[str] = []
    folder: str | None = None
    rest: Any = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in _FOLDER:
            folder = value if equals else next(rest, None)
        elif word not in _HELP:
            overrides.append(word)
    return overrides, folder
