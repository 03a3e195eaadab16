"""How far a tensor is from the one that it should be."""

from __future__ import annotations

import math

from torch import Tensor

from align.longseq.plain_rows import relative_error

NO_NUMBER = 1e9


def error_of(value: Tensor, expected: Tensor) -> float:
    """‖a − b‖ / ‖b‖ in fp64; a billion where that is no number, which no bound lets pass and JSON can hold."""
    error = relative_error(value.double(), expected.double())
    return error if math.isfinite(error) else NO_NUMBER
