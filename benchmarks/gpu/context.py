"""What a stage is given: its sizes, its time, and where its findings go, each at once."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.device import Device

TRACEBACK_LINES = 12


@dataclass(frozen=True)
class Context:
    """A stage's surroundings.

    Attributes:
        device: where it measures.
        scale: `full`, or `miniature`: tiny shapes that a CPU runs in seconds.
        deadline: on `time.monotonic`'s clock; a stage begins nothing behind it.
        keep: takes a finding by its name and writes it at once; the same name again replaces it.
        layers: layers at which the stage `length` measures before it extrapolates; 0 measures the whole model.
    """

    device: Device
    scale: str
    deadline: float
    keep: Callable[[str, Any], None]
    layers: int = 4

    def left(self) -> float:
        """Seconds until the deadline; negative behind it."""
        return self.deadline - time.monotonic()

    def of_scale(self, full: Any, miniature: Any) -> Any:
        """What fits the scale."""
        return {"full": full, "miniature": miniature}[self.scale]

    def cells(self, work: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """Runs the cells of a stage in their order and keeps what each returns; returns all of it by name.

        A cell that fails keeps `{"error": …}`, and the next one runs, unless the device itself is lost: a cell that has
        run out of memory is a finding. What there is no time for keeps `"no time left"`.
        """
        found = {}
        for name, run in work.items():
            found[name] = self._cell(run)
            self.device.clean()
            self.keep(name, found[name])
        return found

    def _cell(self, run: Callable[[], Any]) -> Any:
        if self.left() <= 0:
            return "no time left"
        try:
            return run()
        except Exception as error:
            self.device.check()
            return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}


def last_lines(error: BaseException) -> str:
    """The end of its traceback."""
    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
    return "\n".join(lines[-TRACEBACK_LINES:])
