"""`generator=local`: the settings of a transformers model in this process."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from align.core.errors import UserError
from align.data.template_file import check_template_kwargs
from align.generation.marked import check_mark
from align.generation.memories import Memory, NoMemory, check_memory

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from align.generation.generators import Generator
    from align.generation.local_generator import LocalGenerator
    from align.models.settings import ModelSettings

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass(frozen=True)
class LocalSettings:
    """Group `generator`; see hydra_conf/generator/local.yaml."""

    batch_tokens: int = 8192
    batch_size: int = 16
    keep_tokens: int = 32768
    device: str = "auto"
    cache: str | None = None
    template_kwargs: dict[str, Any] | None = None
    mark: str | None = None
    memory: Memory = field(default_factory=NoMemory)

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        for key in ("batch_tokens", "batch_size"):
            if getattr(self, key) < 1:
                raise UserError(
                    f"generator.{key}={getattr(self, key)} is too small: give a number from 1 on."
                )
        if self.keep_tokens < 0:
            raise UserError(f"generator.keep_tokens={self.keep_tokens} must be 0 or more.")
        if not _DEVICE.fullmatch(self.device):
            raise UserError(f"generator.device={self.device} is not known: use auto, cpu or cuda.")
        check_template_kwargs("generator.template_kwargs", self.template_kwargs)
        check_mark(self.mark)
        check_memory(self.memory, "generator.memory")

    def resolve_device(self) -> torch.device:
        """`generator.device`; auto is the first GPU where there is one.

        Raises:
            UserError: a GPU that torch does not see.
        """
        import torch

        cuda = torch.cuda.is_available()
        device = torch.device(("cuda" if cuda else "cpu") if self.device == "auto" else self.device)
        if device.type == "cuda" and not cuda:
            raise UserError(f"generator.device={self.device}: torch sees no GPU here, use auto or cpu.")
        return device

    def open(self, model: ModelSettings, tokenizer: PreTrainedTokenizerBase) -> Generator:
        """The generator of `model`; weights are loaded by the first call that is not finished yet."""
        from align.generation.call_cache import cached
        from align.generation.local_generator import local_identity, local_weights
        from align.generation.marked import with_mark
        from align.models.loading import load_causal_lm, load_config

        device = self.resolve_device()
        generator = self._generator(
            lambda: load_causal_lm(model, device=device),
            load_config(model),
            tokenizer,
            name=model.path,
            identify=lambda: self._named(local_identity(model, tokenizer, self.template_kwargs or {})),
            weigh=lambda: local_weights(model, tokenizer, self.template_kwargs or {}),
        )
        return cached(with_mark(generator, self.mark), self.cache)

    def of_model(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LocalGenerator:
        """The generator of a model that is there already, in its present state; it has no name in the cache.

        Where it has a soft prompt, prompts begin with it.
        """
        from align.models.soft_prompt import soft_ids

        return self._generator(lambda: model, model.config, tokenizer, name="policy", soft=soft_ids(model))

    def _named(self, identity: str) -> str:
        """The identity of a model with the memory, which changes answers."""
        from align.generation.generators import digest_of

        return digest_of([identity, asdict(self.memory)]) if self.memory.chunk else identity  # type: ignore[call-overload]

    def _generator(
        self,
        load: Callable[[], PreTrainedModel],
        config: PreTrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        identify: Callable[[], str] | None = None,
        weigh: Callable[[], str] | None = None,
        soft: Sequence[int] | np.ndarray = (),
    ) -> LocalGenerator:
        from align.generation.local_generator import LocalGenerator
        from align.generation.prefixes import can_share
        from align.models.loading import window_of

        make: Callable[..., LocalGenerator] = LocalGenerator
        if self.memory.chunk:
            from align.generation.remembering import RememberingGenerator

            make = partial(RememberingGenerator, memory=self.memory)
        return make(
            load=load,
            tokenizer=tokenizer,
            name=name,
            window=window_of(config),
            batch_tokens=self.batch_tokens,
            batch_size=self.batch_size,
            keep_tokens=self.keep_tokens,
            share_prefixes=can_share(config),
            identify=identify,
            weigh=weigh,
            template_kwargs=self.template_kwargs,
            soft=soft,
        )
