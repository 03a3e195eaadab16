"""How likely other models find an answer: the filter of PoFT (arXiv 2412.12865), and the column of its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from align.core.config import check_choice
from align.core.errors import UserError
from align.core.readable import counted
from align.data.examples import TokenizedExample
from align.generation.stage import Workspace
from align.models.paths import check_path
from align.models.settings import ModelSettings
from align.synthesis.selection.measuring import DEVICES, measured
from align.synthesis.selection.select import Score, check_keep, tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MEAN = "mean_logp"  # `selection.details.mean_logp`


@dataclass(frozen=True)
class ReferenceLogp:
    """`select=reference_logp`; hydra_conf/select/reference_logp.yaml comments every key.

    Two models that give an answer of their 4 and 5 tokens −6 and −10 nats find it −1.5 and −2.0 likely, together −1.75.
    """

    models: list[str] = field(default_factory=list)
    least: float | None = None
    keep: float | None = None
    dtype: str = "auto"
    device: str = "auto"

    @property
    def name(self) -> str:
        """Name and parameters."""
        return f"reference_logp(models={', '.join(self.models)}, least={self.least})"

    def check(self) -> None:
        """Raises UserError for a value out of range, no model, or one named twice."""
        if not self.models:
            raise UserError(
                "select.models is not set: name the folders or Hub ids of the models that read answers."
            )
        twice = sorted({model for model in self.models if self.models.count(model) > 1})
        if twice:
            raise UserError(
                f"select.models names {twice[0]} twice: the mean over models would count it twice."
            )
        for model in self.models:
            check_path(model, key="select.models")
        check_choice("select.device", self.device, DEVICES)
        check_keep(self.keep)
        if self.least is not None and not self.least <= 0:
            raise UserError(
                f"select.least={self.least} must be 0 or less: it is a mean log-prob, in nats a token."
            )

    def scores(self, path: Path, workspace: Workspace) -> list[Score]:
        """Every model's mean log-prob of a token of the chosen answer, and the mean over the models.

        One model after the other reads all rows, in its own tokens and through its own chat template. A number belongs
        to the place of its row, so that rows with one id, and equal rows, are no trouble.
        """
        found = [self._read(number, path, workspace) for number in range(1, len(self.models) + 1)]
        return [self._score(logps) for logps in zip(*found, strict=True)]

    def _read(self, number: int, path: Path, workspace: Workspace) -> list[float | str]:
        """What one model finds in each row; a sentence where it cannot read it."""
        from align.models.loading import load_config, load_tokenizer, window_of

        settings = ModelSettings(path=self.models[number - 1], dtype=self.dtype)
        window = window_of(load_config(settings, key="select.models"))
        tokenizer = load_tokenizer(settings.path, key="select.models")
        examples = [example for _, example in tokenized(path, tokenizer)]
        lengths = [len(one.prompt_ids) + len(one.answers[0].input_ids) for one in examples]
        fits = [window is None or length <= window for length in lengths]
        logps = measured(
            f"reference_logp-{number}",
            [example for example, fit in zip(examples, fits, strict=True) if fit],
            _mean_logp,
            workspace,
            model=settings,
            key="select.models",
            device=self.device,
        )
        numbers = iter(logps)
        return [
            float(next(numbers)["logp"])
            if fit
            else f"its {length} tokens exceed the window of {settings.path}, {window}"
            for length, fit in zip(lengths, fits, strict=True)
        ]

    def _score(self, logps: Sequence[float | str]) -> Score:
        numbers = [logp for logp in logps if not isinstance(logp, str)]
        if len(numbers) < len(logps):
            return Score(None, next(logp for logp in logps if isinstance(logp, str)))
        if not np.isfinite(numbers).all():
            silent = self.models[[bool(np.isfinite(logp)) for logp in numbers].index(False)]
            return Score(None, f"no number: {silent} gave NaN, or no probability at all")
        mean = float(np.mean(numbers))
        details = {MEAN: mean, **{f"{MEAN}_{i}": logp for i, logp in enumerate(numbers, start=1)}}
        why = f"log-prob {mean:.3f} a token, mean of {counted(len(numbers), 'model')}"
        if self.least is None:
            return Score(mean, why, details)
        enough = mean >= self.least
        return Score(mean if enough else None, f"{why} {'≥' if enough else '<'} {self.least:g}", details)


def _mean_logp(model: PreTrainedModel, example: TokenizedExample) -> dict[str, Any]:
    """Nats a token over all that the assistant says, the ends of its answers included, as training scores them."""
    from align.synthesis.selection.context_use import answer_nll

    return {"logp": -answer_nll(model, example)}
