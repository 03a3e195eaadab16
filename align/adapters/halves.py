"""Half of a model's weights, drawn as HFT does: the half that trains, or that stays as trained in a half reset.

Half Fine-Tuning (arXiv 2404.18466) draws by category: in each layer two of the attention's four matrices; of the MLP's
three two in a random half of the layers and one in the other half; half of the norms. What lies outside of the layers
(embedding, output head, last norm) always trains.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

Shapes = Mapping[str, Sequence[int]]
Groups = dict[str, dict[int, list[str]]]  # group → layer → the layer's units of that group
_NORMS = "norms"


def trained_half(shapes: Shapes, *, scope: str, seed: int) -> frozenset[str]:
    """The names of the parameters that train; the others are frozen, or set back.

    A matrix and its bias go together, and so do the weights of any other module. A group with an odd number of
    matrices (gate, up, down) gets the larger part in half of its layers, rounded down. The draw depends on the names,
    the scope and the seed alone: neither on torch's or numpy's global state nor on the order of `shapes`. A list of
    layers of its own, as a vision tower has, is drawn for itself.

    Args:
        shapes: name of each parameter → its shape, as in `named_parameters()` or in a checkpoint:
            `model.layers.0.self_attn.q_proj.weight` → `(576, 576)`.
        scope: of what half is taken. `category`: of each layer's attention, MLP and norms. `layer`: of the layers, each
            whole. `model`: of all matrices of the layers, and of all their norms. Halves of an odd number of layers or
            matrices are rounded up.
        seed: 0 or more; another one for each stage draws another half.

    Returns:
        The names of what trains, with everything outside of the layers.

    Raises:
        ValueError: another scope, or no parameter lies in a numbered layer.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope={scope} is not known: use one of {', '.join(SCOPES)}")
    stacks: dict[str, Groups] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    units = _units(shapes)
    outside = set(units)
    for unit, names in units.items():
        place = _place(unit)
        if place is not None:
            stack, layer, inner = place
            flat = all(len(shapes[name]) < 2 for name in names)
            group = _NORMS if flat else inner.rpartition(".")[0]
            stacks[stack][group][layer].append(unit)
            outside.discard(unit)
    if not stacks:
        raise ValueError(
            "no parameter lies in a numbered layer, such as model.layers.0.self_attn.q_proj.weight"
        )
    chosen = outside.union(*(SCOPES[scope](name, groups, seed) for name, groups in stacks.items()))
    return frozenset(name for unit in chosen for name in units[unit])


def _units(shapes: Shapes) -> dict[str, list[str]]:
    """What is drawn as one, by name: a module's weight and bias; a parameter of another name by itself."""
    units: dict[str, list[str]] = defaultdict(list)
    for name in sorted(shapes):
        module, _, leaf = name.rpartition(".")
        units[module if leaf in ("weight", "bias") else name].append(name)
    return dict(units)


def _place(unit: str) -> tuple[str, int, str] | None:
    """`("model.layers", 0, "self_attn.q_proj")` of `model.layers.0.self_attn.q_proj`; None outside of layers."""
    words = unit.split(".")
    for i, word in enumerate(words):
        if word.isdigit():
            return ".".join(words[:i]), int(word), ".".join(words[i + 1 :])
    return None


def _by_category(stack: str, groups: Groups, seed: int) -> Iterable[str]:
    for group, layers in groups.items():
        draw = _draw(seed, "category", stack, group)
        numbers = sorted(layers)
        larger = {numbers[i] for i in draw.permutation(len(numbers))[: len(numbers) // 2]}
        for number in numbers:
            units = sorted(layers[number])
            count = (len(units) + (number in larger)) // 2
            yield from (units[i] for i in draw.permutation(len(units))[:count])


def _by_layer(stack: str, groups: Groups, seed: int) -> Iterable[str]:
    numbers = sorted({number for layers in groups.values() for number in layers})
    order = _draw(seed, "layer", stack).permutation(len(numbers))
    for i in order[: _half_up(len(numbers))]:
        yield from (unit for layers in groups.values() for unit in layers.get(numbers[i], ()))


def _by_model(stack: str, groups: Groups, seed: int) -> Iterable[str]:
    for kind in (True, False):
        units = sorted(
            unit
            for group, layers in groups.items()
            if (group == _NORMS) is kind
            for own in layers.values()
            for unit in own
        )
        order = _draw(seed, "model", stack, str(kind)).permutation(len(units))
        yield from (units[i] for i in order[: _half_up(len(units))])


SCOPES: Mapping[str, Callable[[str, Groups, int], Iterable[str]]] = {
    "category": _by_category,
    "layer": _by_layer,
    "model": _by_model,
}


def _half_up(count: int) -> int:
    return (count + 1) // 2


def _draw(seed: int, *purpose: str) -> np.random.Generator:
    """Random numbers for one purpose."""
    return np.random.default_rng([seed, zlib.crc32("\x1f".join(purpose).encode())])
