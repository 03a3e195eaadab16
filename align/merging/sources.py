"""The models that are merged, opened: where their weights lie, how they are loaded, and that they are of one kind."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from align.core.bars import weight_bars_off
from align.core.errors import UserError
from align.core.telling import tell
from align.merging.places import Place
from align.models.identity import architecture
from align.models.loading import load_config, load_tokenizer, loading_problem, window_of
from align.models.paths import resolve_path
from align.models.settings import EMBEDDED, ModelSettings, RopeSettings
from align.models.text_part import text_config
from align.runs.folder import ADAPTER
from align.training.trained_policy import TrainedPolicy, load_policy_tokenizer, merged_model, read_policy

# What may differ between models that are merged: it is no part of the function that their weights are of.
_FREE = ("max_position_embeddings", "initializer_range", "pretraining_tp", "use_cache")
_FREE_ENDS = ("dropout", "_pdrop")
_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.py", "*.tiktoken"]


@dataclass(frozen=True)
class Source:
    """A model that is merged, or the base.

    Attributes:
        place: what names it.
        policy: how it is loaded; `policy.weights` is the folder of its weights, or of its adapter.
    """

    place: Place
    policy: TrainedPolicy

    def __str__(self) -> str:
        return str(self.place)

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter on a base model."""
        return self.policy.has_adapter

    @property
    def base(self) -> ModelSettings:
        """Of an adapter, what decides on its base model: where it is, the run's RoPE, query scale and patterns."""
        own = self.policy.model
        return ModelSettings(
            path=resolve_path(own.path, key=self.place.key),
            revision=own.revision,
            rope=own.rope,
            query_scale=own.query_scale,
            layer_patterns=own.layer_patterns,
            trust_remote_code=own.trust_remote_code,
        )

    def config(self) -> PreTrainedConfig:
        """Its configuration; of an adapter its base model's, with the run's RoPE, query scale and patterns."""
        settings = self.policy.model
        if not self.is_adapter:
            weights = str(self.policy.weights)
            settings = replace(settings, path=weights, revision=None, rope=RopeSettings(), query_scale=None)
        return load_config(settings, key=self.place.key)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer; of an adapter without one its base model's."""
        if self.place.kind != "model" or self.is_adapter:
            return load_policy_tokenizer(self.policy)
        trusted = self.policy.model.trust_remote_code
        return load_tokenizer(str(self.policy.weights), trust_remote_code=trusted, key=self.place.key)

    def whole(self, folder: Path) -> Path:
        """The folder of its weights; an adapter is merged into its base first, and that is written to `folder`."""
        if self.is_adapter:
            tell(f"{self}: its adapter is merged into its base first.")
            with weight_bars_off():
                merged_model(self.policy).save_pretrained(folder)
            return folder
        _fetch_weights(self.place, self.policy.weights)
        return self.policy.weights


def open_source(place: Place, *, trust_remote_code: bool, allow_targets: Sequence[str] = ()) -> Source:
    """Reads a run's configuration, an adapter's or nothing; of a Hub model fetches everything but its weights.

    Raises:
        UserError: it cannot be read or fetched.
    """
    if place.kind == "run":
        policy = read_policy(
            Path(place.path), trust_remote_code=trust_remote_code, allow_targets=allow_targets
        )
        return Source(place, policy)
    folder = Path(resolve_path(place.path, key=place.key)) if place.kind == "model" else Path(place.path)
    if not folder.is_dir():
        folder = _fetch(place, _SMALL_FILES)
    path, revision = str(folder), None
    if (folder / ADAPTER).is_file() and not (folder / "config.json").is_file():
        _fetch_weights(place, folder)
        adapter = _adapter_config(folder, place)
        path, revision = adapter["base_model_name_or_path"], adapter.get("revision")
    settings = ModelSettings(path=path, revision=revision, trust_remote_code=trust_remote_code)
    return Source(place, TrainedPolicy(weights=folder, config={}, model=settings, results={}))


def _adapter_config(folder: Path, place: Place) -> dict[str, Any]:
    try:
        content = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        if not isinstance(content["base_model_name_or_path"], str):
            raise KeyError("base_model_name_or_path")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place}: its {ADAPTER} names no base model: restore it.") from error
    return dict(content)


