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
    sizes = _sizes(model, precision, strategy.wrapper)
    found = {size: _counter(model).layers(size, levers.checkpointing, tiled=tiled) for size in set(sizes)}
    layers = [found[size][kind] for size, kind in zip(sizes, model.kinds, strict=True)]
    # The residual stream is in the weights' type, whatever products are in.
    wider = [model.hidden * max(0, precision.stream - size) for size in sizes]
    kept = [layer.kept + more for layer, more in zip(layers, wider, strict=True)]
    tile = min(levers.mlp_chunk or tokens, tokens)
    peak = max(layer.transient * tokens + layer.tile * tile for layer in layers)
    # Adapted experts are summed with their adapters, and the sum has a gradient.
    peak += 2 * model.adapted_experts * max(sizes)
    return max(kept), sum(kept), peak


def counted_forward(model: Architecture, precision: Precision, wrapper: str) -> float:
    """Bytes per token of the largest layer's forward without a graph."""
    return _counter(model).forward(max(_sizes(model, precision, wrapper)))


def _sizes(model: Architecture, precision: Precision, wrapper: str) -> list[int]:
    """Bytes of a number at which each layer is counted: of the products.

    Under autocast grouped products of experts stay in the weights' type, which FSDP2 has cast.
    """
    uncast = precision.weights if wrapper in ("none", "ddp") else precision.products
    return [uncast if share else precision.products for share in model.with_experts]


def _counter(model: Architecture) -> LayerCounter:
    assert model.counter is not None
    return model.counter
