"""A local generator that takes in what it writes: after each finished chunk of an answer its memory reads it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessorList

from align.core.errors import UserError
from align.core.telling import tell
from align.generation.generators import Completion, Request, ScoredText, WindowError
from align.generation.local_generator import LocalGenerator
from align.generation.memories import Memory
from align.generation.sampling import FiniteLogits, RowSampler


class RememberingGenerator(LocalGenerator):
    """Answers one request after the other, each with a memory of its own, which is gone behind it.

    Keys and values belong to the adapter that they were computed with. Behind each chunk the memory has changed, so
    that the context is read anew; prefixes of other requests are not taken over.

    Args:
        memory: that keeps something.
        keywords: as `LocalGenerator`'s.
    """

    def __init__(self, *, memory: Memory, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.memory = memory
        self._told = False

    def generate(
        self, requests: Sequence[Request], *, finished: Collection[str]
    ) -> Iterator[Sequence[tuple[Request, Completion]]]:
        """Each by itself; what is finished is passed over."""
        prompts = [self._checked_prompt(request) for request in requests]
        for request, prompt in zip(requests, prompts, strict=True):
            if request.digest not in finished:
                yield [(request, self._written(request, prompt))]

    def log_probs(self, texts: Sequence[ScoredText]) -> Iterator[tuple[ScoredText, list[float]]]:
        """Refused: nothing is written that could be taken in."""
        raise UserError(
            "generator/memory takes in what the model writes, and this asks for log-probs of given texts: take "
            "generator/memory=none."
        )

    @property
    def _seen(self) -> int | None:
        """Tokens of prompt and answer that the model sees before a chunk, at most; None: all."""
        in_window = None if self.window is None else self.window - self.memory.chunk
        limits = [limit for limit in (in_window, self.memory.context) if limit is not None]
        return min(limits, default=None)

    def _checked_prompt(self, request: Request) -> np.ndarray:
        """Ids of the prompt; raises WindowError where it and a chunk exceed what the model sees."""
        prompt = self.encode(request)
        if self._seen is not None and len(prompt) > self._seen:
            raise WindowError(
                f"{request.id}: its prompt of {len(prompt)} tokens is longer than the {self._seen} that the model sees "
                f"before a chunk of {self.memory.chunk} (generator.memory.context, and the model's window less a chunk)"
            )
        return prompt

    @torch.no_grad()
    def _written(self, request: Request, prompt: np.ndarray) -> Completion:
        """The answer, a chunk at a time."""
        sampling, model = request.sampling, self._model
        sampler = RowSampler([request.seed], temperature=sampling.temperature, top_p=sampling.top_p)
        steps = LogitsProcessorList([FiniteLogits([request.id], name=self.name), sampler])
        ends = self._ends(sampling)
        ids: list[int] = prompt.tolist()
        answer: list[int] = []
        with self.memory.keep(model, seed=request.seed) as kept:
            while True:
                count = min(self.memory.chunk, sampling.max_new_tokens - len(answer))
                least = max(sampling.min_new_tokens, 1 if sampling.stop_at else 0) - len(answer)
                given = torch.tensor([self._visible(request, ids)], device=model.device)
                output = model.generate(
                    given,
                    attention_mask=torch.ones_like(given),
                    max_new_tokens=count,
                    min_new_tokens=min(max(least, 0), count),
                    eos_token_id=ends,
                    logits_processor=steps,
                )
                new = output[0, given.shape[1] :].tolist()
                answer += new
                ids += new
                if new[-1] in ends or len(answer) == sampling.max_new_tokens:
                    return self._completion(request, answer)
                read = ids[-(self.memory.train_context + count) :]
                kept.read(torch.tensor(read, device=model.device), max(1, len(read) - count))

    def _visible(self, request: Request, ids: list[int]) -> list[int]:
        """The last tokens of prompt and answer; the first time that there are more, that is said."""
        if self._seen is None or len(ids) <= self._seen:
            return ids
        if not self._told:
            self._told = True
            tell(
                f"{request.id}: the model sees the last {self._seen} tokens of prompt and answer alone; of what is "
                "before them only the memory is left (said once)."
            )
        return ids[-self._seen :]
