"""liger-kernel's own kernels on a CPU, in Triton's interpreter: `python -m tests.models.interpreted FAMILY…`.

Prints two lines of JSON a family, the second of it in tiles: relative errors of the loss and of every parameter's
gradient against the plain model, and how often which kernel is there. Three things are mended that the interpreter of
Triton 3.9 does otherwise than a GPU: float arguments stay Python's, and libdevice's `rsqrt` and `tanh` are missing.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from typing import Any


def mend_interpreter() -> None:
    """Before any kernel runs; the variable has to be there before Triton is imported."""
    os.environ["TRITON_INTERPRET"] = "1"
    import numpy as np
    from triton import language as tl
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def with_floats(argument: Any) -> Any:
        if not isinstance(argument, float):
            return convert(argument)
        handle = interpreter.TensorHandle(np.array([argument], np.float32), tl.float32)
        return tl.tensor(handle, tl.float32)

    interpreter._implicit_cvt = with_floats
    import_module("liger_kernel.ops.rms_norm").rsqrt = lambda x: tl.rsqrt(x)
    import_module("liger_kernel.ops.geglu").tanh = lambda x: 2 * tl.sigmoid(2 * x) - 1


def errors(family: str, **levers: Any) -> dict[str, Any]:
    """Of one family, checkpointed with `levers` where there are any."""
    from align.longseq.checkpointing import apply_checkpointing
    from align.models.kernels import fuse
    from tests.longseq.plain import relative_error
    from tests.models.fused import family_model, step

    plain, fused = family_model(family), family_model(family)
    counts = fuse(fused)
    if levers:
        apply_checkpointing(fused, "full", **levers)
    (loss, found), (plain_loss, expected) = step(fused), step(plain)
    return {
        "family": family,
        "counts": counts,
        "loss": relative_error(loss, plain_loss),
        "gradients": {name: relative_error(found[name], expected[name]) for name in expected},
    }


if __name__ == "__main__":
    mend_interpreter()
    for family in sys.argv[1:]:
        for levers in ({}, {"mlp_chunk": 7}):
            print(json.dumps(errors(family, **levers)), flush=True)
