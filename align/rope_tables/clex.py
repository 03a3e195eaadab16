"""CLEX's frequencies (arXiv 2310.16450) frozen at one length: the trained network's equation, solved once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from align.core.errors import UserError
from align.rope_tables.ntk import check_pairs
from align.rope_tables.table import RopeContext

_STEP = 0.01  # of t, as the released code integrates
_MOST = 1000.0  # windows: no network was trained for more, and each takes a hundred steps
_NAMES = ("ode_up_proj", "ode_down_proj")  # what the names of the network's weights end in
_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": np.tanh,
    "silu": lambda x: x / (1 + np.exp(-x)),
}


@dataclass(frozen=True)
class Clex:
    """`model/rope=clex`; hydra_conf/model/rope/clex.yaml.

    CLEX lets the logarithms z of the frequencies follow an equation in t, how many windows a sequence is long, from
    plain RoPE at t = 1:

        dz/dt = σ((z + ln θ^NTK(t)) · W_up) · W_down − 2 · 2i / ((d − 2) · α),     α = 2t − 1,
        θ^NTK_i(t) = (base · α^(d / (d − 2)))^(−2i/d).

    Here it is solved once, by the method of the released code (Runge-Kutta's 3/8 rule, step 0.01), in float64, and the
    frequencies at `t` hold for every row, where CLEX takes a new t for each length. A network of zeros, as CLEX
    starts, gives `model.rope.type=dynamic` with factor 2 at t windows.

    Attributes:
        path: a trained CLEX checkpoint's folder, or its safetensors file: `…ode_up_proj` `[d/2, λd]`, `…ode_down_proj`
            `[λd, d/2]`. Of a folder only those two are read.
        t: from 1 on, and up to the largest that was trained (16 in the paper), where the folder's config.json says it.
        activation: σ, `tanh` or `silu`; None: as the folder's config.json says, tanh where it says nothing.
        base: in θ^NTK alone; the released code has 10,000 whatever the model's θ.
    """

    path: str
    t: float = 4.0
    activation: str | None = None
    base: float = 10_000.0

    def check(self) -> None:
        """Raises UserError for a number or an activation out of range, and where there are no such weights."""
        if not 1 <= self.t <= _MOST:
            raise UserError(
                f"model.rope.table.t={self.t} has to lie between 1 and {_MOST:g}: the length in windows."
            )
        trained = self._said("max_factor")
        if isinstance(trained, int | float) and self.t > trained:
            raise UserError(
                f"model.rope.table.t={self.t} is beyond the {trained} windows (max_factor) that the checkpoint was "
                "trained for."
            )
        if not 0 < self.base < math.inf:
            raise UserError(f"model.rope.table.base={self.base} has to be above 0.")
        if not list(_files(Path(self.path))):
            raise UserError(
                f"model.rope.table.path={self.path} is no safetensors file and no folder with one: name a CLEX "
                "checkpoint; one of .bin files is saved anew by save_pretrained first."
            )
        self._activation()

    def frequencies(self, plain: np.ndarray, context: RopeContext) -> np.ndarray:
        """See `Table.frequencies`.

        Raises:
            UserError: no such weights, unlike ones in several layers, or of another width than the model's heads.
        """
        check_pairs(context)
        up, down = (_weight(Path(self.path), name) for name in _NAMES)
        if up.ndim != 2 or up.shape[0] != len(plain) or down.shape != up.shape[::-1]:
            raise UserError(
                f"model.rope.table.path={self.path} has weights of {list(up.shape)} and {list(down.shape)}, and this "
                f"model's {len(plain)} frequencies need [{len(plain)}, n] and [n, {len(plain)}]: take the checkpoint "
                "of the same model."
            )
        sigma, dim = _ACTIVATIONS[self._activation()], context.dim
        pairs = 2 * np.arange(len(plain))

        def slope(t: float, z: np.ndarray) -> np.ndarray:
            alpha = 2 * t - 1
            ntk = -pairs / dim * (math.log(self.base) + dim / (dim - 2) * math.log(alpha))
            return sigma((z + ntk) @ up) @ down - 2 * pairs / ((dim - 2) * alpha)

        return np.exp(_solve(slope, np.log(plain), start=1.0, stop=self.t))

    def _activation(self) -> str:
        """The network's σ."""
        name, said = self.activation, self._said("act")
        if name is not None and said is not None and name != said:
            raise UserError(
                f"model.rope.table.activation={name}, and {self.path}/config.json says {said}: leave it out."
            )
        name = str(name or said or "tanh")
        if name not in _ACTIVATIONS:
            raise UserError(
                f"model.rope.table.activation={name} is not known: use {', '.join(_ACTIVATIONS)}."
            )
        return name

    def _said(self, key: str) -> Any:
        """What the config.json beside the weights says of CLEX; None where it says nothing."""
        try:
            config = json.loads((Path(self.path) / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        places = (
            [config.get(name) for name in ("rope_scaling", "rope_parameters")]
            if isinstance(config, dict)
            else []
        )
        return next((place[key] for place in places if isinstance(place, dict) and key in place), None)


def _solve(
    slope: Callable[[float, np.ndarray], np.ndarray], state: np.ndarray, *, start: float, stop: float
) -> np.ndarray:
    """The state at `stop`, by Runge-Kutta's 3/8 rule in equal steps of at most `_STEP`."""
    steps = max(1, math.ceil((stop - start) / _STEP - 1e-9))
    h = (stop - start) / steps
    for i in range(steps):
        t = start + i * h
        k1 = slope(t, state)
        k2 = slope(t + h / 3, state + h * k1 / 3)
        k3 = slope(t + 2 * h / 3, state + h * (k2 - k1 / 3))
        k4 = slope(t + h, state + h * (k1 - k2 + k3))
        state = state + h * (k1 + 3 * k2 + 3 * k3 + k4) / 8
    return state


def _files(path: Path) -> Iterator[Path]:
    """The safetensors files of a checkpoint, in their order."""
    if path.is_dir():
        yield from sorted(path.glob("*.safetensors"))
    elif path.is_file() and path.suffix == ".safetensors":
        yield path


def _weight(path: Path, name: str) -> np.ndarray:
    """The one weight whose name ends so, in float64; in older checkpoints every layer has the same one."""
    import torch
    from safetensors import safe_open

    found = []
    for file in _files(path):
        with safe_open(file, framework="pt") as tensors:  # numpy has no bfloat16
            found += [tensors.get_tensor(key) for key in tensors.keys() if key.endswith(name)]  # noqa: SIM118
    if not found:
        raise UserError(f"model.rope.table.path={path} has no weight …{name}, which a CLEX checkpoint has.")
    if not all(torch.equal(found[0], other) for other in found):
        raise UserError(
            f"model.rope.table.path={path} has {len(found)} unlike weights …{name}: one table for all layers cannot "
            "stand for them."
        )
    weight: np.ndarray = found[0].double().numpy()
    return weight
