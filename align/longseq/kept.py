"""What a checkpointed layer keeps of its attention: taken down in the forward, handed out in the recomputation.

Attention that gives its outputs away by `kept(run)` runs once a layer where a keeper is entered, and knows nothing of
checkpointing. Two calls in the forward keep two results, and the recomputation gets them in that order, each once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import local
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

Result = TypeVar("Result")

_here = local()  # a backward pass has threads of its own


class Keeper(Protocol):
    """Runs a call of attention and keeps what it returns, or returns what was kept."""

    def __call__(self, run: Callable[[], Result]) -> Result:
        """What `run` returns."""
        ...


def current_keeper() -> Keeper | None:
    """The keeper that this thread has entered; None where nothing is kept."""
    return getattr(_here, "keeper", None)


def kept(run: Callable[[], Result]) -> Result:
    """`run()`, or what the forward kept of it."""
    keeper = current_keeper()
    return run() if keeper is None else keeper(run)


class _Entered:
    """A context within which this thread's calls go to it; one that it is entered in waits."""

    def __init__(self, kept: deque[Any]) -> None:
        self.kept = kept

    def __enter__(self) -> None:
        self._before = current_keeper()
        _here.keeper = self

    def __exit__(self, *error: Any) -> None:
        _here.keeper = self._before


class Keeping(_Entered):
    """Runs everything and keeps what it returns."""

    def __call__(self, run: Callable[[], Result]) -> Result:
        """See `Keeper`."""
        output = run()
        # Detached: autograd will hang the graph on `output` itself, which would then keep itself alive.
        self.kept.append(tree_map_only(Tensor, torch.Tensor.detach, output))
        return output


class Returning(_Entered):
    """Returns what was kept in place of running it again; each once."""

    def __call__(self, run: Callable[[], Result]) -> Result:
        """See `Keeper`.

        Raises:
            RuntimeError: all was handed out.
        """
        if not self.kept:
            raise RuntimeError(
                "A layer checkpointed with keep_attention can be gone through backward only once: "
                "use memory.checkpointing=full with retain_graph."
            )
        result: Result = self.kept.popleft()
        return result
