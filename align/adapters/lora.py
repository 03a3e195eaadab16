"""LoRA with what has grown on it: DoRA, rsLoRA, LoRA+, initialisations, ranks by module, trained token rows."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from align.adapters.adapter import Still
from align.adapters.library import Library
from align.core.config import check_choice, suggestion
from align.core.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOST_RANK = 65_536  # no layer of a model is as wide
# Initialisations by the name in `adapter.init`, and PEFT's word for each.
INITS: dict[str, Any] = {
    "zero": True,
    "gaussian": "gaussian",
    "orthogonal": "orthogonal",
    "pissa": "pissa",
    "olora": "olora",
    "loftq": "loftq",
}
# These take a part of the weights into the adapter, so that what stays without it is not the starting model.
_SPLITTING = ("pissa", "olora", "loftq")
# PEFT's further keywords that the shared prefix computes exactly, see tests/adapters/test_tuners.py.
OPTIONS = (
    "use_dora",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "target_parameters",
    "loftq_config",
)


@dataclass(frozen=True)
class Lora(Still):
    """LoRA (arXiv 2106.09685); see hydra_conf/adapter/lora.yaml.

    Attributes:
        r: rank.
        alpha: scale, the product counts `alpha / r` (rsLoRA: `alpha / √r`).
        dropout: of the adapter's input.
        target_modules: last names of the modules that it is put on; `[all-linear]`.
        modules_to_save: ends of the names of modules that train in full beside it.
        init: one of `INITS`.
        rate_ratio: how many times the learning rate B has (LoRA+, arXiv 2402.12354).
        train_tokens: tokens, as texts or by their ids, whose embedding rows train beside it.
        options: further keywords, as PEFT names them: `{use_dora: true}`, `{rank_pattern: {down_proj: 32}}`.
    """

    r: int
    alpha: int = 16
    dropout: float = 0.0
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    modules_to_save: list[str] = field(default_factory=list)
    init: str = "zero"
    rate_ratio: float = 1.0
    train_tokens: list[Any] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    kind = "lora"
    takes_four_bits = True

    @property
    def removable(self) -> bool:
        """Not where the initialisation takes a part of the weights into the adapter."""
        return self.init not in _SPLITTING

    @property
    def trains_checkpoint_weights(self) -> bool:
        """Where modules or rows of the embedding train beside it."""
        return bool(self.modules_to_save or self.train_tokens)

    def check(self) -> None:
        """Refuses numbers and words that no adapter can have."""
        if not 1 <= self.r <= MOST_RANK:
            raise UserError(f"adapter.r={self.r} is no rank: give a number from 1 to {MOST_RANK}.")
        if self.alpha <= 0:
            raise UserError(
                f"adapter.alpha={self.alpha} would switch the adapter off: give a number above 0."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(
                f"adapter.dropout={self.dropout} is no probability: give a number from 0 to below 1."
            )
        if not 0.0 < self.rate_ratio < float("inf"):
            raise UserError(
                f"adapter.rate_ratio={self.rate_ratio} is no factor: give a number above 0, such as 16."
            )
        check_choice("adapter.init", self.init, INITS)
        if self.init == "loftq" and importlib.util.find_spec("bitsandbytes") is None:
            raise UserError(
                "adapter.init=loftq needs the package bitsandbytes: install it with "
                "`pip install 'long-preference[qlora]'`, or set adapter.init=pissa."
            )
        for token in self.train_tokens:
            is_id = isinstance(token, int) and not isinstance(token, bool) and token >= 0
            if not is_id and not (isinstance(token, str) and token):
                raise UserError(
                    f"adapter.train_tokens names {token!r}: give tokens as texts or by their ids, such as ['[IND]']."
                )
        for name in sorted(self.options.keys() - set(OPTIONS)):
            raise UserError(
                f"adapter.options.{name} is none of the keywords of LoRA that were held against padded rows"
                f"{suggestion(name, OPTIONS)}: use {', '.join(OPTIONS)}."
            )
        self._library.check()

    def check_options(self) -> None:
        """See `Adapter`."""
        self._library.check_options()

    def with_modules(self, names: Sequence[str]) -> Lora:
        """See `Adapter`."""
        return replace(self, modules_to_save=[*self.modules_to_save, *names])

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> Lora:
        """See `Adapter`."""
        known = tokenizer.get_vocab()
        for token in self.train_tokens:
            if isinstance(token, str) and token not in known:
                raise UserError(
                    f"adapter.train_tokens names {token!r}, which is no token of the model: add it by "
                    "model.extra_tokens, or name one that it has."
                )
        return replace(self, train_tokens=[known.get(token, token) for token in self.train_tokens])

    def without_values(self) -> Lora:
        """PiSSA, OLoRA and LoftQ take their start from the weights, in no other precision than 32 bits or fewer.

        Trained rows of the embedding are its first ones: small copies have few.
        """
        return replace(self, init="zero", train_tokens=list(range(len(self.train_tokens))))

    def add(self, model: PreTrainedModel) -> PeftModel:
        """See `Adapter`."""
        return self._library.add(model)

    def rates(self, policy: nn.Module) -> Mapping[str, float]:
        """LoRA+: B learns `rate_ratio` times as fast as A."""
        if self.rate_ratio == 1.0:
            return {}
        return {name: self.rate_ratio for name, _ in policy.named_parameters() if ".lora_B." in name}

    @property
    def _library(self) -> Library:
        own = {
            "r": self.r,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "init_lora_weights": INITS[self.init],
            "trainable_token_indices": self.train_tokens or None,
        }
        if self.init == "loftq":
            own["loftq_config"] = {"loftq_bits": 4, "loftq_iter": 1}
        return Library("LORA", self.target_modules, self.modules_to_save, {**own, **self.options})
