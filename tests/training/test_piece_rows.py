"""`method=lm` on rows of pieces: the plain next-token loss over the scored tokens, in fp64, however rows are packed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from align.data.examples import Answer, TokenizedExample
from align.data.piece_rows import Piece, piece_row
from align.data.settings import DataSettings
from align.data.tokens import ExampleTokenizer
from align.longseq import ATTENTION, pack
from align.models.settings import LIBRARY
from align.models.structure import set_reading
from align.training.weighting import prompt_weights
from tests.longseq.plain import gradients, make_example
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.test_language_model import method, our_loss


def rows() -> list[TokenizedExample]:
    """Three rows of pieces, scored and not, by the words of a tiny tokenizer, and one with a prompt and an answer."""
    tokenize = ExampleTokenizer(tiny_tokenizer(), DataSettings(), chunk_tokens=512)
    rng = np.random.default_rng(0)

    def text(count: int, *, scored: bool) -> Piece:
        return Piece(text=" ".join(f"w{n}" for n in rng.integers(8, 100, count)), scored=scored)

    mark = Piece(token="<|im_start|>", scored=False)
    laid_out = [
        [mark, text(5, scored=True), mark, text(3, scored=False), text(4, scored=True)],
        [text(9, scored=True)],
        [text(2, scored=False), Piece(ids=(20, 21), scored=True), mark, mark],
    ]
    found = [piece_row(f"a:{i}", pieces, tokenize) for i, pieces in enumerate(laid_out)]
    return [*found, make_example(rng, prompt=6, answers=[4])]


def plain_loss(model: torch.nn.Module, examples: list[TokenizedExample]) -> Tensor:
    """−(1/n) Σ log π over the scored tokens of all rows, one row after the other, full logits."""
    nats, count = torch.zeros((), dtype=torch.float64), 0
    for one in examples:
        ids = torch.as_tensor(np.concatenate([one.prompt_ids, one.answers[0].input_ids]))
        scored = torch.as_tensor(
            np.concatenate([np.full(len(one.prompt_ids), not one.pieces), one.answers[0].scored])
        )
        logps = model(input_ids=ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        own = logps.gather(-1, ids[1:, None])[scored[1:], 0]
        nats, count = nats - own.sum(), count + len(own)
    return nats / count


@pytest.mark.parametrize("reading", [ATTENTION, LIBRARY])
@pytest.mark.parametrize("tokens_per_row", [None, 1, 24])
def test_loss_and_gradients_are_those_of_the_masked_tokens(reading, tokens_per_row) -> None:
    """All rows in one pack, one each, several of 24 tokens: relative 1e-12 in fp64."""
    plain, own = (tiny_model(initializer_range=0.1).double() for _ in range(2))
    if reading == LIBRARY:
        set_reading(own, reading)
    else:
        own.set_attn_implementation(reading)
    expected, actual = plain_loss(plain, rows()), our_loss(own, rows(), tokens_per_row=tokens_per_row)
    assert actual.item() == pytest.approx(expected.item(), rel=1e-12)
    found, wanted = gradients(own, actual), gradients(plain, expected)
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).norm()) <= 1e-12 * float(gradient.norm()), name


def test_a_row_counts_by_its_scored_tokens() -> None:
    """5 + 4, 8 of 9 and 2 tokens; of the row with a prompt 5 + 4."""
    examples = rows()
    inputs = {"batch": pack(examples), "real": torch.ones(4, dtype=torch.bool)}
    assert prompt_weights(inputs, method().needs.weighting).tolist() == [9, 8, 2, 9]


def test_what_is_not_scored_is_read() -> None:
    """Another unscored token changes the loss of those behind it."""
    model = tiny_model(initializer_range=0.1).double()
    model.set_attn_implementation(ATTENTION)
    first = rows()[0]
    ids = first.answers[0].input_ids.copy()
    ids[np.flatnonzero(~first.answers[0].scored)[-1]] = 99
    other = replace(first, answers=(Answer(ids, first.answers[0].scored),))
    with torch.no_grad():
        assert abs(float(our_loss(model, [first])) - float(our_loss(model, [other]))) > 1e-6
