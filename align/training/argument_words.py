"""What commands call keys, as a notebook's caller has written it: arguments of the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from align.core.errors import UserError

# A command's keys → what a notebook's caller has written in their place.
_ARGUMENTS = {
    "data.max_length": "max_length",
    "model.attention": "attention",
    "parallel=none": "parallel=None",
    "model.rope": "rope_parameters of its configuration",
    "model.path": "model",
    "trainer.": "args.",
}


@contextmanager
def keys_as_arguments() -> Iterator[None]:
    """Within it a refusal names the trainer's arguments and not a command's keys."""
    try:
        yield
    except UserError as error:
        said = str(error)
        for key, argument in _ARGUMENTS.items():
            said = said.replace(key, argument)
        raise UserError(said) from error
