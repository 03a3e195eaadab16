"""Which rows need what the user wrote: how much attention an answer pays to it (arXiv 2411.02688).

s = mean over the answer's tokens of the most that any head pays to those tokens together, in one layer. An answer
that a model could have given without the context has a low s; one that copies from it a high one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from align.core.config import check_choice
from align.core.errors import UserError
from align.core.readable import counted
from align.data.examples import TokenizedExample
from align.data.settings import DataSettings
from align.generation.stage import Workspace
from align.models.extra_tokens import check_extra_tokens
from align.models.paths import check_path
from align.models.settings import ModelSettings
from align.models.text_part import text_config
from align.synthesis.selection.marking import marked
from align.synthesis.selection.measuring import DEVICES, check_tells_attention, measured
from align.synthesis.selection.select import Score, check_keep, read_texts

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

TOKENS = ("user", "context")
HEADS = ("per_token", "per_row")


@dataclass(frozen=True)
class ContextDependency:
    """`select=context_dependency`; hydra_conf/select/context_dependency.yaml comments every key."""

    model: str | None = None
    layer: int | None = None
    tokens: str = "user"
    heads: str = "per_token"
    least: float | None = 0.6
    keep: float | None = None
    mark: str | None = None
    dtype: str = "auto"
    device: str = "auto"

    @property
    def name(self) -> str:
        """Name and parameters."""
        layer = "middle" if self.layer is None else self.layer
        return (
            f"context_dependency(model={self.model}, layer={layer}, tokens={self.tokens}, heads={self.heads}, "
            f"least={self.least}, mark={self.mark})"
        )

    def check(self) -> None:
        """Raises UserError for a value out of range or a missing model."""
        if not self.model:
            raise UserError(
                "select.model is not set: name the folder or Hub id of the model whose attention counts."
            )
        check_path(self.model, key="select.model")
        check_choice("select.tokens", self.tokens, TOKENS)
        check_choice("select.heads", self.heads, HEADS)
        check_choice("select.device", self.device, DEVICES)
        check_keep(self.keep)
        if self.least is not None and not 0 <= self.least <= 1:
            raise UserError(f"select.least={self.least} must lie in [0, 1], as shares of attention do.")
        if self.layer is not None and self.layer < 0:
            raise UserError(f"select.layer={self.layer} must be 0 or more.")
        if self.mark is not None:
            check_extra_tokens([self.mark], key="select.mark")
            if self.least is None:
                raise UserError(
                    "select.mark goes to rows with select.least or more: set it, 0.6 in the paper."
                )

    def scores(self, path: Path, workspace: Workspace) -> list[Score]:
        """s of every row; of several turns its mean over them, each measured on what stands before it."""
        from align.models.loading import load_config, load_tokenizer, window_of

        settings = ModelSettings(path=str(self.model), dtype=self.dtype)
        config = load_config(settings, key="select.model")
        check_tells_attention(config, "select.model")
        layer, place = self._layer(config)
        tokenizer = load_tokenizer(settings.path, key="select.model")
        rows = list(self._rows(path, tokenizer))
        window = window_of(config)
        usable = [i for i, row in enumerate(rows) if _trouble(row, window) is None]
        examples = [example for i in usable for example in rows[i]]
        found = measured(
            "context_dependency",
            examples,
            partial(_read, place=place, heads=self.heads),
            workspace,
            model=settings,
            key="select.model",
            device=self.device,
            asked=f"layer {layer}, {self.heads}",
        )
        numbers = iter(found)
        turns = {i: [s for _ in rows[i] for s in next(numbers)["turns"]] for i in usable}
        return [
            self._score(turns[i], layer, row[0].source)
            if i in turns
            else Score(None, str(_trouble(row, window)))
            for i, row in enumerate(rows)
        ]

    def _rows(self, path: Path, tokenizer: Any) -> Any:
        """Each row as what has to be read of it; its `chunk_spans` are the tokens that count."""
        from align.data.tokens import ExampleTokenizer
        from align.synthesis.selection.user_texts import UserTexts, tokenized_turns

        if self.tokens == "user":
            of_user = UserTexts(tokenizer, DataSettings(), chunk_tokens=512)
            return (tokenized_turns(example, of_user) for _, example in read_texts(path))
        whole = ExampleTokenizer(tokenizer, DataSettings(), chunk_tokens=512)
        return ([whole(example)] for _, example in read_texts(path))

    def _layer(self, config: PreTrainedConfig) -> tuple[int, int]:
        """The layer, and its place among those that have attention.

        Raises:
            UserError: there is no such layer, or it has no attention.
        """
        from align.patterns.native import native_patterns
        from align.patterns.pattern import FULL

        patterns = native_patterns(text_config(config))
        count = len(patterns)
        if self.layer is not None and self.layer >= count:
            raise UserError(f"select.layer={self.layer}: {self.model} has the layers 0 … {count - 1}.")
        whole = [i for i, pattern in enumerate(patterns) if pattern == FULL]
        if self.layer is None and not whole:
            raise UserError(
                f"select.model={self.model} has no layer that attends to everything: name one in select.layer."
            )
        layer = min(whole, key=lambda i: abs(i - count // 2)) if self.layer is None else self.layer
        if patterns[layer] is None:
            raise UserError(
                f"select.layer={layer}: that layer of {self.model} has no attention, take another one."
            )
        return layer, sum(pattern is not None for pattern in patterns[:layer])

    def _score(self, turns: Sequence[float], layer: int, source: str) -> Score:
        value = float(np.mean(turns))
        if not np.isfinite(value):
            return Score(None, f"no number: {self.model} gave NaN")
        why = f"attention {value:.3f} to the {self.tokens}'s tokens in layer {layer}"
        details = {"context_dependency": value}
        if len(turns) > 1:
            why = f"{why}, mean of {counted(len(turns), 'turn')}"
            details |= {f"turn_{i}": s for i, s in enumerate(turns, start=1)}
        if self.least is None:
            return Score(value, why, details)
        enough = value >= self.least
        why = f"{why} {'≥' if enough else '<'} {self.least:g}"
        if self.mark is None:
            return Score(value if enough else None, why, details)
        places = [i for i, s in enumerate(turns) if s >= self.least]
        edit = partial(marked, source=source, turns=places, mark=self.mark) if places else None
        return Score(value, why if edit is None else f"{why}, marked {self.mark}", details, edit)


def dependency(sums: np.ndarray, heads: str) -> float:
    """s of one answer: the mean over its tokens of the most that a head pays, or the most of the heads' means.

    With the sums [[.55, .25], [.15, .65]] of two heads at two tokens it is (.55 + .65) / 2 = 0.6 by `per_token`, as the
    released code has it, and max(.4, .4) = 0.4 by `per_row`, which takes one head for the whole answer.

    Args:
        sums: `[H, n]` attention to the tokens that count.
        heads: `per_token` or `per_row`.
    """
    return float(sums.max(axis=0).mean() if heads == "per_token" else sums.mean(axis=1).max())


def _read(model: PreTrainedModel, example: TokenizedExample, *, place: int, heads: str) -> dict[str, Any]:
    """s of each turn of a row."""
    from align.synthesis.selection.context_use import answer_attention

    sums = answer_attention(model, example, layer=place)
    return {"turns": [dependency(sums[:, run], heads) for run in _turns(example.answers[0].scored)]}


def _turns(scored: np.ndarray) -> list[np.ndarray]:
    """The places of each answer in what follows a prompt: runs of tokens that are scored."""
    runs = groupby(range(len(scored)), key=lambda i: bool(scored[i]))
    return [np.fromiter(run, dtype=np.int64) for is_answer, run in runs if is_answer]


def _trouble(row: Sequence[TokenizedExample], window: int | None) -> str | None:
    """Why a row has no score; None where it can have one."""
    if not all(example.chunk_spans for example in row):
        return "nothing in it counts as context"
    longest = max(len(one.prompt_ids) + len(one.answers[0].input_ids) for one in row)
    if window is not None and longest > window:
        return f"its {longest} tokens exceed the model's window of {window}"
    return None
