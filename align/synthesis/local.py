"""The local transformers model as a generator: padded batches, one random number generator a row."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from align.errors import UserError
from align.model import ModelSettings, cache_folder, load_causal_lm, load_config
from align.reference_key import Identity
from align.synthesis.cache import cached
from align.synthesis.generators import Completion, Generator, Request, Sampling, ScoredText, digest_of
from align.synthesis.prompt import PromptEncoder
from align.synthesis.sampling import RowSampler


@dataclass(frozen=True)
class LocalSettings:
    """Group `generator`; see hydra_conf/generator/local.yaml."""

    batch_tokens: int = 8192
    batch_size: int = 16
    device: str = "auto"
    cache: str | None = None

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        for key in ("batch_tokens", "batch_size"):
            if getattr(self, key) < 1:
                raise UserError(
                    f"generator.{key}={getattr(self, key)} is too small: give a number from 1 on."
                )
        self.resolve_device()

    def resolve_device(self) -> torch.device:
        """`generator.device`; auto is the first GPU where there is one."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise UserError(f"generator.device={self.device} is not known: use auto, cpu or cuda.") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"generator.device={self.device}: torch sees no GPU here, use auto or cpu.")
        return device

    def open(self, model: ModelSettings, tokenizer: PreTrainedTokenizerBase) -> Generator:
        """The generator of `model`; weights are loaded by the first call that is not finished yet."""
        generator = LocalGenerator(
            load=lambda: load_causal_lm(model, device=self.resolve_device()),
            tokenizer=tokenizer,
            name=model.path,
            window=getattr(load_config(model), "max_position_embeddings", None),
            batch_tokens=self.batch_tokens,
            batch_size=self.batch_size,
            identify=lambda: local_identity(model, tokenizer),
        )
        return cached(generator, self.cache)


