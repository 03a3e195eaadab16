"""What models say without what they think: pipelines and scores read answers, not the reasoning before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console

from align.core.readable import counted
from align.data.thinking import GENERATED, without_thinking
from align.generation.generators import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens of which tags are made: where they are special tokens, decoding without those would lose the tags.
_TOKENS = frozenset(
    {*(text for tags in GENERATED for text in tags), "<|channel>", "<|channel|>", "<|message|>"}
)


def spoken(name: str, completions: Sequence[Completion], console: Console) -> list[Completion]:
    """The completions as they are read: without the thinking block before an answer, and empty where they are none.

    Of an answer that was cut while it still thought nothing is left, and what a server broke off, as a content filter
    does, answers nothing. How many there are of each is said. What the model wrote stays whole in the ledgers.

    Args:
        name: of the stage.
        completions: as generated.
        console: for people.
    """
    answers, thought, broken = [], 0, 0
    for completion in completions:
        text, thinks = without_thinking(completion.text)
        thought += thinks
        if completion.finish == "broken":
            text = ""
            broken += 1
        answers.append(completion if text == completion.text else replace(completion, text=text))
    if thought:
        _say(
            console,
            f"{name}: {thought} of {counted(len(completions), 'answer')} came with a thinking block, which is left "
            "out; generator.template_kwargs={enable_thinking: false} asks many models for answers without one.",
        )
    if broken:
        _say(
            console,
            f"{name}: {broken} of {counted(len(completions), 'answer')} were broken off by the server, as content "
            "filters do, and count as empty; work/ keeps what there is of them.",
        )
    return answers


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Tokens as text without special tokens, except those that stand around reasoning."""
    kept = {i for i in set(ids) & set(tokenizer.all_special_ids) if tokenizer.decode([i]) in _TOKENS}
    pieces, start = [], 0
    for stop in [*(place for place, i in enumerate(ids) if i in kept), len(ids)]:
        pieces.append(str(tokenizer.decode(list(ids[start:stop]), skip_special_tokens=True)))
        pieces.append(str(tokenizer.decode([ids[stop]])) if stop < len(ids) else "")
        start = stop + 1
    return "".join(pieces)
