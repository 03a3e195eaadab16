"""The shared-prefix forward against padded rows on a small random model: the same values and gradients, or what
differs.

Two prompts with two answers each lie in one row. Both ways run in float64, where what is exact agrees to 1e-12 or so
and what is not is off by a thousandth at least, so that a verdict is never a matter of rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from align.core.errors import UserError, first_line
from align.data.examples import Answer, TokenizedExample, with_soft_prompt
from align.longseq.attention import ATTENTION
from align.longseq.float64 import Float64
from align.longseq.forward import pair_logps
from align.longseq.head_probe import check_parts
from align.longseq.plain_rows import plain_pair_logps
from align.longseq.shared_prefix import SharedPrefixBatch, pack
from align.models.patterned_attention import patterned
from align.models.settings import MASKED, OF_LIBRARY
from align.models.small import FIRST_TOKEN, VOCABULARY
from align.models.soft_prompt import soft_ids
from align.models.structure import decoder_layers, find_causal_lm, set_reading
from align.models.text_part import current_attention, set_attention, text_config, text_decoder
from losses.types import PairLogps

# Largest relative errors that count as exact, by the dtype that a class runs in on a CPU.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
LIBRARY = "eager"  # the library's attention that knows every pattern, cap and sink of its models
PROMPTS, ANSWERS = (13, 9), (7, 5)  # tokens; longer than the windows of small copies


class NotProvenError(Exception):
    """The small model does not run on padded rows, so that there is nothing to compare with."""


@dataclass(frozen=True)
class Measured:
    """How far the shared-prefix forward is from padded rows.

    Attributes:
        loss: relative error of the loss.
        gradient: the largest relative error of a parameter's gradient, ‖g − g′‖ / ‖g′‖.
        parameter: whose gradient that is.
        exact: whether both are rounding alone.
        what: where they are not, in words what differs first.
    """

    loss: float
    gradient: float
    parameter: str
    exact: bool
    what: str = ""


def examples() -> list[TokenizedExample]:
    """A prompt with two answers and another with two, the tokens drawn at random but always the same ones."""
    rng = np.random.default_rng(0)

    def tokens(count: int) -> np.ndarray:
        return rng.integers(FIRST_TOKEN, VOCABULARY, count)

    return [
        TokenizedExample(
            f"probe:{i + 1}",
            tokens(prompt),
            np.arange(prompt),
            tuple(Answer(tokens(n - i), np.ones(n - i, dtype=bool)) for n in ANSWERS),
        )
        for i, prompt in enumerate(PROMPTS)
    ]


def measure(model: nn.Module, *, attention: str = "sdpa") -> Measured:
    """Both ways on one model: the loss, every gradient and, where they differ, where it begins.

    Args:
        model: a small causal language model on the CPU, inside PEFT or not, with random weights in float64 or float32.
        attention: as `model.attention`: what is held against padded rows.

    Raises:
        NotProvenError: the model does not run on padded rows, or to numbers that are none.
        UserError: attention or a head that the shared-prefix forward does not take.
    """
    lm = find_causal_lm(model)
    rows = [with_soft_prompt(example, soft_ids(lm)) for example in examples()]
    dtype = next(model.parameters()).dtype
    shared, own = attention not in OF_LIBRARY, current_attention(lm)
    batch = pack(rows)
    with Float64() if dtype == torch.float64 else nullcontext():
        expected = _expected(model, rows)
        set_reading(lm, attention)
        if shared:
            check_parts(lm)
            set_attention(lm, ATTENTION)
        elif attention == MASKED:
            set_attention(lm, own)  # a mask has another form in each
        actual = outcome(model, lambda: pair_logps(model, batch))
        found = compare(actual, expected, TOLERANCE[dtype])
        if found.exact:
            return found
        what = _first_difference(model, rows, batch, found) if shared else _other(found, TOLERANCE[dtype])
        return replace(found, what=what)


Outcome = tuple[Tensor, dict[str, Tensor | None]]


def _library(model: nn.Module) -> str:
    """The attention by masks that knows the model's patterns, its own or chosen ones."""
    return patterned(find_causal_lm(model).config) or LIBRARY


def _expected(model: nn.Module, rows: Sequence[TokenizedExample]) -> Outcome:
    """The step of padded rows through the library's own attention."""
    try:
        set_attention(find_causal_lm(model), _library(model))
        found = outcome(model, lambda: plain_pair_logps(model, rows))
    except UserError:  # a query scale that its attention cannot have
        raise
    except Exception as error:  # whatever the class's own code says
        raise NotProvenError(first_line(error)) from error
    if not bool(torch.isfinite(found[0])):
        raise NotProvenError("its loss on random weights is no number")
    return found


def outcome(
    model: nn.Module,
    forward: Callable[[], PairLogps],
    *,
    loss_of: Callable[[PairLogps], Tensor] | None = None,
) -> Outcome:
    """The loss and every trainable parameter's gradient by name; None of one that takes no part.

    Args:
        model: whose parameters count.
        forward: its log-probs of a batch.
        loss_of: None gives every answer's log-prob a weight of its own.
    """
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    loss = (loss_of or _weighted)(forward())
    values = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return loss.detach(), dict(zip(named, values, strict=True))