def local_identity(model: ModelSettings, tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest of weights, configuration, dtype, tokenizer and chat template; reads the weight files once."""
    identity = Identity.of(model, autocast=None, cache=cache_folder(), key="generator.cache")
    vocabulary = tokenizer.backend_tokenizer.to_str()  # type: ignore[attr-defined]
    return digest_of([identity.digest, vocabulary, tokenizer.chat_template])


class LocalGenerator:
    """Answers requests with a causal language model in this process.

    Args:
        load: gives the model; called once, and only if there is something to generate.
        tokenizer: its tokenizer, with a chat template.
        name: recorded in the rows.
        window: most positions the model has; None is unlimited.
        batch_tokens: most padded tokens of a batch, prompts and answers together.
        batch_size: most rows of a batch.
        identify: gives the identity; called once, and only if it is asked for. None: the name.
    """

    def __init__(
        self,
        *,
        load: Callable[[], PreTrainedModel],
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        window: int | None,
        batch_tokens: int,
        batch_size: int,
        identify: Callable[[], str] | None = None,
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.encode = PromptEncoder(tokenizer)
        self.window = window
        self.batch_tokens = batch_tokens
        self.batch_size = batch_size
        self._load = load
        self._identify = identify or (lambda: name)

    @functools.cached_property
    def identity(self) -> str:
        """See `Generator.identity`."""
        return self._identify()

    def waves(self, openings: Sequence[Sequence[Request]]) -> list[range]:
        """One dialogue after the other, so that what it has read is still at hand for its next round."""
        return [range(place, place + 1) for place in range(len(openings))]

    def log_probs(self, texts: Sequence[ScoredText]) -> Iterator[tuple[ScoredText, list[float]]]:
        """One forward a text."""
        for text in texts:
            yield text, self._log_probs(text)

    @torch.inference_mode()
    def _log_probs(self, text: ScoredText) -> list[float]:
        prompt, answer = self.encode.scored(text)
        if not len(answer):
            return []
        ids = torch.tensor(np.concatenate([prompt, answer])[None], device=self._model.device)
        logits = self._model(ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1]
        chosen = torch.tensor(answer, device=logits.device)[:, None]
        return logits.float().log_softmax(-1).gather(1, chosen)[:, 0].tolist()

    def generate(
        self, requests: Sequence[Request], *, finished: Collection[str]
    ) -> Iterator[Sequence[tuple[Request, Completion]]]:
        """One batch after the other; a batch of which nothing is missing is passed over."""
        lengths = [self._checked_length(request) for request in requests]
        for members in fixed_batches(
            requests, lengths, batch_tokens=self.batch_tokens, batch_size=self.batch_size
        ):
            batch = [requests[i] for i in members]
            if any(request.digest not in finished for request in batch):
                yield list(zip(batch, self._complete(batch), strict=True))

    def _checked_length(self, request: Request) -> int:
        """Tokens of the prompt; raises UserError where prompt and answer exceed the model's window."""
        length = len(self.encode(request))
        wanted = length + request.sampling.max_new_tokens
        if self.window is not None and wanted > self.window:
            raise UserError(
                f"{request.id}: its prompt of {length} tokens and {request.sampling.max_new_tokens} new ones exceed "
                f"the model's window of {self.window}: lower pipeline.chunk_tokens or pipeline.max_new_tokens."
            )
        return length

    @functools.cached_property
    def _model(self) -> Any:
        """The model, decoding greedily: what its own generation settings add would change the draw."""
        model = self._load().eval()
        model.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=self._end_ids(model),
            pad_token_id=self._pad_id,
            use_cache=True,
        )
        return model

    @property
    def _pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return 0 if pad is None else int(pad)  # masked everywhere, so any id will do

    def _end_ids(self, model: PreTrainedModel) -> list[int]:
        """Every token that ends an answer, the model's own and the tokenizer's."""
        own = model.generation_config.eos_token_id if model.generation_config is not None else None
        ids = own if isinstance(own, list) else [own]
        return sorted({i for i in (*ids, self.tokenizer.eos_token_id) if i is not None})

    @torch.inference_mode()
    def _complete(self, batch: Sequence[Request]) -> list[Completion]:
        """One padded forward for the prompts, one a step for the answers. All rows share their sampling."""
        sampling = batch[0].sampling
        prompts = [self.encode(request).tolist() for request in batch]
        longest = max(map(len, prompts))
        device = self._model.device
        ids = torch.tensor([[self._pad_id] * (longest - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
        sampler = RowSampler(
            [request.seed for request in batch], temperature=sampling.temperature, top_p=sampling.top_p
        )
        output = self._model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=sampling.max_new_tokens,
            min_new_tokens=sampling.min_new_tokens,
            logits_processor=LogitsProcessorList([sampler]),
        )
        return [self._completion(*pair) for pair in zip(batch, output[:, longest:].tolist(), strict=True)]

    def _completion(self, request: Request, ids: list[int]) -> Completion:
        """The lead and what was generated up to the first end token."""
        ends = set(self._model.generation_config.eos_token_id)
        length = next((i for i, token in enumerate(ids) if token in ends), len(ids))
        text = str(
            self.tokenizer.decode(self.encode.lead(request).tolist() + ids[:length], skip_special_tokens=True)
        )
        return Completion(text=text.strip(), tokens=length, finish="stop" if length < len(ids) else "length")


def fixed_batches(
    requests: Sequence[Request], lengths: Sequence[int], *, batch_tokens: int, batch_size: int
) -> list[list[int]]:
    """Places of the requests of each batch: like lengths together, the longest first.

    A pure function of its arguments, so that a resumed run computes in the same batches. Requests of one
    batch share their sampling. A request over the budget has a batch of its own.

    Args:
        requests: all requests of a stage.
        lengths: `[len(requests)]` their prompts' tokens.
        batch_tokens: most of (longest prompt + new tokens) × rows.
        batch_size: most rows.
    """

    def key(i: int) -> tuple[str, int, str]:
        return (repr(requests[i].sampling), -lengths[i], requests[i].id)

    batches: list[list[int]] = []
    room = 0
    sampling: Sampling | None = None
    for i in sorted(range(len(requests)), key=key):
        if room == 0 or requests[i].sampling != sampling:
            sampling = requests[i].sampling
            batches.append([])
            room = max(1, min(batch_size, batch_tokens // (lengths[i] + sampling.max_new_tokens)))
        batches[-1].append(i)
        room -= 1
    return batches
