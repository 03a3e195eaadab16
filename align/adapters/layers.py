"""What of a layer an adapter has put there, and what was there before."""

from __future__ import annotations

from collections.abc import Iterator

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

_BASE = "base_layer"


def own_parameters(layer: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of a decoder layer without those of adapters on it, by the names that they have without adapters.

    Of `q_proj.base_layer.weight` and `q_proj.lora_A.default.weight` it is the first, as `q_proj.weight`.
    """
    adapted = [name for name, module in layer.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, weight in layer.named_parameters():
        owners = [each for each in adapted if name.startswith(f"{each}.")]
        if all(f"{name}.".startswith(f"{each}.{_BASE}.") for each in owners):
            yield name.replace(f".{_BASE}", ""), weight


def replaced(layer: nn.Module) -> int:
    """Weights that no token goes through, since copies of them train in their place."""
    from peft.tuners.ln_tuning.layer import LNTuningLayer

    copies = (module for module in layer.modules() if isinstance(module, LNTuningLayer))
    return sum(weight.numel() for module in copies for weight in module.get_base_layer().parameters())


def put_on(module: nn.Module) -> int:
    """Weights of the layer that an adapter's layer was put on; 0 of any other module."""
    if not isinstance(module, BaseTunerLayer):
        return 0
    layer: nn.Module = module.get_base_layer()
    return layer.get_parameter("weight").numel()
