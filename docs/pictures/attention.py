"""A training row here against padded rows, and which token attends which."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

from docs.pictures.style import CHOSEN, DARK, GREY, PROMPT, REJECTED

# Tokens of the example: what is drawn, not what is typical; real prompts are 10 to 1000 times their answers.
PROMPT_LENGTH = 14
ANSWERS = (("chosen", 4, CHOSEN), ("rejected 1", 2, REJECTED), ("rejected 2", 5, REJECTED))


def bar(axes: Axes, x: float, y: float, length: float, colour: str, label: str) -> None:
    """One part of a row: `length` tokens from `x` on; without a label it is padding."""
    edge = "white" if label else GREY
    face = colour if label else "#eeeeee"
    axes.add_patch(Rectangle((x, y), length, 0.7, facecolor=face, edgecolor=edge, clip_on=False))
    shown = label if length > 3 else label.replace("rejected", "rej.")
    if label:
        axes.text(x + length / 2, y + 0.34, shown, ha="center", va="center", fontsize=8.5, color="white")


def draw_rows(axes: Axes) -> None:
    """Padded rows above, the shared-prefix row below."""
    longest = max(length for _, length, _ in ANSWERS)
    axes.text(0, 4.85, "padded: one row for each answer", fontsize=10.5, weight="bold")
    for i, (name, length, colour) in enumerate(ANSWERS):
        y = 3.9 - 0.85 * i
        bar(axes, 0, y, PROMPT_LENGTH, PROMPT, "prompt")
        bar(axes, PROMPT_LENGTH, y, length, colour, name)
        if length < longest:
            bar(axes, PROMPT_LENGTH + length, y, longest - length, GREY, "")
    axes.text(0, 1.3, "here: one row, the prompt once, nothing padded", fontsize=10.5, weight="bold")
    bar(axes, 0, 0.35, PROMPT_LENGTH, PROMPT, "prompt")
    x = PROMPT_LENGTH
    for name, length, colour in ANSWERS:
        bar(axes, x, 0.35, length, colour, name)
        x += length
    padded = len(ANSWERS) * (PROMPT_LENGTH + longest)
    axes.text(0, -0.2, f"{x} tokens instead of {padded}", fontsize=9.5, va="center", color=DARK)
    axes.set_xlim(-0.2, x + 0.3)
    axes.set_ylim(-0.6, 5.4)
    axes.set_axis_off()


def staircase(start: int, length: int) -> list[tuple[int, int]]:
    """Corners of a causal square: the query `start + i` sees the keys from `start` to itself."""
    corners = [(start, start)]
    for i in range(start, start + length):
        corners += [(i + 1, i), (i + 1, i + 1)]
    return [*corners, (start, start + length)]


def draw_attention(axes: Axes) -> None:
    """A query a line, a key a column; coloured where the query sees the key."""
    start = 0
    for name, length, colour in (("prompt", PROMPT_LENGTH, PROMPT), *ANSWERS):
        axes.add_patch(Polygon(staircase(start, length), facecolor=colour, edgecolor="white", clip_on=False))
        if start:
            block = Rectangle(
                (0, start), PROMPT_LENGTH, length, facecolor=colour, edgecolor="white", clip_on=False
            )
            axes.add_patch(block)
        size = PROMPT_LENGTH + sum(length for _, length, _ in ANSWERS)
        axes.text(size + 0.5, start + length / 2, name, va="center", fontsize=8.5, color=colour)
        start += length
    frame = Rectangle((-0.1, -0.1), start + 0.2, start + 0.2, fill=False, edgecolor=GREY, clip_on=False)
    axes.add_patch(frame)
    axes.text(0, -0.9, "an answer sees the prompt and itself", fontsize=10.5, weight="bold", va="bottom")
    axes.text(0, start + 1.4, "line: query, column: key", fontsize=8.5, color=DARK)
    axes.set_xlim(-0.5, start + 6)
    axes.set_ylim(start + 2, -3)
    axes.set_aspect("equal")
    axes.set_axis_off()


def draw() -> Figure:
    """Rows on the left, attention on the right."""
    figure = Figure(figsize=(10.5, 4), layout="constrained")
    rows, attention = figure.subplots(1, 2, width_ratios=(1.45, 1))
    draw_rows(rows)
    draw_attention(attention)
    return figure
