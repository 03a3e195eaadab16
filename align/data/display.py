"""Rows, counts and findings as `align inspect` prints them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from align.core.readable import counted
from align.data import faults
from align.data.checks import Finding
from align.data.dataset import PreferenceData
from align.data.describe import answer_jumps, answer_runs, prompt_sections
from align.data.examples import Answer, TokenizedExample
from align.data.formats import LAYOUTS
from align.data.mixture import mixture_words
from align.data.notices import notices

MAX_PER_KIND = 10  # findings printed of each kind
MAX_RUNS = 24  # stretches of an answer printed one by one; of more only the first and last half of this
SCORED, UNSCORED = "bold green", "dim"


def print_row(
    console: Console,
    example: TokenizedExample,
    tokenizer: PreTrainedTokenizerBase,
    *,
    characters: int,
    labels: bool = False,
) -> None:
    """One row as a table: its parts with tokens, positions, jumps and text; scored tokens stand in ⟦ ⟧.

    Args:
        console: where it is printed.
        example: the row.
        tokenizer: decodes it.
        characters: of each text that are shown.
        labels: its one number says which answers are good.
    """
    longest = len(example.prompt_ids) + example.longest_answer
    padded = longest * len(example.answers)
    table = Table(
        title=escape(_title(example)),
        caption=f"{counted(example.num_tokens, 'token')} with the prompt shared, {padded} as "
        f"{counted(len(example.answers), 'padded row')}: {1 - example.num_tokens / padded:.0%} saved · "
        f"{counted(example.cut_tokens, 'context token')} cut · {counted(len(example.short), 'short prompt')}",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("part", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("positions", justify="right", no_wrap=True)
    table.add_column("jumps", no_wrap=True)
    table.add_column("text (⟦scored⟧)", overflow="fold")
    for section in prompt_sections(example):
        text = Text(_short(_decode(tokenizer, section.ids), characters), style=UNSCORED)
        table.add_row(
            section.name, str(len(section.ids)), f"{section.first}–{section.last}", section.jumps, text
        )
    for j, answer in enumerate(example.answers):
        text = _answer_text(answer, tokenizer, characters)
        positions = example.positions_of(answer)
        name = f"rejected {j}" if j else "text" if example.is_document else "chosen"
        if labels and example.columns is not None:
            name = "good answer" if example.columns[0, j] else "bad answer"
        shown = f"{positions[0]}–{positions[-1]}"
        table.add_row(name, str(len(positions)), shown, answer_jumps(example, answer), text)
    console.print(table)


def _title(example: TokenizedExample) -> str:
    """Where the row stands, and what it is made of."""
    if example.pieces:
        scored = int(example.answers[0].scored.sum())
        tokens = counted(example.num_tokens, "token")
        return f"{example.source}: {counted(example.pieces, 'piece')}, {tokens}, {scored} of them scored"
    prompt, answers = (
        counted(len(example.prompt_ids), "prompt token"),
        counted(len(example.answers), "answer"),
    )
    return f"{example.source}: {prompt}, {answers}"


def _answer_text(answer: Answer, tokenizer: PreTrainedTokenizerBase, characters: int) -> Text:
    """An answer with its scored stretches in ⟦ ⟧; of very many the middle ones are counted."""
    runs, text = list(answer_runs(answer)), Text()
    half = MAX_RUNS // 2
    for place, (ids, scored) in enumerate(runs):
        if place == half and len(runs) > MAX_RUNS:
            text.append(f" … {len(runs) - MAX_RUNS} more stretches … ", style="italic")
        if half <= place < len(runs) - half:
            continue
        shown = _short(_decode(tokenizer, ids), characters)
        text.append(f"⟦{shown}⟧" if scored else shown, style=SCORED if scored else UNSCORED)
    return text


def print_counts(
    console: Console, data: PreferenceData, *, window: int | None, reach: int | None = None, bad_rows: str
) -> None:
    """What was read, held out, cut and saved, and what training would say of it; the rest as in `notices`."""
    counts = data.counts
    saved = 1 - counts["tokens"] / counts["padded_tokens"]
    lines = [
        f"{counted(counts['rows'], 'row')}: {counts['train_rows']} to train on, {counts['eval_rows']} held out",
        f"{counted(counts['tokens'], 'token')} with shared prompts, {counts['padded_tokens']} as padded rows: "
        f"{saved:.0%} saved",
        f"longest prompt with answer: {counted(counts['longest_sequence'], 'token')}; largest position: "
        f"{counts['largest_position']}",
        f"cut: {counted(counts['cut_tokens'], 'context token')} in {counted(counts['cut_rows'], 'row')}",
    ]
    lines += mixture_words(data.ingredients)
    lines += notices(data, window=window, reach=reach, bad_rows=bad_rows)
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """The findings by kind, unusable rows by why they are, the first of each in full."""
    if not findings:
        console.print("Nothing wrong was found.", style="green")
        return
    for kind, of_kind in _grouped(findings, "kind").items():
        console.print(f"{kind}: {len(of_kind)}", style="bold red", highlight=False)
        for reason, group in _grouped(of_kind, "reason").items():
            if reason:
                console.print(f" {reason}: {len(group)}", style="red", markup=False, highlight=False)
            if reason == faults.UNKNOWN_LAYOUT:
                console.print(f"  layouts: {LAYOUTS}.", markup=False, highlight=False, soft_wrap=True)
            for finding in group[:MAX_PER_KIND]:
                console.print(f"  {finding.message}", markup=False, highlight=False, soft_wrap=True)
            if len(group) > MAX_PER_KIND:
                more = f"  … and {len(group) - MAX_PER_KIND} more; findings=FILE lists all"
                console.print(more, highlight=False)


def _grouped(findings: Sequence[Finding], name: str) -> dict[str, list[Finding]]:
    """Findings by an attribute, the most frequent value first."""
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(getattr(finding, name), []).append(finding)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def _decode(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _short(text: str, characters: int) -> str:
    """At most `characters` of the text, half from either end; line breaks shown as ⏎."""
    half = characters // 2
    if len(text) > characters:
        text = f"{text[:half]} … {text[len(text) - half :]}"
    return text.replace("\n", "⏎")
