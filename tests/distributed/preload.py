"""What the server that processes are forked from imports once, so that a start takes a second and not seven."""

import contextlib
import gc

import peft  # noqa: F401

import align.train
import align.training.finish  # noqa: F401
import tests.training.helpers  # noqa: F401

with contextlib.suppress(ImportError):  # accelerate imports it wherever it is installed
    import deepspeed  # noqa: F401

gc.collect()
gc.freeze()  # a fork looks for garbage among its own objects alone
