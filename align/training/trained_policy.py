"""What a training run has left: its policy as it was trained, merged, and written as an ordinary model folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from yaml import YAMLError

from align.adapters.soft_prompt import check_mergeable
from align.core.bars import weight_bars_off
from align.core.config import typed
from align.core.errors import UserError
from align.data.rendering import as_parts, content_form
from align.models.loading import auto_class, load_causal_lm, load_config, loading_problem, model_tokenizer
from align.models.processor_files import copy_processor
from align.models.query_scale import serving_words
from align.models.reading import typed_model
from align.models.settings import ModelSettings, RopeSettings
from align.models.text_part import text_config
from align.patterns.exported import engine_words, to_native
from align.patterns.layers import patterns_of_run
from align.runs.exclusive import exclusive
from align.runs.folder import ADAPTER, CONFIG_NAME, find_policy, local_paths
from align.training.model_card import model_card


@dataclass(frozen=True)
class TrainedPolicy:
    """What a run left behind.

    Attributes:
        weights: folder of the trained weights or of the adapter.
        config: the run's whole configuration.
        model: its group `model`, but for `trust_remote_code`, which whoever reads the run decides on.
        results: content of results.json; empty for a checkpoint of a run that goes on.
        local: values of `config` that are files or folders; see `folder.local_paths`.
    """

    weights: Path
    config: Mapping[str, Any]
    model: ModelSettings
    results: Mapping[str, Any]
    local: Collection[str] = ()

    @property
    def has_adapter(self) -> bool:
        """Whether `weights` holds an adapter and not the whole model."""
        return (self.weights / ADAPTER).is_file()


def read_policy(
    path: Path, *, trust_remote_code: bool = False, allow_targets: Sequence[str] = ()
) -> TrainedPolicy:
    """The policy of a run folder, or of one of its checkpoints.

    Args:
        path: the folder.
        trust_remote_code: whether code that comes with the model may run. What the run's own configuration says about
            it does not count: whoever made the folder wrote that.
        allow_targets: packages beside `align` from which patterns, `model.rope.table` and `model.query_scale` of an
            adapter's run may come; those of the run's own configuration do not count either. A whole model has them in
            its config.json.

    Raises:
        UserError: as `find_policy`, or a configuration that cannot be read.
    """
    run, weights = find_policy(path)
    try:
        config = OmegaConf.load(run / CONFIG_NAME)
    except YAMLError as error:
        raise UserError(f"{run / CONFIG_NAME} cannot be read as YAML: restore it.") from error
    if not isinstance(config, DictConfig) or "model" not in config:
        raise UserError(f"{run / CONFIG_NAME} holds no configuration of `align train`: restore it.")
    plain: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    if (weights / ADAPTER).is_file():
        model = typed_model(OmegaConf.merge(config, {"allow_targets": list(allow_targets)}))  # type: ignore[arg-type]
    else:
        model = typed(ModelSettings, config, "model")
    model = replace(model, layer_patterns=patterns_of_run(plain, allow=("align", *allow_targets)))
    return TrainedPolicy(
        weights=weights,
        config=plain,
        model=replace(model, trust_remote_code=trust_remote_code),
        results=read_results(run / "results.json") if run == path else {},
        local=local_paths(run, plain),
    )


def read_results(path: Path) -> dict[str, Any]:
    """What the run measured; empty where it has not ended."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read as JSON: restore or remove it.") from error


def merged_model(policy: TrainedPolicy, dtype: str = "stored") -> PreTrainedModel:
    """The trained model without adapters; what they add is added in `dtype`.

    A four-bit base is read in its own precision: the adapter is added to the weights that were quantised.

    Raises:
        UserError: the adapter is a soft prompt, or PEFT's reason why it cannot be merged.
    """
    check_mergeable(policy.weights)
    settings = merged_settings(policy)
    if dtype == "stored":
        config = load_config(settings)
        stored = config.dtype or text_config(config).dtype  # composites have it in either
        dtype = "bfloat16" if stored == torch.bfloat16 else "float32"
    model = load_causal_lm(replace(settings, dtype=dtype))
    if policy.has_adapter:
        adapted = PeftModel.from_pretrained(model, str(policy.weights))
        try:
            model = adapted.merge_and_unload(safe_merge=True)  # type: ignore[operator]
        except ValueError as error:
            raise UserError(f"{policy.weights} cannot be merged: {' '.join(str(error).split())}") from error
    model.config.use_cache = True
    to_native(text_config(model.config))
    return model


def merged_settings(policy: TrainedPolicy) -> ModelSettings:
    """How the model is loaded that `merged_model` adds an adapter to, or returns as it is."""
    settings = replace(policy.model, quantization="none", kernels="none", adapter=None)
    if policy.has_adapter:
        return settings
    # What is saved has RoPE overrides, query scale and the extra tokens' rows already.
    return replace(
        settings,
        path=str(policy.weights),
        revision=None,
        rope=RopeSettings(),
        query_scale=None,
        extra_tokens=[],
    )


def merged_config(policy: TrainedPolicy) -> PreTrainedConfig:
    """The configuration of what `merged_model` returns; reads no weights."""
    return load_config(merged_settings(policy))


def load_policy_tokenizer(policy: TrainedPolicy) -> PreTrainedTokenizerBase:
    """The tokenizer saved with the policy, else its base model's."""
    trusted = policy.model.trust_remote_code
    if not (policy.weights / "tokenizer_config.json").is_file():
        model = policy.model
        return model_tokenizer(model)
    try:  # an adapter's folder is no model's, which `load_tokenizer` asks for
        return AutoTokenizer.from_pretrained(str(policy.weights), trust_remote_code=trusted)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{policy.weights}: no tokenizer could be loaded ({loading_problem(error)})."
        ) from error


def _copy_processor(policy: TrainedPolicy, target: Path) -> None:
    """A composite's processor: as the run has it, else its base model, which need not be there any more."""
    copy_processor(policy.weights, target)
    base = policy.model.path
    if base not in policy.local or Path(base).is_dir():
        copy_processor(base, target, revision=policy.model.revision)


def write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, policy: TrainedPolicy, output: Path
) -> None:
    """Writes the folder; it appears by a rename, so that a killed export leaves nothing half-made.

    What a killed one has left beside it is removed by the next one of the same name.

    Raises:
        UserError: another process is writing a folder of this name.
    """
    around = output.with_name(f".{output.name}.unfinished")
    staging = around / output.name
    with exclusive(around):
        try:
            if staging.is_dir():
                shutil.rmtree(staging)
            with weight_bars_off():
                model.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
            _copy_processor(policy, staging)
            chat = tokenizer.chat_template is not None
            card = model_card(
                policy.config,
                policy.results,
                name=output.name,
                chat=chat,
                loader=auto_class(model.config).__name__,
                parts=chat and content_form(tokenizer) is as_parts,
                local=policy.local,
                serving=" ".join(filter(None, (serving_words(model.config), engine_words(model.config))))
                or None,
            )
            (staging / "README.md").write_text(card, encoding="utf-8")
            os.rename(staging, output)
        finally:
            shutil.rmtree(around, ignore_errors=True)
