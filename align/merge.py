"""`align merge`, and `align.merge(…)` from Python: several models, or LoRA adapters of one base, as one folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from rich.console import Console

from align.core.config import check_choice, typed
from align.core.errors import UserError
from align.core.instantiate import build
from align.export import DTYPES, new_folder
from align.merging.places import Place, find_place
from align.merging.rule import Rule
from align.runs.api import make_callable
from align.runs.command import hydra_entry
from align.runs.whole_folder import whole_folder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from align.merging.sources import Source

FORMS = ("auto", "model", "adapter")


@dataclass(frozen=True)
class MergeSettings:
    """Top-level keys; see hydra_conf/merge.yaml."""

    models: list[str]
    output: str
    base: str | None = None
    form: str = "auto"
    dtype: str = "stored"
    seed: int = 42
    trust_remote_code: bool = False
    allow_targets: list[str] = field(default_factory=list)


@hydra_entry("merge")
def main(config: DictConfig) -> None:
    """The command."""
    merge(config)


def merge(config: DictConfig) -> Path:
    """Checks everything, merges, and writes weights, tokenizer and card; the new folder."""
    settings, rule, places, base = check(config)
    output = new_folder(settings.output)
    # Nothing above imports torch, so that a slip is answered at once.
    from align.merging.sources import check_alike, open_source

    opened = partial(
        open_source, trust_remote_code=settings.trust_remote_code, allow_targets=settings.allow_targets
    )
    models = [opened(place) for place in places]
    start = None if base is None else opened(base)
    weights = _weights_of_adapters(settings, rule, models, start)
    alike = check_alike([*models, *([] if start is None else [start])])
    if weights is None and start is None:
        start = _own_base(rule, models)
    task = Task(settings, rule, models, start, *alike)
    _say_scale(task)
    with whole_folder(output) as staging:
        if weights is None:
            _merge_models(task, staging)
        else:
            _join_adapters(task, weights, staging)
    kind = "model" if weights is None else "adapter"
    Console().print(f"{kind} {output}", soft_wrap=True, highlight=False, markup=False)
    return output


def check(config: DictConfig) -> tuple[MergeSettings, Rule, list[Place], Place | None]:
    """Settings, rule, and what `models` and `base` name; refuses what names, numbers and counts tell to be wrong."""
    settings = typed(MergeSettings, config, "")
    rule: Rule = build(config, "combine")
    check_choice("dtype", settings.dtype, DTYPES)
    check_choice("form", settings.form, FORMS)
    if not settings.models:
        raise UserError("models=[] names none: give folders or Hub ids, 'models=[first,second]'.")
    places = [find_place(given, f"models[{i}]") for i, given in enumerate(settings.models)]
    base = None if settings.base is None else find_place(settings.base, "base")
    try:
        rule.fit(len(places), base=base is not None)
    except UserError:
        if base is not None or any(place.kind == "model" for place in places):
            raise
        rule.fit(len(places), base=True)  # adapters bring their base, and a run may be one
    return settings, rule, places, base


def _weights_of_adapters(
    settings: MergeSettings, rule: Rule, models: Sequence[Source], base: Source | None
) -> list[float] | None:
    """The weights with which adapters are joined into one; None where whole models are merged."""
    from align.core.telling import tell
    from align.merging.adapters import why_not

    weights, adapters = rule.linear(len(models)), all(model.is_adapter for model in models)
    if not adapters:
        reason: str | None = "not every one of `models` is an adapter"
    elif base is not None:
        reason = "base= asks for whole models, since adapters bring their own base"
    elif weights is None:
        reason = "this rule is no sum of differences with one weight for each adapter"
    else:
        reason = why_not(models)
    if reason is None:
        return None if settings.form == "model" else weights
    if settings.form == "adapter":
        raise UserError(f"form=adapter: {reason}: leave form out, and whole models are merged.")
    if adapters and settings.form == "auto":
        tell(f"Whole models are merged, not their adapters: {reason}.")
    return None


def _own_base(rule: Rule, models: Sequence[Source]) -> Source | None:
    """The base model of adapters that share one, for a rule that needs it."""
    from align.merging.sources import open_source

    try:
        rule.fit(len(models), base=False)
        return None
    except UserError:
        if not all(model.is_adapter and model.base == models[0].base for model in models):
            raise
    settings = models[0].base
    place = Place(settings.path, "base", "model", settings.path, settings.revision)
    return open_source(place, trust_remote_code=settings.trust_remote_code)


@dataclass(frozen=True)
class Task:
    """A merge whose models have been found to be of one kind.

    Attributes:
        settings: top-level keys.
        rule: of the group `combine`.
        models: what is merged.
        base: the base model, where there is one.
        config: of the merged model.
        tokenizer: of the merged model.
    """

    settings: MergeSettings
    rule: Rule
    models: Sequence[Source]
    base: Source | None
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase


def _say_scale(task: Task) -> None:
    """Says what a query scale of the merged model asks of whoever serves it."""
    from align.core.telling import tell
    from align.models.query_scale import serving_words

    words = serving_words(task.config)
    if words is not None:
        tell(words)


def _merge_models(task: Task, folder: Path) -> None:
    """Weights, configuration, tokenizer and card of a whole model."""
    from align.merging.folder import asked, write_rest
    from align.merging.models import Merge, write_merged
    from align.merging.weights import read_headers

    given = [*task.models, *([] if task.base is None else [task.base])]
    folders = [model.whole(folder.parent / f"merged-{i}") for i, model in enumerate(given)]
    weights = [read_headers(path, str(model)) for path, model in zip(folders, given, strict=True)]
    count = len(task.models)
    merge = Merge(
        models=weights[:count],
        base=weights[count] if task.base is not None else None,
        rule=task.rule,
        seed=task.settings.seed,
        dtype=task.settings.dtype,
    )
    write_merged(merge, folder, tied=_is_tied(task), console=Console(stderr=True))
    dtype = task.settings.dtype
    write_rest(task.models[0], folders[0], task.config, task.tokenizer, folder, dtype=dtype)
    _write_card(task, folder, {"dtype": dtype}, asked(folder.name, task.config, task.tokenizer))


def _join_adapters(task: Task, weights: Sequence[float], folder: Path) -> None:
    """The joined adapter with the tokenizer, and its card."""
    from align.merging.adapters import join
    from align.merging.folder import write_tokenizer

    rank = join(task.models, weights, folder, dtype=task.settings.dtype)
    write_tokenizer(task.models[0], task.tokenizer, folder)
    _write_card(task, folder, {"form": "adapter", "rank": rank}, None)


def _is_tied(task: Task) -> bool:
    from align.models.text_part import text_config

    return bool(task.config.tie_word_embeddings or text_config(task.config).tie_word_embeddings)


def _write_card(task: Task, folder: Path, facts: dict[str, Any], use: str | None) -> None:
    from align.merging.card import merge_card

    card = merge_card(
        [model.place for model in task.models],
        None if task.base is None else task.base.place,
        task.rule,
        name=folder.name,
        seed=task.settings.seed,
        facts=facts,
        use=use,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


make_callable(__name__)

if __name__ == "__main__":
    main()
