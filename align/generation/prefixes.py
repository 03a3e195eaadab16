"""Prompts that begin alike: which ones, and their common prefix read once into a key-value cache.

A prefix is read in blocks of `BLOCK` tokens, a row by itself. What a block's keys and values are depends
on the tokens up to its end and on nothing else: not on who shares the prefix, nor on what was read
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
from align.generation.prefix_attention import KeysValues, Prefix, PrefixedBatch
from align.longseq.support import check_config
from align.models.text_part import text_config
from align.patterns.layers import limit_of

BLOCK = 512  # tokens read at once; also the unit of what is kept for later calls
TRIED = 8  # tokens of each row that `reads_alike` tries
ROUNDING = 0.05  # probability that may move between tokens, in bfloat16
LEAST_SHARED = 32  # tokens: a shorter common prefix (a template's) is not worth a forward of its own


@dataclass(frozen=True)
class Family:
    """Requests with a common prefix.

    `Family((0, 3), 90)`: the prompts 0 and 3 have their first 90 tokens in common, which are read once for both.

    Attributes:
        members: their places.
        shared: tokens of the prefix that is read once; 0 is a prompt that is read in a padded batch.
    """

    members: tuple[int, ...]
    shared: int


def find_families(prompts: Sequence[np.ndarray], samplings: Sequence[object]) -> list[Family]:
    """Every prompt in one family; a pure function of its arguments.

    Neighbours in the order of their tokens are joined while at least half of every prompt is common to all.
    At least one token of each prompt stays out of the prefix, since the first answer token is predicted
    from it. A prompt of two blocks or more is read by itself even where nobody shares it: that costs
    nothing at such a length, and later calls can take its blocks over.

    Three prompts of 100 tokens, of which two have the first 90 in common and the third none: the first two are a
    family that shares 90, and the third one is read in a padded batch.

    Args:
        prompts: `[n]` ids of each.
        samplings: `[n]` of each; prompts of different ones are never joined.
    """
    order = sorted(
        range(len(prompts)), key=lambda i: (repr(samplings[i]), prompts[i].astype(">u4").tobytes(), i)
    )
    families: list[_Growing] = []
    for place in order:
        last = families[-1] if families else None
        alike = last is not None and samplings[last.members[0]] == samplings[place]
        if last is None or not alike or not last.take(place, prompts[place]):
            families.append(_Growing(place, prompts[place]))
    return [family.closed() for family in families]


class _Growing:
    """A family that its next neighbour may join.

    Attributes:
        members: places of its prompts.
        shared: tokens that all have in common; at most all but the last one of each.
        longest: tokens of its longest prompt.
    """

    def __init__(self, place: int, prompt: np.ndarray) -> None:
        self.members = [place]
        self.shared, self.longest = len(prompt) - 1, len(prompt)
        self._first = prompt

    def take(self, place: int, prompt: np.ndarray) -> bool:
        """Lets a prompt join if enough of it and of every member stays common; tells whether it did."""
        shared = min(self.shared, common_length(self._first, prompt), len(prompt) - 1)
        longest = max(self.longest, len(prompt))
        if shared < LEAST_SHARED or 2 * shared < longest:
            return False
        self.members.append(place)
        self.shared, self.longest = shared, longest
        return True

    def closed(self) -> Family:
        """The family that it has become; a single prompt of less than two blocks has no prefix."""
        alone = len(self.members) == 1
        return Family(tuple(self.members), 0 if alone and self.shared < 2 * BLOCK else self.shared)


def common_length(first: np.ndarray, second: np.ndarray) -> int:
    """Tokens that two prompts have in common from their start: 2 of `1 2 3` and `1 2 4 3`."""
    size = min(len(first), len(second))
    different = np.flatnonzero(first[:size] != second[:size])
    return int(different[0]) if len(different) else size


# Keys of attention that prefix_attention.py does not compute: soft caps, values of another width than keys.
_OTHER_ATTENTION = ("attn_logit_softcapping", "kv_lora_rank")


def can_share(config: Any) -> bool:
    """Whether every layer keeps keys and values of all tokens, and all see them: no window, no state, no latents.

    Whether they attend as prefix_attention.py does, the model itself shows (`reads_alike`).
    """
    try:
        check_config(config)
    except UserError:
        return False
    if limit_of(text_config(config)) is not None:
        return False
    values = config.get_text_config().to_dict()
    if any(values.get(key) for key in _OTHER_ATTENTION) or set(values.get("layer_types") or ()) - {
        "full_attention"
    }:
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


@torch.inference_mode()
def reads_alike(model: Any) -> bool:
    """Whether a model says the same behind a common prefix as of rows read whole: tried with two rows of a few tokens.

    A layer that asks for what prefix_attention.py does not compute (soft-capped scores) says so there; what a model
    does unasked would show in the probabilities of the next token, which may differ by rounding alone.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.arange(2 * TRIED, device=model.device).view(2, TRIED) % vocabulary
    ids[1, : TRIED // 2] = ids[0, : TRIED // 2]
    whole = model(ids, use_cache=False).logits[:, -1]
    layers = PrefixReader(model, keep_tokens=0).read(ids[0, : TRIED // 2].cpu().numpy())
    batch = PrefixedBatch([Prefix(slice(0, 2), layers)])
    try:
        with batch.attended_by(model):
            shared = model(
                ids[:, TRIED // 2 :],
                attention_mask=torch.ones_like(ids),
                past_key_values=batch.cache(),
                use_cache=True,
            ).logits[:, -1]
    except UserError:
        return False
    difference = whole.float().softmax(-1) - shared.float().softmax(-1)
    return bool(difference.abs().sum(-1).max() < ROUNDING)


class PrefixReader:
    """Reads prefixes, and keeps whole blocks of the latest ones.

    Args:
        model: a causal model for which `can_share`.
        keep_tokens: most tokens of all prefixes kept for later calls.
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

    def of_batch(self, prompts: Sequence[np.ndarray], batch: Sequence[Family]) -> PrefixedBatch:
        """The prefixes that the rows of a batch go on from, its families one after the other; none has 0 tokens."""
        found, row = [], 0
        for family in batch:
            layers = self.read(prompts[family.members[0]][: family.shared])
            found.append(Prefix(slice(row, row + len(family.members)), layers))
            row += len(family.members)
        return PrefixedBatch(found)

    def _known(self, ids: np.ndarray) -> tuple[KeysValues, int]:
        """The most blocks that a kept prefix has in common with `ids`, and how many tokens these are."""
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
        """Remembers a prefix in place of the shorter ones that it continues; the oldest are forgotten.

        A prefix of 1,024 tokens takes the place of its own first 512; where both would exceed `keep_tokens` with what
        is kept already, whatever was used longest ago goes.
        """
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
