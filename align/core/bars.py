"""The libraries' progress bars, switched off: what is worth saying is said by a line of ours."""

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


@contextmanager
def dataset_bars_off() -> Iterator[None]:
    """Within it `datasets` shows no bars of its own: they know no total."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()
