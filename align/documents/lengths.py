"""How long the documents are, shown before the work starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from align.core.display import progress_bar

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

    from align.documents.duplicates import Removed
    from align.documents.loading import Document

WIDTH = 40  # characters of the longest bar


def token_counts(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, console: Console
) -> list[int]:
    """Tokens of each document, `[n]`."""
    with progress_bar(console) as progress:
        return [
            len(tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"])
            for document in progress.track(documents, description="lengths")
        ]


def histogram(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """(from, below, documents) for every power of two from the shortest to the longest document."""
    if not lengths:
        return []
    lowest, highest = (max(1, value).bit_length() - 1 for value in (min(lengths), max(lengths)))
    bounds = [(0 if i == lowest == 0 else 1 << i, 1 << (i + 1)) for i in range(lowest, highest + 1)]
    return [(low, high, sum(low <= length < high for length in lengths)) for low, high in bounds]


def show_documents(lengths: Sequence[int], removed: Sequence[Removed] | None, console: Console) -> None:
    """The histogram as a table with bars, and what was left out; `removed` None says that nothing was looked for."""
    what = "texts" if removed is None else "documents"
    table = Table(title=f"{what} by length")
    table.add_column("tokens", justify="right")
    table.add_column(what, justify="right")
    table.add_column("")
    bins = histogram(lengths)
    most = max((count for _, _, count in bins), default=1)
    for low, high, count in bins:
        table.add_row(f"{low:,} – {high - 1:,}", f"{count:,}", "█" * round(WIDTH * count / max(1, most)))
    console.print(table)
    exact = sum(item.kind == "exact" for item in removed or ())
    left_out = (
        "all are kept: deduplicate is for documents"
        if removed is None
        else f"left out: {exact:,} exact and {len(removed) - exact:,} near duplicates"
    )
    console.print(
        f"{len(lengths):,} {what}, {sum(lengths):,} tokens; {left_out}",
        highlight=False,
        soft_wrap=True,
    )
