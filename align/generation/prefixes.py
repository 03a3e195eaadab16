"""Prompts that begin alike: which ones, and their common beginning read once into a key-value cache.

A beginning is read in blocks of `BLOCK` tokens, a row by itself. What a block's keys and values are depends
on the tokens up to its end and on nothing else: not on who shares the beginning, nor on what was read
before. So a later call may take the blocks over, and a restarted run computes what the broken one did.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from align.core.errors import UserError
from align.generation.prefix_attention import Beginning, Continued, KeysValues
from align.longseq.support import check_config

BLOCK = 512  # tokens read at once; also the unit of what is kept for later calls
LEAST_SHARED = 32  # tokens: a shorter common beginning (a template's) is not worth a forward of its own


@dataclass(frozen=True)
class Family:
    """Requests with a common beginning.

    Attributes:
        members: their places.
        shared: tokens of the beginning that is read once; 0 is a prompt that is read in a padded batch.
    """

    members: tuple[int, ...]
    shared: int


def find_families(prompts: Sequence[np.ndarray], groups: Sequence[object]) -> list[Family]:
    """Every prompt in one family; a pure function of its arguments.

    Neighbours in the order of their tokens are joined while at least half of every prompt is common to all.
    At least one token of each prompt stays out of the beginning, since the first answer token is predicted
    from it. A prompt of two blocks or more is read by itself even where nobody shares it: that costs
    nothing at such a length, and later calls can take its blocks over.

    Args:
        prompts: `[n]` ids of each.
        groups: `[n]` prompts of different groups (samplings) are never joined.
    """
    order = sorted(
        range(len(prompts)), key=lambda i: (repr(groups[i]), prompts[i].astype(">u4").tobytes(), i)
    )
    families: list[Family] = []
    members: list[int] = []
    shared = longest = 0

    def close() -> None:
        if len(members) > 1:
            families.append(Family(tuple(members), shared))
        elif members:
            alone = len(prompts[members[0]]) - 1
            families.append(Family(tuple(members), alone if alone >= 2 * BLOCK else 0))

    for i in order:
        common = 0
        if members and groups[members[0]] == groups[i]:
            common = min(common_length(prompts[members[0]], prompts[i]), len(prompts[i]) - 1)
            common = min(common, len(prompts[members[0]]) - 1 if len(members) == 1 else shared)
        if members and common >= LEAST_SHARED and 2 * common >= max(longest, len(prompts[i])):
            members.append(i)
            shared, longest = common, max(longest, len(prompts[i]))
        else:
            close()
            members, shared, longest = [i], 0, len(prompts[i])
    close()
    return families


def common_length(first: np.ndarray, second: np.ndarray) -> int:
    """Tokens that two prompts have in common from their start."""
    size = min(len(first), len(second))
    different = np.flatnonzero(first[:size] != second[:size])
    return int(different[0]) if len(different) else size


def can_share(config: Any) -> bool:
    """Whether every layer keeps keys and values of all tokens (no sliding window, no recurrent state), and attends as
    prefix_attention.py does."""
    try:
        check_config(config)
    except UserError:
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


class Beginnings:
    """Reads beginnings, and keeps whole blocks of the latest ones.

    Args:
        model: a causal model for which `can_share`.
        keep_tokens: most tokens of all beginnings kept for later calls.
    """

    def __init__(self, model: Any, *, keep_tokens: int) -> None:
        self.model = model
        self.keep_tokens = keep_tokens
        self.tokens_read = 0
        self._kept: OrderedDict[bytes, tuple[np.ndarray, KeysValues]] = OrderedDict()

    def read(self, ids: np.ndarray) -> KeysValues:
        """Keys and values of these tokens `[n]`, n ≥ 1."""
        known, start = self._known(ids)
        cache = _cache(known, self.model.config)
        whole = len(ids) // BLOCK * BLOCK
        for at in range(start, len(ids), BLOCK):
            block = torch.as_tensor(ids[at : at + BLOCK], device=self.model.device)[None]
            self.model(block, past_key_values=cache, use_cache=True, logits_to_keep=1)
            self.tokens_read += block.shape[1]
        filled: list[Any] = cache.layers
        layers = [(layer.keys, layer.values) for layer in filled]
        if whole:
            self._keep(ids[:whole], [(k[:, :, :whole], v[:, :, :whole]) for k, v in layers])
        return layers

    def of_batch(self, prompts: Sequence[np.ndarray], batch: Sequence[Family]) -> Continued:
        """The beginnings that the rows of a batch go on from, its families one after the other; none has 0 tokens."""
        found, row = [], 0
        for family in batch:
            layers = self.read(prompts[family.members[0]][: family.shared])
            found.append(Beginning(slice(row, row + len(family.members)), layers))
            row += len(family.members)
        return Continued(found)

    def _known(self, ids: np.ndarray) -> tuple[KeysValues, int]:
        """The most blocks that a kept beginning has in common with `ids`, and how many tokens these are."""
        best, found = 0, None
        for name, (tokens, _) in self._kept.items():
            common = common_length(tokens, ids) // BLOCK * BLOCK
            if common > best:
                best, found = common, name
        if found is None:
            return [], 0
        self._kept.move_to_end(found)
        return [(k[:, :, :best], v[:, :, :best]) for k, v in self._kept[found][1]], best

    def _keep(self, ids: np.ndarray, layers: KeysValues) -> None:
        """Remembers a beginning in place of the shorter ones that it continues; the oldest are forgotten."""
        if len(ids) > self.keep_tokens:
            return
        for name, (tokens, _) in list(self._kept.items()):
            common = common_length(tokens, ids)
            if common == len(ids):
                return
            if common == len(tokens):
                del self._kept[name]
        self._kept[ids.tobytes()] = (ids.copy(), layers)
        while sum(len(tokens) for tokens, _ in self._kept.values()) > self.keep_tokens:
            self._kept.popitem(last=False)


def _cache(layers: KeysValues, config: Any) -> DynamicCache:
    """A cache that starts with these states; empty without any."""
    return DynamicCache(layers or None, config=config)
