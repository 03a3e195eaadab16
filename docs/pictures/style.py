"""What the pictures have in common: colours, and small SVG files that are the same every time."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parents[1] / "benchmarks" / "results"
PROMPT, CHOSEN, REJECTED, GREY, DARK = "#4878a8", "#5b9a57", "#cc7a4b", "#b0b0b0", "#444444"
RANKS = ("#4878a8", "#cc7a4b", "#5b9a57", "#8a6fae")
# Text stays text, so that a file is short and can be searched; ids follow from the drawing alone.
SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "long-preference", "font.family": "sans-serif"}


def save(figure: Figure, path: Path) -> None:
    """Writes an SVG without date, with a white ground a line an element, without the comments that repeat each text."""
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    text = re.sub(r"\n\s*<!--.*?-->", "", path.read_text())
    path.write_text(re.sub(r'"[^"]*"', lambda value: re.sub(r"\s*\n\s*", " ", value[0]), text))


def texts(path: Path) -> list[str]:
    """Every text of an SVG file, in its order."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


def plain(axes: Axes) -> None:
    """No frame above and on the right."""
    axes.spines[["top", "right"]].set_visible(False)
