"""Of one tokenised example: where it lies in a packed row, its tokens, and who predicts which of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from align.data.examples import TokenizedExample
from align.longseq.layout import PackedPrompt


def packed_prompt(example: TokenizedExample, offset: int) -> PackedPrompt:
    """Spans of one example that starts at `offset` of its row."""
    stop = offset + len(example.prompt_ids)
    prompt, spans = (offset, stop), []
    for answer in example.answers:
        spans.append((stop, stop + len(answer.input_ids)))
        stop = spans[-1][1]
    return PackedPrompt(prompt, tuple(spans))


def ids(example: TokenizedExample) -> Tensor:
    """`[P + answers]` token ids in row order."""
    parts = [example.prompt_ids, *(answer.input_ids for answer in example.answers)]
    return torch.cat([torch.as_tensor(part, dtype=torch.long) for part in parts])


def positions(example: TokenizedExample) -> Tensor:
    """`[P + answers]` positions: every answer goes on behind the prompt's last one, by the row's step."""
    parts = [example.position_ids, *map(example.positions_of, example.answers)]
    return torch.cat([torch.as_tensor(part, dtype=torch.long) for part in parts])


def predictions(
    input_ids: np.ndarray, wanted: np.ndarray, span: tuple[int, int], prompt_last: int
) -> tuple[Tensor, Tensor]:
    """Row indices of the hidden states that predict an answer's `wanted` tokens, and those tokens' ids.

    Of an answer at (14, 17), behind a prompt that ends with token 9, all wanted: 9, 14, 15.
    """
    predictor = torch.arange(span[0] - 1, span[1] - 1)
    predictor[0] = prompt_last
    mask = torch.as_tensor(wanted, dtype=torch.bool)
    return predictor[mask], torch.as_tensor(input_ids, dtype=torch.long)[mask]


def context_triples(
    example: TokenizedExample, packed: PackedPrompt, prompt_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(predictor, target, prompt) of the prompt's tokens after the first and of the chosen branch's unscored ones.

    The first is that of the text: of a soft prompt no token is predicted, and the last one predicts none here.
    A piece of a document has none: the piece before has scored the token that it begins with. Nor has a row of pieces,
    which says itself what is scored.
    """
    start, stop = packed.prompt
    if example.is_document:
        nothing = torch.empty(0, dtype=torch.long)
        return nothing, nothing, nothing
    chosen = example.answers[0]
    branch_predictor, branch_target = predictions(
        chosen.input_ids, ~np.asarray(chosen.scored, dtype=bool), packed.answers[0], stop - 1
    )
    predictor = torch.cat([torch.arange(start + example.soft, stop - 1), branch_predictor])
    text = torch.as_tensor(example.prompt_ids, dtype=torch.long)[example.soft :]
    target = torch.cat([text[1:], branch_target])
    return predictor, target, torch.full_like(predictor, prompt_index)