def _weighted(logps: PairLogps) -> Tensor:
    """The sum of all answers' log-probs, times 0.5 to 1.5 in their order."""
    sums = torch.cat([logps.chosen, logps.rejected.flatten()])
    return (sums * torch.linspace(0.5, 1.5, len(sums), dtype=sums.dtype)).sum()


def compare(actual: Outcome, expected: Outcome, tolerance: float) -> Measured:
    """Errors relative to what is expected, of small gradients to a hundredth of the largest one.

    Some gradients are 0 but for rounding: that of a bias that every key gets, say.
    """
    loss = abs(float(actual[0] - expected[0])) / abs(float(expected[0]))
    norms = {name: 0.0 if value is None else float(value.norm()) for name, value in expected[1].items()}
    least = 1e-2 * max(norms.values(), default=0.0)
    errors = {
        name: _distance(actual[1][name], value) / max(norms[name], least, 1e-30)
        for name, value in expected[1].items()
    }
    # Of two numbers that are no numbers the error is none either: such a model proves nothing.
    worst = max(errors, key=lambda name: float("inf") if errors[name] != errors[name] else errors[name])
    exact = loss <= tolerance and errors[worst] <= tolerance
    return Measured(loss, errors[worst], worst, exact)


def _distance(value: Tensor | None, other: Tensor | None) -> float:
    """‖g − g′‖, where a gradient that is missing is 0."""
    if value is None or other is None:
        present = other if value is None else value
        return 0.0 if present is None else float(present.norm())
    return float((value - other).norm())


def _first_difference(
    model: nn.Module, rows: Sequence[TokenizedExample], batch: SharedPrefixBatch, found: Measured
) -> str:
    """In words where the two ways part: a layer, the logits, or a gradient alone."""
    lm = find_causal_lm(model)
    tolerance = TOLERANCE[next(model.parameters()).dtype]
    with torch.no_grad():
        set_attention(lm, _library(lm))
        with _layer_outputs(lm) as plain:
            plain_pair_logps(model, rows)
        set_attention(lm, ATTENTION)
        with _layer_outputs(lm) as shared:
            pair_logps(model, batch)
    for (name, own), (_, other) in zip(shared, plain, strict=False):
        if _tokens_differ(own, other, rows, batch, tolerance):
            return f"the output of {name}"
    return _logits_difference(model, rows) if found.loss > tolerance else _other(found, tolerance)


def _other(found: Measured, tolerance: float) -> str:
    """In words what differs where no layer tells."""
    return "the loss" if found.loss > tolerance else f"the gradient of {found.parameter}"


@contextmanager
def _layer_outputs(lm: Any) -> Iterator[list[tuple[str, Tensor]]]:
    """Within it the output of every decoder layer and of the decoder is noted, `[rows, tokens, …]` by name."""
    noted: list[tuple[str, Tensor]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            states = output if isinstance(output, Tensor) else output[0]
            noted.append((name, states.detach()))

        return hook

    layers = decoder_layers(lm)
    types = getattr(text_config(lm.config), "layer_types", None) or [""] * len(layers)
    handles = [
        layer.register_forward_hook(note(f"layer {i} ({_kind(layer, types, i)})"))
        for i, layer in enumerate(layers)
    ]
    handles.append(text_decoder(lm).register_forward_hook(note("the decoder's last norm")))
    try:
        yield noted
    finally:
        for handle in handles:
            handle.remove()


def _kind(layer: nn.Module, types: Sequence[str], i: int) -> str:
    """What a layer is called by the configuration, else by its class."""
    return (types[i] if i < len(types) else "") or type(layer).__name__


def _tokens_differ(
    shared: Tensor,
    plain: Tensor,
    rows: Sequence[TokenizedExample],
    batch: SharedPrefixBatch,
    tolerance: float,
) -> bool:
    """Whether a layer says something else of a token of a prompt or an answer in the one way than in the other."""
    if shared.ndim < 3 or shared.shape[0] != 1 or plain.shape[2:] != shared.shape[2:]:
        return False
    if shared.shape[1] != batch.rows[0].input_ids.shape[1]:
        return False  # the last norm has read the scored tokens alone
    place = 0
    for example, packed in zip(rows, batch.rows[0].layout.prompts, strict=True):
        start, stop = packed.prompt
        for j, (first, last) in enumerate(packed.answers):
            own = torch.cat([shared[0, start:stop], shared[0, first:last]])
            other = plain[place + j, : len(own)]
            if float((own - other).norm()) > tolerance * float(other.norm()):
                return True
        place += len(example.answers)
    return False


def _logits_difference(model: nn.Module, rows: Sequence[TokenizedExample]) -> str:
    """In words what stands between the output embedding and the logits: a factor, or something else."""
    lm = find_causal_lm(model)
    set_attention(lm, _library(lm))
    hidden: list[Tensor] = []
    handle = text_decoder(lm).register_forward_hook(lambda *all: hidden.append(all[2][0]))
    ids = torch.as_tensor(rows[0].prompt_ids)[None]
    try:
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits
            plain = lm.get_output_embeddings()(hidden[-1])
    finally:
        handle.remove()
    if plain.shape != logits.shape:
        return "the number of logits"
    ratio = float((logits * plain).sum() / (plain * plain).sum())
    if float((logits - ratio * plain).norm()) < 1e-6 * float(logits.norm()):
        return f"the logits, by a factor of {ratio:.4g},"
    return "what stands between the output embedding and the logits"
