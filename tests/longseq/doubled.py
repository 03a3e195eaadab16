"""Double precision where the library asks for single: norms, rotary embeddings, softmaxes and recurrences in float64.

In a float64 model the library still computes these in float32, whose noise of 1e-7 hides errors of that size. Within
`doubled()` the name `torch.float32` means float64, for whatever looks it up meanwhile, backward passes included.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch


@contextmanager
def doubled() -> Iterator[None]:
    """Within it nothing is lowered to float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield
