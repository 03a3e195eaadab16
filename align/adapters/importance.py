"""How much each neuron matters for general text, and gradients that spare those that do: CoFiTune's soft mask.

CoFiTune (arXiv 2404.10306), fine stage. A virtual mask of ones is laid on the outputs of every up and down projection;
the model reads a text twice with dropout, and the gradient of the two outputs' divergence on the masks, added up over
texts, says how much each neuron matters. In training the row of a neuron of importance 0.8 gets a fifth of its
gradient.

The mask is one number for each output neuron, that is for each row of a weight, as the paper has it. The released code
lays it over the weights' flat storage under ZeRO-3, where it meets other rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import dropout, kl_div

from align.core.errors import UserError
from align.models.structure import attention_of, evaluating, find_causal_lm, library_attention

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RATE = 0.003  # of the dropout between the two readings, as published
LONGEST = 512  # tokens of a text that are read, as published
_SCALE = 0.1  # of the divergence, as published; what follows does not depend on it
DOWN = "down_proj"


def importance(raw: Tensor) -> Tensor:
    """|tanh(z)| of what the masks' gradients have added up to in one layer, z their distance from the layer's mean.

    The distance is in standard deviations (of a sample, n − 1): [.01, −.02, .005, .001] becomes [0.6826, 0.8938,
    0.4259, 0.1505].

    Args:
        raw: `[n]`, a number for each neuron of a layer.

    Returns:
        `[n]`, from 0 to 1.
    """
    return ((raw - raw.mean()) / raw.std()).tanh().abs()


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """0.1 · KL(softmax(second) ‖ softmax(first)), summed over tokens, a mean over rows.

    Args:
        first, second: `[B, T, V]` logits.
    """
    return _SCALE * kl_div(first.log_softmax(-1), second.softmax(-1), reduction="batchmean")


def measure(model: nn.Module, texts: Sequence[Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The importance of every output of some projections, each `[out]` in fp32.

    Every text is read by itself, with dropout on the down projections' outputs and on attention's weights that follows
    from its number, so that one process and several that share the texts find the same. No layer is checkpointed: of a
    text of 512 tokens all activations are kept, twice.

    Args:
        model: the starting model, inside PEFT or not; an adapter is switched off. Its weights have to be whole.
        texts: `[T]` token ids of each; all processes give the same.
        names: of the projections in the model without PEFT.
    """
    lm = find_causal_lm(model)
    layers = {name: _original(lm.get_submodule(name)) for name in names}
    some = next(lm.parameters())
    device, dtype = some.device, torch.promote_types(some.dtype, torch.float32)
    masks = {
        name: torch.ones(len(_weight(layer)), device=device, dtype=dtype) for name, layer in layers.items()
    }
    for mask in masks.values():
        mask.requires_grad_()
    sums = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    first, processes = (dist.get_rank(), dist.get_world_size()) if _several() else (0, 1)
    on_device = [device.index or 0] if device.type == "cuda" else []
    with _read_alone(model, lm), _masked(lm, layers, masks), torch.random.fork_rng(on_device):
        for number in range(first, len(texts), processes):
            torch.manual_seed(number)
            ids = texts[number].to(device)[None]
            once, again = (lm(input_ids=ids, use_cache=False).logits.to(dtype) for _ in range(2))
            found = torch.autograd.grad(divergence(once, again), list(masks.values()))
            for total, gradient in zip(sums.values(), found, strict=True):
                total += gradient
    if _several():
        for total in sums.values():
            dist.all_reduce(total)
    tokens = sum(map(len, texts))
    return {name: importance(total / tokens).float().cpu() for name, total in sums.items()}


def spare(model: nn.Module, found: Mapping[str, Tensor], *, source: str) -> None:
    """Has what trains of each projection get 1 − importance of its gradient, row by row.

    The gradient is scaled before it is added to others, so that accumulation, the mean over processes and clipping see
    scaled ones.

    Args:
        model: with a trained copy of each projection (copies.py), whole on every process.
        found: importance `[out]` by the projection's name; those that do not train are passed over.
        source: where it comes from, for messages.

    Raises:
        UserError: a projection that trains is not among them, or has another size.
    """
    from peft.tuners.ln_tuning.layer import LNTuningLayer

    for name, layer in find_causal_lm(model).named_modules():
        if not isinstance(layer, LNTuningLayer) or not isinstance(_original(layer), nn.Linear):
            continue
        copy: Any = layer.ln_tuning_layers["default"]
        if name not in found or found[name].shape != (len(copy.weight),):
            raise UserError(
                f"adapter.soft_mask={source} has no {len(copy.weight)} numbers for {name}: make it of this model, with "
                "a file of texts in its place."
            )
        for weight in copy.parameters(recurse=False):
            weight.register_hook(_scaling(1.0 - found[name]))


def read_texts(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """The first 512 tokens of each text of a file of JSON Lines, the text under `text`.

    Raises:
        UserError: a line without one, or none at all.
    """
    texts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, TypeError, KeyError):
            text = None
        if not isinstance(text, str) or not text:
            raise UserError(
                f'adapter.soft_mask={path}: line {number} is no text: give {{"text": "…"}} in each line.'
            )
        texts.append(torch.tensor(tokenizer(text).input_ids[:LONGEST]))
    if not texts:
        raise UserError(f"adapter.soft_mask={path} holds no text.")
    return texts


def _scaling(factors: Tensor) -> Any:
    """A hook that multiplies the rows of a gradient `[out, …]`."""

    def scale(gradient: Tensor) -> Tensor:
        return gradient * factors.to(gradient).view(-1, *[1] * (gradient.ndim - 1))

    return scale


def _original(layer: nn.Module) -> nn.Module:
    """What an adapter's layer was put on."""
    original: nn.Module = getattr(layer, "base_layer", layer)
    return original


def _weight(layer: nn.Module) -> Tensor:
    weight: Tensor = layer.get_parameter("weight")
    return weight


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def _read_alone(model: Any, lm: Any) -> Iterator[None]:
    """Within it the starting model reads plain rows with its library's attention, whose weights are dropped out."""
    with ExitStack() as stack:
        if hasattr(model, "disable_adapter"):
            stack.enter_context(model.disable_adapter())
        stack.enter_context(attention_of(lm, library_attention(lm)))
        stack.enter_context(evaluating(lm))
        drawing = [
            each for each in lm.modules() if isinstance(getattr(each, "attention_dropout", None), int | float)
        ]
        before = [each.attention_dropout for each in drawing]
        for each in drawing:
            each.attention_dropout, each.training = RATE, True
        try:
            yield
        finally:
            for each, rate in zip(drawing, before, strict=True):
                each.attention_dropout, each.training = rate, False


@contextmanager
def _masked(lm: nn.Module, layers: Mapping[str, nn.Module], masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it the projections' outputs are multiplied by their masks, and those of down projections dropped out."""

    def masking(mask: Tensor) -> Any:
        return lambda module, args, output: output * mask.to(output.dtype)

    def dropping(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return dropout(output, RATE, training=True)

    handles = [layer.register_forward_hook(masking(masks[name])) for name, layer in layers.items()]
    downs = [module for name, module in lm.named_modules() if name.rpartition(".")[2] == DOWN]
    handles += [_original(module).register_forward_hook(dropping) for module in downs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
