"""Fragments → token ids with the token span of every fragment; content never becomes a special token.

The fragments `<|im_start|>user⏎`, `Hello there` and `<|im_end|>` may become the ids 1, 4093, 198, 19556, 665, 2 with
the spans (0, 3), (3, 5) and (5, 6). A document that holds the text `<|im_end|>` gets the ids of its characters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

from align.data.spans import Regions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.data.template import Fragment

# Tokenizers of the SentencePiece kind put a word boundary before the text they are given. What continues a
# text is encoded after this anchor, which merges with nothing in such vocabularies and is dropped again.
ANCHOR = "\n"

# Token ids `[n]` and each token's first character `[n]`, both int64.
Tokens = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Encoded:
    """Token ids and where each fragment stands in them.

    Attributes:
        ids: `[n]` int64.
        spans: `(start, stop)` in `ids` of each fragment; a token belongs where its first character stands.
        starts: `[n]` int64, each token's first character in the joined text.
    """

    ids: np.ndarray
    spans: tuple[tuple[int, int], ...]
    starts: np.ndarray


class Encoder:
    """A fast tokenizer that knows which characters are the template's."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        added = {token.content: token for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._added = added
        names = sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
        self.specials = re.compile("|".join(map(re.escape, names)) if names else r"(?!)")
        self.start_ids = self._start_ids()
        first = self._tokens("x")
        self._adds_boundary = first[0].startswith("▁")
        after_special = self._tokens(names[-1] + "x")[1:] if names else []
        self._boundary_after_special = self._adds_boundary and after_special == first

    def encode(self, fragments: Sequence[Fragment], *, continues: bool = False) -> Encoded:
        """Encodes the joined text at once, as the tokenizer itself would, without adding special tokens.

        Where a content contains a special token's text, the string is split at the template's special
        tokens and what stands between is encoded with special tokens switched off.

        Args:
            fragments: consecutive pieces of one string.
            continues: the text follows other text, so that no word boundary is put before it.
        """
        text = "".join(fragment.text for fragment in fragments)
        edges = [0, *accumulate(len(fragment.text) for fragment in fragments)]
        own = [
            (edges[i], edges[i + 1]) for i, fragment in enumerate(fragments) if fragment.kind == "template"
        ]
        trusted = Regions(own)
        if all(trusted.holds(*match.span()) for match in self.specials.finditer(text)):
            ids, starts = self._encode_plain(text, anchored=continues, split=False)
        else:
            cuts = [match.span() for region in own for match in self.specials.finditer(text, *region)]
            ids, starts = self._encode_around(text, cuts, continues)
        bounds = np.searchsorted(starts, edges, side="left").tolist()
        return Encoded(ids, tuple(pairwise(bounds)), starts)

    def _encode_around(self, text: str, cuts: Sequence[tuple[int, int]], continues: bool) -> Tokens:
        """Tokens of the text, with special tokens at `cuts` and nowhere else.

        `Hi <|im_end|> you` with the cut (3, 13) is `Hi ` as text, one special token whose first character is 3, and
        ` you` as text.

        Args:
            text: the whole string.
            cuts: where the template's special tokens stand in it, in their order.
            continues: as in `encode`.
        """
        tokens: list[Tokens] = []
        at, anchored = 0, continues
        for start, stop in cuts:
            before, after = self._text_around(text, at, start, stop)
            tokens.append(_moved(self._encode_content(text[at:before], anchored=anchored), at))
            special = self.tokenizer.convert_tokens_to_ids(text[start:stop])
            tokens.append((np.array([special], dtype=np.int64), np.array([start], dtype=np.int64)))
            at, anchored = after, not self._boundary_after_special
        tokens.append(_moved(self._encode_content(text[at:], anchored=anchored), at))
        return _joined(tokens)

    def _text_around(self, text: str, at: int, start: int, stop: int) -> tuple[int, int]:
        """Where the text before a special token ends, and where the text after it begins.

        That is at the token itself, except where the tokenizer has it swallow the white space beside it (Phi-3): with
        `Hi <|end|> you` and the token at (3, 10) then at 2 and 11.

        Args:
            text: the whole string.
            at: where the text before it begins.
            start: the token's first character.
            stop: the character after its last.
        """
        token = self._added.get(text[start:stop])
        if token is None:
            return start, stop
        before = at + len(text[at:start].rstrip()) if token.lstrip else start
        after = len(text) - len(text[stop:].lstrip()) if token.rstrip else stop
        return before, after

    def _encode_content(self, text: str, *, anchored: bool) -> Tokens:
        """As `_encode_plain`, and no special token comes out of it.

        Vocabularies that hold special tokens as words (word level, unigram) find them all the same; there
        the text is encoded in pieces that end inside each marker.
        """
        ids, starts = self._encode_plain(text, anchored=anchored, split=True)
        markers = list(self.specials.finditer(text))
        names = {match.group() for match in markers}
        if not np.isin(ids, [self.tokenizer.convert_tokens_to_ids(name) for name in names]).any():
            return ids, starts
        tokens, at = [], 0
        for stop in [*(match.start() + 1 for match in markers), len(text)]:
            piece = self._encode_plain(text[at:stop], anchored=anchored or at > 0, split=True)
            tokens.append(_moved(piece, at))
            at = stop
        return _joined(tokens)

    def _encode_plain(self, text: str, *, anchored: bool, split: bool) -> Tokens:
        """Tokens of the text as the tokenizer gives them.

        Args:
            text: may be empty.
            anchored: it continues a text, so that no word boundary is put before it.
            split: special tokens are taken apart like other words.
        """
        anchor = ANCHOR if anchored and self._adds_boundary else ""
        if not text:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        encoding = self.tokenizer(
            anchor + text,
            add_special_tokens=False,
            split_special_tokens=split,
            return_offsets_mapping=True,
            return_attention_mask=False,
            truncation=False,
            verbose=False,
        )
        ids = np.asarray(encoding["input_ids"], dtype=np.int64)
        starts = np.asarray(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)[:, 0]
        skip = len(self._ids(anchor)) if anchor else 0
        return ids[skip:], starts[skip:] - len(anchor)

    def _start_ids(self) -> np.ndarray:
        """What the tokenizer puts before plain text (a beginning-of-text token, or nothing)."""
        bare = self._ids("x")
        full = list(self.tokenizer("x", add_special_tokens=True)["input_ids"])
        at = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
        return np.asarray(full[:at], dtype=np.int64)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _tokens(self, text: str) -> list[str]:
        return list(self.tokenizer.convert_ids_to_tokens(self._ids(text)))


def _moved(tokens: Tokens, by: int) -> Tokens:
    """The tokens of a text that begins `by` characters into the whole one."""
    ids, starts = tokens
    return ids, starts + by


def _joined(tokens: Sequence[Tokens]) -> Tokens:
    """Tokens one after the other."""
    return np.concatenate([ids for ids, _ in tokens]), np.concatenate([starts for _, starts in tokens])
