"""What a model makes of a row's context: the answer's perplexity, and its attention, by segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from align.models.structure import attention_of
from align.models.text_part import text_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from align.data.examples import TokenizedExample

ATTENTION_BYTES = 1 << 28  # attention weights held at once; bounds the answer tokens of one forward

Span = tuple[int, int]


@torch.inference_mode()
def answer_nll(model: PreTrainedModel, example: TokenizedExample) -> float:
    """Mean negative log-prob, nats, of the chosen answer's scored tokens after the prompt."""
    return _nlls(model, example.prompt_ids[None], example)[0]


@torch.inference_mode()
def segment_nlls(
    model: PreTrainedModel, example: TokenizedExample, *, segment_tokens: int, batch: int
) -> list[float]:
    """The same with each segment of the context standing for all of it, one number a segment.

    Args:
        model: in eval mode.
        example: with `chunk_spans`; what stands before the context and behind it stays.
        segment_tokens: tokens of a segment; the last one may be shorter.
        batch: segments of one forward.
    """
    first, last = _context(example)
    spans = segments(example, segment_tokens)
    found: list[float] = []
    # Segments of one length share a batch, so that nothing is padded; only the last one differs.
    whole = [span for span in spans if span[1] - span[0] == segment_tokens]
    for group in [*(whole[i : i + batch] for i in range(0, len(whole), batch)), spans[len(whole) :]]:
        if group:
            ids = np.stack(
                [
                    np.concatenate(
                        [
                            example.prompt_ids[:first],
                            example.prompt_ids[slice(*span)],
                            example.prompt_ids[last:],
                        ]
                    )
                    for span in group
                ]
            )
            found += _nlls(model, ids, example)
    return found


@torch.inference_mode()
def segment_attention(
    model: PreTrainedModel, example: TokenizedExample, *, segment_tokens: int
) -> list[float]:
    """Mean attention of the answer's tokens to a token of each segment, over all layers and heads.

    The prompt is read with the model's own attention into its key-value cache; only the answer's tokens go
    through the eager one, which gives weights, so that memory grows with answer × prompt and not with prompt².
    The token that predicts the answer's first one belongs to the prompt and does not count.
    """
    spans = segments(example, segment_tokens)
    total = torch.zeros(len(spans), dtype=torch.float64)
    for _, attentions in _attended(model, example):
        total += sum(_by_segment(weights, spans) for weights in attentions)
    count = len(example.answers[0].input_ids) * text_config(model.config).num_hidden_layers
    return (total / count).tolist()


@torch.inference_mode()
def answer_attention(model: PreTrainedModel, example: TokenizedExample, *, layer: int) -> np.ndarray:
    """What each of the answer's tokens pays to `example.chunk_spans` together, `[H, n]` shares of its attention.

    As in `segment_attention`, each token of the answer asks for itself: what predicts the first one does not count.

    Args:
        model: in eval mode.
        example: with `chunk_spans`.
        layer: place in the attention that the model reports, from 0.
    """
    columns = torch.zeros(len(example.prompt_ids) + len(example.answers[0].input_ids), dtype=torch.bool)
    for span in example.chunk_spans:
        columns[slice(*span)] = True
    blocks = [on_columns(attentions[layer], columns[:read]) for read, attentions in _attended(model, example)]
    return torch.cat(blocks, dim=1).numpy()


def on_columns(weights: Tensor, columns: Tensor) -> Tensor:
    """`[1, H, R, m]` attention to the last m of n tokens, and which of the n count → their sums `[H, R]`, fp64.

    A layer with a sliding window keeps the last m < n of them; to what left it nothing is paid.
    """
    counted = columns[len(columns) - weights.shape[3] :].to(weights.device)
    return weights[0].double()[..., counted].sum(-1).cpu()


def _attended(model: PreTrainedModel, example: TokenizedExample) -> Iterator[tuple[int, Sequence[Tensor]]]:
    """The answer in blocks: tokens read by a block's end, and each layer's attention `[1, H, R, tokens]` in it."""
    prompt = torch.tensor(example.prompt_ids[None], device=model.device)
    answer = torch.tensor(example.answers[0].input_ids[None], device=model.device)
    cache = model(prompt, use_cache=True, logits_to_keep=1).past_key_values
    config = text_config(model.config)
    a_token = 4 * config.num_hidden_layers * config.num_attention_heads * (prompt.shape[1] + answer.shape[1])
    step = max(1, ATTENTION_BYTES // a_token)
    with attention_of(model, "eager"):
        for start in range(0, answer.shape[1], step):
            block = answer[:, start : start + step]
            output = model(block, past_key_values=cache, use_cache=True, output_attentions=True)
            cache = output.past_key_values
            # Layers that keep a state have none to report, or report None.
            attentions = [weights for weights in output.attentions if weights is not None]
            yield prompt.shape[1] + start + block.shape[1], attentions


def segments(example: TokenizedExample, segment_tokens: int) -> list[Span]:
    """The context's tokens in pieces of `segment_tokens`, as places in the prompt."""
    first, last = _context(example)
    return [(start, min(start + segment_tokens, last)) for start in range(first, last, segment_tokens)]


def _context(example: TokenizedExample) -> Span:
    return example.chunk_spans[0][0], example.chunk_spans[-1][1]


def _by_segment(weights: Tensor, spans: list[Span]) -> Tensor:
    """`[1, H, R, n]` → `[S]`: means over heads and over each segment's tokens, summed over the R queries."""
    queries = weights[0].double().mean(0).sum(0).cpu()  # [n]
    return torch.stack([queries[slice(*span)].mean() for span in spans])


def _nlls(model: PreTrainedModel, prompts: np.ndarray, example: TokenizedExample) -> list[float]:
    """`[B, P]` prompts → one mean over the chosen answer's scored tokens each."""
    answer = example.answers[0]
    ids = np.concatenate([prompts, np.repeat(answer.input_ids[None], len(prompts), axis=0)], axis=1)
    n = len(answer.input_ids)
    inputs = torch.tensor(ids, device=model.device)
    logits = model(inputs, use_cache=False, logits_to_keep=n + 1).logits[:, :-1].float()
    chosen = logits.log_softmax(-1).gather(2, inputs[:, -n:, None])[..., 0]  # [B, n]
    scored = torch.tensor(answer.scored, device=model.device)
    return (-chosen[:, scored].double().mean(1)).tolist()
