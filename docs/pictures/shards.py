"""Which of four processes owns which tokens of a row, for each exchange, and what each attends with."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from align.longseq import Layout, PackedPrompt
from align.longseq.sharding import Shards, balanced_shards, even_shards
from docs.pictures.style import DARK, RANKS

DEGREE = 4
PROMPT, CHOSEN, REJECTED = (0, 32), (32, 40), (40, 48)
NAMES = {PROMPT: "prompt", CHOSEN: "chosen", REJECTED: "rejected"}
# Tokens that predict a scored one: the prompt's last, which predicts the first of both answers, and every
# answer token but the last of each.
SOURCE = torch.tensor([31, *range(32, 39), 31, *range(40, 47)])


def draw_row(axes: Axes, y: float, shards: Shards, title: str, note: str) -> None:
    """One row of tokens, coloured by owner."""
    axes.text(0, y + 1.15, title, fontsize=10.5, weight="bold")
    for rank, spans in enumerate(shards):
        for start, stop in spans:
            colour = RANKS[rank]
            cell = Rectangle(
                (start, y), stop - start, 0.8, facecolor=colour, edgecolor="white", clip_on=False
            )
            axes.add_patch(cell)
            axes.text(
                (start + stop) / 2, y + 0.4, str(rank), ha="center", va="center", fontsize=8, color="white"
            )
    axes.text(0, y - 0.35, note, fontsize=9, color=DARK, va="center")


def draw() -> Figure:
    """The row's parts above, then the shards of both exchanges."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    for (start, stop), name in NAMES.items():
        axes.plot([start + 0.2, stop - 0.2], [6.0, 6.0], color=DARK, linewidth=1.2, clip_on=False)
        axes.text((start + stop) / 2, 6.15, name, ha="center", fontsize=9, color=DARK)
    layout = Layout(prompts=(PackedPrompt(prompt=PROMPT, answers=(CHOSEN, REJECTED)),))
    draw_row(
        axes,
        3.9,
        even_shards(REJECTED[1], SOURCE, DEGREE),
        "ulysses: each process owns a quarter of the tokens, and of those that are scored from",
        "in attention: all tokens, a quarter of the heads; two all-to-alls carry states there and back",
    )
    draw_row(
        axes,
        1.0,
        balanced_shards(layout, DEGREE),
        "gather: each process owns an early and a late chunk of every prompt and answer",
        "in attention: own queries, all heads; an all-gather brings everybody's keys and values",
    )
    axes.set_xlim(-0.5, REJECTED[1] + 0.5)
    axes.set_ylim(0.2, 6.7)
    axes.set_axis_off()
    return figure
