"""The library's progress bars while weights are read and written: what is worth saying is said by a line of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def weight_bars_off() -> Iterator[None]:
    """Within it transformers shows no bars of its own; the Hub's, of a download, stay."""
    from transformers.utils import logging

    before = logging.set_tqdm_hook(_silent)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def _silent(factory: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """The bar that the library asks for, showing nothing."""
    return factory(*arguments, **{**keywords, "disable": True})
