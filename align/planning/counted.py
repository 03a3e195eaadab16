"""Bytes of layers that are counted one of each kind (counting.py), as activations.py takes them."""

from __future__ import annotations

from align.planning.architecture import Architecture
from align.planning.counting import LayerCounter
from align.planning.job import Precision, Strategy


def counted_layers(
    model: Architecture, precision: Precision, strategy: Strategy, tokens: int
) -> tuple[float, float, float]:
    """Bytes per token that the layer with the most keeps and that all keep, and the bytes of the largest peak.

    48 layers of which every fourth attends: 36 · kept of the one kind and 12 · kept of the other, and a peak of the
    kind that needs more.

    Args:
        model: with a counter.
        precision: under the wrapper.
        strategy: with its levers.
        tokens: of the longest shard that is read at once.
    """
    levers = strategy.levers
    tiled = levers.mlp_chunk is not None and levers.checkpointing != "none"
    size = _size(model, precision, strategy.wrapper)
    found = _counter(model).layers(size, levers.checkpointing, tiled=tiled)
    layers = [found[kind] for kind in model.kinds]
    # The residual stream is in the weights' type, whatever products are in.
    wider = model.hidden * max(0, precision.stream - size)
    tile = min(levers.mlp_chunk or tokens, tokens)
    peak = max(layer.transient * tokens + layer.tile * tile for layer in layers)
    # Adapted experts are summed with their adapters, and the sum has a gradient.
    peak += 2 * model.adapted_experts * size
    return max(layer.kept for layer in layers) + wider, sum(layer.kept + wider for layer in layers), peak


def counted_forward(model: Architecture, precision: Precision, wrapper: str) -> float:
    """Bytes per token of the largest layer's forward without a graph."""
    return _counter(model).forward(_size(model, precision, wrapper))


def _size(model: Architecture, precision: Precision, wrapper: str) -> int:
    """Bytes of a number at which a layer is counted: of the products.

    Under autocast grouped products of experts stay in the weights' type, which FSDP2 has cast.
    """
    experts = model.active < model.all_layers
    return precision.weights if experts and wrapper in ("none", "ddp") else precision.products


def _counter(model: Architecture) -> LayerCounter:
    assert model.counter is not None
    return model.counter
