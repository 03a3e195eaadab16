"""What tests of references share: a model of ours, and one that may not be loaded."""

from __future__ import annotations

from align.longseq import ATTENTION
from tests.tiny import tiny_model


def refuse():
    raise AssertionError("the reference was loaded although the cache has every row")


def forwardable(**overrides):
    model = tiny_model(initializer_range=0.1, **overrides)
    model.set_attn_implementation(ATTENTION)
    return model