def _fetch_weights(place: Place, folder: Path) -> None:
    """Fetches a Hub model's weights into its folder; a folder of the user's has its own.

    Raises:
        UserError: it has none in safetensors.
    """
    if place.path != EMBEDDED and not Path(place.path).is_dir():
        _fetch(place, ["*.safetensors"])
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{place} has no weights in safetensors: load it, save it with the installed transformers, and name that "
            "folder."
        )


def _fetch(place: Place, patterns: list[str]) -> Path:
    """The folder of a Hub model's files, fetched where they are not here yet."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(place.path, revision=place.revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise UserError(f"{place} could not be fetched from the Hub ({loading_problem(error)}).") from error


def check_alike(sources: Sequence[Source]) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Refuses models of which the weights of one mean something else in another; reads no weights.

    Returns:
        The configuration of the first, with the widest window of all, and its tokenizer.

    Raises:
        UserError: another architecture, RoPE, vocabulary, or a head that is tied in one of them alone.
    """
    first = sources[0]
    config, tokenizer = first.config(), first.tokenizer()
    facts, vocabulary = _facts(config), tokenizer.get_vocab()
    for other in sources[1:]:
        theirs = other.config()
        differing = _differing(facts, _facts(theirs))
        if differing:
            raise UserError(
                f"{first} and {other} differ in {differing}: their weights are not of one function, and a mean of "
                "them is of none; merge models that were trained from the same one."
            )
        _check_vocabulary(first, vocabulary, other, other.tokenizer().get_vocab())
        widest = max(window_of(config) or 0, window_of(theirs) or 0)
        if widest != (window_of(config) or 0) or widest != (window_of(theirs) or 0):
            tell(
                f"{first} and {other} differ in their window alone; the merged model is given {widest} tokens."
            )
            text_config(config).max_position_embeddings = widest
    return config, tokenizer


def _facts(config: PreTrainedConfig) -> dict[str, Any]:
    """Everything that decides what the weights mean."""
    tied = (config.tie_word_embeddings, text_config(config).tie_word_embeddings)
    return {
        "model_type": config.model_type,
        "tie_word_embeddings": tied[0] or tied[1],
        **architecture(config.to_dict()),
    }


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """`hidden_size (64 and 128), rope_parameters (… and …)`: three keys at most; empty where nothing differs."""
    keys = [key for key in {**one, **other} if not _is_free(key)]
    found = [key for key in keys if _bound(one.get(key)) != _bound(other.get(key))]
    shown = [f"{key} ({reprlib.repr(one.get(key))} and {reprlib.repr(other.get(key))})" for key in found[:3]]
    return ", ".join(shown) + (f" and {len(found) - 3} more keys" if len(found) > 3 else "")


def _bound(value: Any) -> Any:
    """A value without what may differ."""
    if isinstance(value, Mapping):
        return {key: _bound(own) for key, own in value.items() if not _is_free(str(key))}
    return list(value) if isinstance(value, tuple) else value


def _is_free(key: str) -> bool:
    return key in _FREE or key.endswith(_FREE_ENDS)


def _check_vocabulary(
    first: Source, vocabulary: Mapping[str, int], other: Source, theirs: Mapping[str, int]
) -> None:
    """Refuses tokenizers that give a token another id, or that one of them lacks."""
    differing = [
        token
        for token in sorted(
            {*vocabulary, *theirs}, key=lambda token: vocabulary.get(token, theirs.get(token, 0))
        )
        if vocabulary.get(token) != theirs.get(token)
    ]
    if differing:
        token = differing[0]
        raise UserError(
            f"{first} and {other} have different tokenizers ({len(differing)} tokens; the first is {token!r}, with id "
            f"{_id(vocabulary, token)} and {_id(theirs, token)}): rows of their embeddings stand for different tokens; "
            "merge models of one vocabulary."
        )


def _id(vocabulary: Mapping[str, int], token: str) -> str:
    return str(vocabulary.get(token, "none"))
