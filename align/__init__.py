"""Long-context preference optimisation: LOGO, LongPO and LongWriter on one shared-prefix forward.

    import align

    result = align.train("method=dpo", "model.path=embedded", data=rows)

Each command is a function too, with the overrides of its command line and, where it reads rows, `data=`: a list of
dictionaries or a `datasets.Dataset`. It returns what the command finds, typed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.core.lazy import lazy_names
from align.core.moved import accept_moved_names

if TYPE_CHECKING:
    from align.core.errors import UserError
    from align.training.methods import named_method as method
    from align.training.trainer import PreferenceTrainer

__version__ = "0.2.0"
__all__ = [
    "PreferenceTrainer",
    "UserError",
    "__version__",
    "evaluate",
    "export",
    "inspect",
    "merge",
    "method",
    "plan",
    "report",
    "rounds",
    "synthesize",
    "train",
    "verify",
]

accept_moved_names()

_COMMANDS = (
    "evaluate",
    "export",
    "inspect",
    "merge",
    "plan",
    "report",
    "rounds",
    "synthesize",
    "train",
    "verify",
)
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "PreferenceTrainer": ("align.training.trainer", "PreferenceTrainer"),
        "UserError": ("align.core.errors", "UserError"),
        "method": ("align.training.methods", "named_method"),
        **{name: (f"align.{name}", None) for name in _COMMANDS},
    },
)
