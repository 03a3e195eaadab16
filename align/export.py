"""`align export`, and `align.export(…)` from Python: a run's policy as an ordinary model folder, with a card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from rich.console import Console

from align.core.config import check_choice, typed
from align.core.errors import UserError
from align.core.telling import tell
from align.patterns.exported import ACCEPTED, check_exported
from align.runs.api import make_callable
from align.runs.command import hydra_entry
from align.runs.folder import CONFIG_NAME, find_policy

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DTYPES = ("stored", "float32", "bfloat16")
QUERY_SCALE = "query_scale"
ACCEPT = (ACCEPTED, QUERY_SCALE)  # of `accept`: what another engine has to be told of


@dataclass(frozen=True)
class ExportSettings:
    """Top-level keys; see hydra_conf/export.yaml."""

    path: str
    output: str
    dtype: str = "stored"
    accept: list[str] = field(default_factory=list)
    trust_remote_code: bool = False
    allow_targets: list[str] = field(default_factory=list)


@hydra_entry("export")
def main(config: DictConfig) -> None:
    """The command."""
    export(config)


def export(config: DictConfig) -> Path:
    """Reads the run, merges, and writes model, tokenizer and card; the new folder."""
    settings = typed(ExportSettings, config, "")
    check_choice("dtype", settings.dtype, DTYPES)
    for accepted in settings.accept:
        check_choice("accept", accepted, ACCEPT)
    output = new_folder(settings.output)
    if not Path(settings.path).is_dir():
        raise UserError(
            f"path={settings.path} is no folder: name a run of `align train`, or a checkpoint of one."
        )
    find_policy(Path(settings.path))
    # Nothing above imports torch, so that a slip is answered at once.
    from align.models.text_part import text_config
    from align.training import trained_policy

    policy = trained_policy.read_policy(
        Path(settings.path),
        trust_remote_code=settings.trust_remote_code,
        allow_targets=settings.allow_targets,
    )
    check_card(policy.config, settings.path)
    merged_config = trained_policy.merged_config(policy)
    check_exported(text_config(merged_config), settings.accept)
    check_scale(merged_config, settings)
    tokenizer = trained_policy.load_policy_tokenizer(policy)
    merged = trained_policy.merged_model(policy, settings.dtype)
    trained_policy.write(merged, tokenizer, policy, output)
    Console().print(f"model {output}", soft_wrap=True, highlight=False, markup=False)
    return output


def check_card(config: Mapping[str, Any], path: str) -> None:
    """Refuses a configuration without what a model card states, before weights are read."""
    groups: dict[str, Any] = {name: config.get(name) for name in ("method", "data", "trainer")}
    lacking = [name for name, group in groups.items() if not isinstance(group, Mapping)]
    if not lacking and "name" not in groups["method"]:
        lacking = ["method.name"]
    if lacking:
        raise UserError(
            f"path={path}: its {CONFIG_NAME} has no {' and no '.join(lacking)}, which the model card states: "
            "restore it."
        )


def check_scale(config: PreTrainedConfig, settings: ExportSettings) -> None:
    """Says what a query scale asks of an engine; refuses to export one unless `accept` names it."""
    from align.models.query_scale import serving_words

    words = serving_words(config)
    if words is None:
        return
    if QUERY_SCALE not in settings.accept:
        raise UserError(
            f"path={settings.path}: {words} Set accept=[{QUERY_SCALE}] to export it all the same."
        )
    tell(words)


def new_folder(path: str) -> Path:
    """`path`, if nothing is there that an export could mix with."""
    output = Path(path)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"output={path} is there and not empty: name a new folder.")
    return output


make_callable(__name__)

if __name__ == "__main__":
    main()
