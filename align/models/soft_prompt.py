"""Tokens of a soft prompt: ids behind the vocabulary, whose embeddings are rows of their own.

A model of V tokens with a soft prompt of k reads the ids V … V + k − 1 as its k rows, and every other id as before. Its
embedding stays the module that it is, tied to the head or not, so that no id of the vocabulary is taken, the head gives
no logit for the new ones, and whatever reads ids reads them: packed rows, shards, generation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers import PreTrainedModel

from align.models.structure import find_causal_lm

NAME = "soft_prompt"  # of the rows, a child of the token embedding


class PromptRows(nn.Embedding):
    """The embeddings of a soft prompt: places in it, 0 to k − 1, → rows of `weight` `[k, H]`.

    Args:
        rows: `[k, H]`.
        trains: whether they are a parameter; else they stay as they are, and no checkpoint of the model holds them.
    """

    def __init__(self, rows: Tensor, *, trains: bool) -> None:
        super().__init__(rows.shape[0], rows.shape[1], _weight=rows)
        if not trains:
            del self.weight
            self.register_buffer("weight", rows, persistent=False)

    def forward(self, places: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """`[…, H]` in `dtype`."""
        return embedding(places, self.weight.to(dtype))


class _Reading:
    """Two hooks of a token embedding: it looks up what it has, and the soft prompt's rows take their places.

    Every call asks for the prompt's rows, so that they have a gradient, if one of zeros, where a process reads no token
    of the prompt.
    """

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.places: list[Tensor] = []

    def before(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        places = args[0] - self.vocabulary
        self.places.append(places)
        return (args[0].masked_fill(places >= 0, 0), *args[1:])

    def after(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        places = self.places.pop()
        rows = getattr(module, NAME)(places.clamp(min=0), output.dtype)
        return torch.where((places >= 0)[..., None], rows, output)


def vocabulary_rows(tokens: nn.Module) -> int:
    """V, the rows of a token embedding; ZeRO-3 has scattered the weight itself."""
    weight: Any = tokens.weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def add_soft_prompt(model: PreTrainedModel, rows: PromptRows) -> str:
    """Has a model read k more ids as `rows`, in place; the name of the module that holds them."""
    tokens: Any = model.get_input_embeddings()
    vocabulary = vocabulary_rows(tokens)
    tokens.add_module(NAME, rows)
    reading = _Reading(vocabulary)
    tokens.register_forward_pre_hook(reading.before)
    tokens.register_forward_hook(reading.after)
    found: Any = model
    found.align_soft_prompt = range(vocabulary, vocabulary + rows.num_embeddings)
    return next(name for name, module in model.named_modules() if module is rows)


def soft_ids(model: nn.Module) -> np.ndarray:
    """`[k]` int64: the ids of a model's soft prompt, which go before each prompt; none without one.

    Args:
        model: a causal language model, inside any wrapper.
    """
    ids = getattr(find_causal_lm(model), "align_soft_prompt", range(0))
    return np.arange(ids.start, ids.stop, dtype=np.int64)


def prompt_layer(model: nn.Module) -> nn.Module:
    """The rows of a model's soft prompt: `PromptRows`, or PEFT's layer of the ones that train and the first ones."""
    tokens: Any = find_causal_lm(model).get_input_embeddings()
    layer: nn.Module = getattr(tokens, NAME)
    return layer


def prompt_weights(model: nn.Module) -> list[Tensor]:
    """The `[k, H]` weights in it: those that the forward reads and, where they train, those that they began with."""
    return [part.weight for part in prompt_layer(model).modules() if isinstance(part, PromptRows)]
