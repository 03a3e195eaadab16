"""The plain way that the shared-prefix forward is held against, and how gradients are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from align.data.examples import Answer, TokenizedExample
from align.training.method_settings import Needs
from losses.types import PairLogps


def make_example(
    rng: np.random.Generator,
    *,
    prompt: int,
    answers: Sequence[int],
    vocabulary: int = 128,
    jump: int = 0,
    step: int = 1,
) -> TokenizedExample:
    """Random tokens at positions by `step`; `jump` is added to those of the prompt's second half."""
    positions = step * np.arange(prompt)
    positions[prompt // 2 :] += jump
    return TokenizedExample(
        source="random:1",
        prompt_ids=rng.integers(4, vocabulary, prompt),
        position_ids=positions,
        answers=tuple(Answer(rng.integers(4, vocabulary, n), np.ones(n, dtype=bool)) for n in answers),
        chunk_spans=((1, max(2, prompt - 2)),) if prompt > 4 else (),
        position_step=step,
    )


def as_needed(rng: np.random.Generator, example: TokenizedExample, needs: Needs) -> TokenizedExample:
    """The row, and its short ones, with all that a method reads of it beside its texts, at random."""
    if needs.columns:
        count = len(example.answers)
        labels = np.zeros(
            count
        )  # the own answer is good; the next one, where a loss reads such a one, another prompt's
        labels[0], labels[1:2] = 1.0, -1.0 if needs.answers == "unrelated" else 0.0
        numbers = [labels if kind == "label" else rng.random(count) for kind in needs.columns.values()]
        example = replace(example, columns=np.array(numbers))
    if needs.token_weights:
        example = replace(
            with_weights(rng, example), short=tuple(with_weights(rng, one) for one in example.short)
        )
    return example


def with_weights(rng: np.random.Generator, example: TokenizedExample) -> TokenizedExample:
    """Random weights of tokens; some are 0."""
    answers = [
        replace(answer, weights=rng.random(len(answer.input_ids)) * (rng.random(len(answer.input_ids)) > 0.2))
        for answer in example.answers
    ]
    return replace(example, answers=tuple(answers))


def plain_pair_logps(model: nn.Module, examples: Sequence[TokenizedExample]) -> PairLogps:
    """One right-padded row for each answer, through the library's own attention and full logits."""
    slots = max(len(example.answers) for example in examples)
    rows = [
        (b, j, example, answer)
        for b, example in enumerate(examples)
        for j, answer in enumerate(example.answers)
    ]
    longest = max(len(example.prompt_ids) + len(answer.input_ids) for _, _, example, answer in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    positions = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, (_, _, example, answer) in enumerate(rows):
        tokens = np.concatenate([example.prompt_ids, answer.input_ids])
        after = example.position_ids[-1] + example.position_step * (1 + np.arange(len(answer.input_ids)))
        after = after if answer.positions is None else answer.positions
        ids[i, : len(tokens)] = torch.as_tensor(tokens)
        positions[i, : len(tokens)] = torch.as_tensor(np.concatenate([example.position_ids, after]))
        mask[i, : len(tokens)] = 1
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    logps = logits.log_softmax(-1)
    sums = [[torch.zeros((), dtype=torch.float64) for _ in range(slots)] for _ in examples]
    lengths = torch.zeros(len(examples), slots, dtype=torch.long)
    nll: list[Tensor] = []
    tokens = [
        [torch.zeros(0, dtype=torch.float64) for _ in range(slots)] for _ in examples
    ]  # their log-probs
    sure = torch.zeros(len(examples), slots, dtype=torch.float64)
    weights = [[torch.zeros(0, dtype=torch.float64) for _ in range(slots)] for _ in examples]
    for i, (b, j, example, answer) in enumerate(rows):
        start = len(example.prompt_ids)
        stop = start + len(answer.input_ids)
        targets = ids[i, 1:stop, None].clamp(
            max=logps.shape[-1] - 1
        )  # a soft prompt's tokens are never scored
        token_logps = logps[i, : stop - 1].gather(-1, targets).squeeze(-1).double()
        scored = torch.as_tensor(answer.scored)
        sums[b][j] = token_logps[start - 1 :][scored].sum()
        lengths[b, j] = int(scored.sum())
        tokens[b][j] = token_logps[start - 1 :][scored]
        own = np.ones(len(answer.input_ids)) if answer.weights is None else answer.weights
        weights[b][j] = torch.as_tensor(own)[scored]
        sure[b, j] = logps[i, start - 1 : stop - 1].double().exp().square().sum(-1).log()[scored].sum()
        if j == 0:
            nll.append(-token_logps[example.soft :].mean())
    stacked = torch.stack([torch.stack(row) for row in sums])
    pairs = [(row, j, min(len(row[0]), len(row[j]))) for row in tokens for j in range(1, slots)]
    fronts = [
        torch.stack([row[k * j][:cut].sum() for row, j, cut in pairs] or [stacked[0, 0]]) for k in (0, 1)
    ]
    shaped = [front[: len(pairs)].view(len(examples), slots - 1) for front in fronts]
    both = [list(zip(own, other, strict=True)) for own, other in zip(tokens, weights, strict=True)]
    return PairLogps(
        *(stacked[:, 0], stacked[:, 1:], lengths[:, 0], lengths[:, 1:]),
        nll=torch.stack(nll),
        weighted=torch.stack([torch.stack([(own * weight).sum() for own, weight in row]) for row in both]),
        weight=torch.stack([torch.stack([weight.sum() for _, weight in row]) for row in both]),
        chosen_front=shaped[0],
        rejected_front=shaped[1],
        collision=sure.detach(),
    )


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Every trainable parameter's gradient by name; the model's own `.grad` stays empty."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    values = torch.autograd.grad(loss, [parameter for _, parameter in named])
    return {name: value for (name, _), value in zip(named, values, strict=True)}


def relative_error(value: Tensor, expected: Tensor) -> float:
    """‖g − g′‖ / ‖g′‖."""
    scale = expected.norm().item()
    assert scale > 0, "an expected gradient of 0 proves nothing"
    return (value - expected).norm().item() / scale


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], *, tolerance: float = 1e-5) -> None:
    """Same parameters, each within `tolerance` relative error."""
    assert actual.keys() == expected.keys()
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= tolerance, f"{worst}: relative error {errors[worst]:.2e}"


def randomise_lora_b(model: nn.Module, seed: int = 0) -> None:
    """At initialisation B is 0 and with it A's gradient: a comparison there would prove nothing about A."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.1
