"""Draws docs/shared_prefix.svg: a training row here against padded rows, and what attends what.

python docs/shared_prefix.py [FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

PROMPT, CHOSEN, REJECTED, PADDING = "#4878a8", "#5b9a57", "#cc7a4b", "#ffffff"
# Tokens of the example: what is drawn, not what is typical; real prompts are 10 to 1000 times their answers.
PROMPT_LENGTH = 14
ANSWERS = (("chosen", 4, CHOSEN), ("rejected 1", 2, REJECTED), ("rejected 2", 5, REJECTED))


def bar(axes: Axes, x: float, y: float, length: float, colour: str, label: str) -> None:
    """One part of a row: `length` tokens from `x` on."""
    hatch = "////" if colour == PADDING else None
    edge = "#b0b0b0" if colour == PADDING else "white"
    axes.add_patch(
        Rectangle((x, y), length, 0.7, facecolor=colour, edgecolor=edge, hatch=hatch, linewidth=1.2)
    )
    axes.text(x + length / 2, y + 0.34, label, ha="center", va="center", fontsize=8.5, color="white")


def draw_rows(axes: Axes) -> None:
    """Padded rows above, the shared-prefix row below."""
    longest = max(length for _, length, _ in ANSWERS)
    top = 3.9
    axes.text(0, top + 0.95, "padded: one row for each answer", fontsize=10.5, weight="bold")
    for i, (name, length, colour) in enumerate(ANSWERS):
        y = top - 0.85 * i
        bar(axes, 0, y, PROMPT_LENGTH, PROMPT, "prompt")
        bar(axes, PROMPT_LENGTH, y, length, colour, name if length > 3 else name.replace("rejected", "rej."))
        if length < longest:
            bar(axes, PROMPT_LENGTH + length, y, longest - length, PADDING, "")
    axes.text(0, 1.3, "here: one row, the prompt once, nothing padded", fontsize=10.5, weight="bold")
    bar(axes, 0, 0.35, PROMPT_LENGTH, PROMPT, "prompt")
    x = PROMPT_LENGTH
    for name, length, colour in ANSWERS:
        bar(axes, x, 0.35, length, colour, name if length > 3 else name.replace("rejected", "rej."))
        x += length
    padded = len(ANSWERS) * (PROMPT_LENGTH + longest)
    axes.text(0, -0.2, f"{x} tokens instead of {padded}", fontsize=9.5, va="center", color="#444444")
    axes.set_xlim(-0.2, x + 0.3)
    axes.set_ylim(-0.6, 5.4)
    axes.set_axis_off()


def draw_attention(axes: Axes) -> None:
    """A query a line, a key a column; coloured where the query sees the key."""
    owner = [0] * PROMPT_LENGTH
    for i, (_, length, _) in enumerate(ANSWERS, start=1):
        owner += [i] * length
    colours = [PROMPT, *(colour for _, _, colour in ANSWERS)]
    size = len(owner)
    for query in range(size):
        for key in range(query + 1):
            if owner[key] in (0, owner[query]):
                axes.add_patch(
                    Rectangle((key, query), 0.86, 0.86, facecolor=colours[owner[query]], linewidth=0)
                )
    axes.add_patch(
        Rectangle((-0.1, -0.1), size + 0.1, size + 0.1, fill=False, edgecolor="#b0b0b0", linewidth=1)
    )
    start = PROMPT_LENGTH
    for name, length, colour in ANSWERS:
        axes.text(size + 0.5, start + length / 2, name, va="center", fontsize=8.5, color=colour)
        start += length
    axes.text(size + 0.5, PROMPT_LENGTH / 2, "prompt", va="center", fontsize=8.5, color=PROMPT)
    axes.text(0, -0.9, "an answer sees the prompt and itself", fontsize=10.5, weight="bold", va="bottom")
    axes.text(0, size + 1.4, "line: query, column: key", fontsize=8.5, color="#444444")
    axes.set_xlim(-0.5, size + 6)
    axes.set_ylim(size + 2, -3)
    axes.set_aspect("equal")
    axes.set_axis_off()


def main(path: Path) -> None:
    """Writes the picture in the format of the file's ending."""
    figure = Figure(figsize=(10.5, 4), layout="constrained")
    rows, attention = figure.subplots(1, 2, width_ratios=(1.45, 1))
    draw_rows(rows)
    draw_attention(attention)
    figure.savefig(
        path, dpi=130, facecolor="white", metadata={"Date": None} if path.suffix == ".svg" else None
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg"))
