"""A transformers model in this process as a generator: padded batches, one random number generator a row."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from align.core.files import cache_folder
from align.generation.batches import fixed_batches, pad_rows
from align.generation.generators import Completion, Request, Sampling, ScoredText, WindowError, digest_of
from align.generation.prefixes import Family, PrefixReader, find_families, reads_alike
from align.generation.prompts import PromptEncoder
from align.generation.sampling import FiniteLogits, RowSampler
from align.generation.spoken import decoded
from align.models.identity import Identity
from align.models.precision import Precision
from align.models.settings import ModelSettings


class LocalGenerator:
    """Answers requests with a causal language model in this process.

    Args:
        load: gives the model; called once, and only if there is something to generate.
        tokenizer: its tokenizer, with a chat template.
        name: recorded in the rows.
        window: most positions the model has; None is unlimited.
        batch_tokens: most padded tokens of a batch, prompts and answers together.
        batch_size: most rows of a batch.
        keep_tokens: most tokens of prefixes kept for the next round of a dialogue.
        share_prefixes: False for a model that does not keep keys and values of all tokens (`can_share`).
        identify: gives the identity; called once, and only if it is asked for. None: the name.
        weigh: gives `weights`; called once, and only if they are asked for. None: they are not known.
        template_kwargs: variables of the chat template.
        soft: ids of the model's soft prompt, which go before each prompt.
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
        keep_tokens: int = 32768,
        share_prefixes: bool = True,
        identify: Callable[[], str] | None = None,
        weigh: Callable[[], str] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        soft: Sequence[int] | np.ndarray = (),
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.encode = PromptEncoder(tokenizer, template_kwargs, soft=soft)
        self.window = window
        self.batch_tokens = batch_tokens
        self.batch_size = batch_size
        self.keep_tokens = keep_tokens
        self._load = load
        self._identify = identify or (lambda: name)
        self._weigh = weigh
        self._shares = share_prefixes

    @functools.cached_property
    def identity(self) -> str:
        """See `Generator.identity`."""
        return self._identify()

    @functools.cached_property
    def weights(self) -> str | None:
        """See `weights_of`."""
        return None if self._weigh is None else self._weigh()

    def waves(self, openings: Sequence[Sequence[Request]]) -> list[range]:
        """As many dialogues at once as their prefixes can be kept of, and as a batch has rows; one at least.

        Dialogues that open with 15,000 tokens each go on in twos with `keep_tokens` 32,768.
        """
        waves: list[range] = []
        start = used = 0
        for place, opening in enumerate(openings):
            longest = max((len(self.encode(request)) for request in opening), default=0)
            full = used + longest > self.keep_tokens or place - start >= self.batch_size
            if place > start and full:
                waves.append(range(start, place))
                start, used = place, 0
            used += longest
        return [*waves, range(start, len(openings))] if openings else waves

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
        prompts = [self._checked_prompt(request) for request in requests]
        families = (
            find_families(prompts, [request.sampling for request in requests])
            if self._shares
            else [Family((i,), 0) for i in range(len(requests))]
        )
        for batch in fixed_batches(
            requests,
            [len(prompt) for prompt in prompts],
            families,
            batch_tokens=self.batch_tokens,
            batch_size=self.batch_size,
        ):
            members = [i for family in batch for i in family.members]
            calls = [requests[i] for i in members]
            if any(call.digest not in finished for call in calls):
                yield list(zip(calls, self._complete(calls, prompts, batch), strict=True))

    def _checked_prompt(self, request: Request) -> np.ndarray:
        """Ids of the prompt; raises WindowError where prompt and answer exceed the model's window."""
        prompt = self.encode(request)
        wanted = len(prompt) + request.sampling.max_new_tokens
        if self.window is not None and wanted > self.window:
            raise WindowError(
                f"{request.id}: its prompt of {len(prompt)} tokens and {request.sampling.max_new_tokens} new ones "
                f"exceed the model's window of {self.window}"
            )
        return prompt

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

    def _ends(self, sampling: Sampling) -> list[int]:
        """Every token that ends this answer."""
        ids = [self.tokenizer(text, add_special_tokens=False)["input_ids"][-1] for text in sampling.stop_at]
        return sorted({*self._model.generation_config.eos_token_id, *ids})

    @property
    def _pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return 0 if pad is None else int(pad)  # masked everywhere, so any id will do

    def _end_ids(self, model: PreTrainedModel) -> list[int]:
        """Every token that ends an answer, the model's own and the tokenizer's."""
        own = model.generation_config.eos_token_id if model.generation_config is not None else None
        ids = own if isinstance(own, list) else [own]
        return sorted({i for i in (*ids, self.tokenizer.eos_token_id) if i is not None})

    @functools.cached_property
    def _reads_alike(self) -> bool:
        """Whether common prefixes change nothing; where they would, every prompt is read whole."""
        return reads_alike(self._model)

    @functools.cached_property
    def _prefixes(self) -> PrefixReader:
        return PrefixReader(self._model, keep_tokens=self.keep_tokens)

    @torch.inference_mode()
    def _complete(
        self, calls: Sequence[Request], prompts: Sequence[np.ndarray], batch: Sequence[Family]
    ) -> list[Completion]:
        """The answers of one batch: its prefixes are read, then what follows them at once, then a token a step.

        Args:
            calls: of the batch, in the order of its families' members; all share their sampling.
            prompts: ids of all prompts of the stage.
            batch: as from `fixed_batches`.
        """
        sampling = calls[0].sampling
        if any(family.shared for family in batch) and not self._reads_alike:
            batch = [Family(family.members, 0) for family in batch]
        ids, mask = map(torch.from_numpy, pad_rows(prompts, batch, self._pad_id))
        sampler = RowSampler(
            [call.seed for call in calls], temperature=sampling.temperature, top_p=sampling.top_p
        )
        finite = FiniteLogits([call.id for call in calls], name=self.name)
        shares = any(family.shared for family in batch)
        prefixed = self._prefixes.of_batch(prompts, batch) if shares else None
        with nullcontext() if prefixed is None else prefixed.attended_by(self._model):
            output = self._model.generate(
                ids.to(self._model.device),
                attention_mask=mask.to(self._model.device),
                past_key_values=None if prefixed is None else prefixed.cache(),
                max_new_tokens=sampling.max_new_tokens,
                min_new_tokens=max(sampling.min_new_tokens, 1 if sampling.stop_at else 0),
                eos_token_id=self._ends(sampling),
                logits_processor=LogitsProcessorList([finite, sampler]),
            )
        answers = output[:, ids.shape[1] :].tolist()
        return [self._completion(*pair) for pair in zip(calls, answers, strict=True)]

    def _completion(self, request: Request, ids: list[int]) -> Completion:
        """The lead and what was generated up to the first end token."""
        ends = self._ends(request.sampling)
        length = next((i for i, token in enumerate(ids) if token in ends), len(ids))
        text = decoded(self.tokenizer, self.encode.lead(request).tolist() + ids[:length])
        text = self.encode.escaper.restore(text)
        # The prompt has begun the block; an answer shows all of it.
        if self.encode.opening and not request.lead and request.form == "chat":
            text = self.encode.opening + text
        return Completion(text=text.strip(), tokens=length, finish="stop" if length < len(ids) else "length")


def local_weights(
    model: ModelSettings, tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]
) -> str:
    """Digest of weight files, or a Hub commit, configuration, tokenizer, chat template and its variables."""
    content = Identity.of(model, precision=Precision(), cache=cache_folder(), key="model.path").content
    vocabulary = tokenizer.backend_tokenizer.to_str()  # type: ignore[attr-defined]
    asked = [vocabulary, tokenizer.chat_template, dict(template_kwargs)]
    return digest_of([content["weights"], content["config"], *asked])


def local_identity(
    model: ModelSettings, tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]
) -> str:
    """Digest of weights, configuration, dtype, tokenizer, chat template and its variables; reads weight files once."""
    identity = Identity.of(model, precision=Precision(), cache=cache_folder(), key="generator.cache")
    vocabulary = tokenizer.backend_tokenizer.to_str()  # type: ignore[attr-defined]
    return digest_of([identity.digest, vocabulary, tokenizer.chat_template, dict(template_kwargs)])
