"""The arms: which parameters train, by overrides of `align train`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.adapters.reading import read_model
from align.runs.api import compose

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # tried with seed 0
# Arm → overrides; `interpolated` follows from `full`.
ARMS: Mapping[str, tuple[str, ...]] = {
    "full": (),
    "lora": ("adapter=lora", "adapter.r=8", "adapter.target_modules=[all-linear]"),
    "half_a": ("adapter=half", "adapter.seed=1"),
    "half_b": ("adapter=half", "adapter.seed=2"),
    "region": ("adapter=region", "adapter.layers=[0.5,1.0]"),
    "sparse": ("adapter=sparse", "adapter.options.r=8"),
    "norms": ("adapter=norms",),
}
SETTINGS: Mapping[str, tuple[str, dict[str, Any]]] = {"sft": ("sft", {}), "dpo": ("dpo", {"beta": 0.1})}


def adapter_of(arm: str) -> Any:
    """What the arm trains; None: all parameters."""
    return read_model(compose("train", list(ARMS[arm]))).adapter
