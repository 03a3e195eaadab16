"""Arithmetic of a model in float64 throughout, also where its code asks for float32.

Norms, routers and rotary embeddings of the library compute in float32 whatever the weights have, and round there: two
exact ways to compute a gradient then differ by 1e-7 or more, which hides small errors. Within `float64` they do not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Float64(TorchFunctionMode):
    """Within it `tensor.float()`, `tensor.to(torch.float32)` and `dtype=torch.float32` give float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs a function of torch with float64 in the place of float32."""
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        wider = [torch.float64 if each is torch.float32 else each for each in args]
        named = {
            name: torch.float64 if each is torch.float32 else each for name, each in (kwargs or {}).items()
        }
        return func(*wider, **named)
