"""GATEAU (arXiv 2410.15633): rows that need their long context most, by two rankings.

Homologous models' guidance: where a model of a short window finds the answer much harder than the same model with
a long one, it depends on what stands far away. Contextual awareness: where the long model's attention goes
elsewhere than to the segments that help it, the context is hard to understand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from align.core.config import check_choice
from align.core.display import progress_bar
from align.core.errors import UserError
from align.core.files import cache_folder
from align.data.examples import TokenizedExample
from align.generation.generators import digest_of
from align.generation.ledger import LinesFile
from align.generation.stage import WORK, Workspace
from align.models.settings import ModelSettings, RopeSettings
from align.synthesis.selection.select import Score, check_keep, tokenized

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Gateau:
    """`select=gateau`; hydra_conf/select/gateau.yaml comments every key."""

    short_model: str | None = None
    long_model: str | None = None
    short_rope: dict[str, Any] = field(default_factory=dict)
    long_rope: dict[str, Any] = field(default_factory=dict)
    dtype: str = "auto"
    alpha: float = 0.8
    segment_tokens: int = 128
    segment_batch: int = 16
    keep: float | None = 0.5
    device: str = "auto"

    @property
    def name(self) -> str:
        """Name and parameters."""
        return (
            f"gateau(short={self.short_model}, long={self.long_model}, alpha={self.alpha:g}, "
            f"segment_tokens={self.segment_tokens})"
        )

    def check(self) -> None:
        """Raises UserError for a value out of range or a missing model."""
        for key in ("short_model", "long_model"):
            if not getattr(self, key):
                raise UserError(
                    f"select.{key} is not set: GATEAU compares two models of one family, of a short and of a long "
                    "window; name their folders or Hub ids."
                )
        for key in ("short_rope", "long_rope"):
            unknown = set(getattr(self, key)) - set(RopeSettings.__dataclass_fields__)
            if unknown:
                raise UserError(
                    f"select.{key} takes the keys of model.rope, not {', '.join(sorted(unknown))}."
                )
        if not 0 <= self.alpha <= 1:
            raise UserError(f"select.alpha={self.alpha} must lie in [0, 1].")
        for key in ("segment_tokens", "segment_batch"):
            if getattr(self, key) < 1:
                raise UserError(f"select.{key}={getattr(self, key)} is too small: give a number from 1 on.")
        check_choice("select.device", self.device, DEVICES)
        check_keep(self.keep)

    def scores(self, path: Path, workspace: Workspace) -> list[Score]:
        """One model after the other reads all rows; what an earlier start has measured is read from the disk."""
        from align.synthesis.selection.context_use import answer_nll

        examples = [example for _, example in tokenized(path, workspace)]
        for example in examples:
            if not example.chunk_spans:
                raise UserError(f"{example.source}: select=gateau needs rows with a context.")
        short = self._measure("short", examples, workspace, lambda model, e: {"nll": answer_nll(model, e)})
        long = self._measure("long", examples, workspace, self._read_long)
        guidance = guidance_scores(
            np.exp([entry["nll"] for entry in short]), np.exp([entry["nll"] for entry in long])
        )
        misaligned = np.array(
            [misalignment(entry["attention"], entry["segment_nll"]) for entry in long], dtype=np.float64
        )
        awareness = softmax(misaligned)
        total = self.alpha * guidance + (1 - self.alpha) * awareness
        return [
            Score(
                float(total[i]),
                f"perplexity {np.exp(short[i]['nll']):.2f} with the short window and {np.exp(long[i]['nll']):.2f} with "
                f"the long one, attention {misaligned[i]:.3f} away from what helps",
                {
                    "guidance": float(guidance[i]),
                    "misalignment": float(misaligned[i]),
                    "short_nll": float(short[i]["nll"]),
                    "long_nll": float(long[i]["nll"]),
                },
            )
            for i in range(len(examples))
        ]

    def _read_long(self, model: PreTrainedModel, example: TokenizedExample) -> dict[str, Any]:
        from align.synthesis.selection.context_use import answer_nll, segment_attention, segment_nlls

        return {
            "nll": answer_nll(model, example),
            "attention": segment_attention(model, example, segment_tokens=self.segment_tokens),
            "segment_nll": segment_nlls(
                model, example, segment_tokens=self.segment_tokens, batch=self.segment_batch
            ),
        }

    def _measure(
        self,
        which: str,
        examples: Sequence[TokenizedExample],
        workspace: Workspace,
        measure: Callable[[PreTrainedModel, TokenizedExample], dict[str, Any]],
    ) -> list[dict[str, Any]]:
        """What one model finds in each row; it is loaded only if a row is missing, and let go afterwards."""
        from align.models.identity import weights_fingerprint
        from align.models.loading import load_causal_lm, load_config

        settings = ModelSettings(
            path=str(getattr(self, f"{which}_model")),
            dtype=self.dtype,
            rope=RopeSettings(**getattr(self, f"{which}_rope")),
        )
        weights = weights_fingerprint(
            settings, load_config(settings), cache_folder(), key=f"select.{which}_model"
        )
        store = Measurements(workspace.output / WORK / f"gateau-{which}.jsonl", weights=weights)
        calls = [RowToMeasure(example, f"{settings}{self.segment_tokens}") for example in examples]
        missing = [call for call in calls if call.digest not in store.finished]
        if missing:
            model = load_causal_lm(settings, device=self._device()).eval()
            with progress_bar(workspace.console) as progress:
                task = progress.add_task(
                    f"gateau {which}", total=len(calls), completed=len(calls) - len(missing)
                )
                for call in missing:
                    store.append([(call, measure(model, call.example))])
                    progress.advance(task)
        return [store.finished[call.digest] for call in calls]

    def _device(self) -> torch.device:
        import torch

        cuda = torch.cuda.is_available()
        return torch.device(("cuda" if cuda else "cpu") if self.device == "auto" else self.device)


@dataclass(frozen=True)
class RowToMeasure:
    """A row that one model reads; see `ledger.Call`."""

    example: TokenizedExample
    settings: str

    @property
    def id(self) -> str:
        """For people."""
        return self.example.source

    @property
    def digest(self) -> str:
        """Of the tokens, the model's settings and the segments."""
        ids = [self.example.prompt_ids.tolist(), self.example.answers[0].input_ids.tolist()]
        return digest_of([ids, [list(span) for span in self.example.chunk_spans], self.settings])


class Measurements(LinesFile[dict[str, Any]]):
    """What a model found in each row, on disk."""

    def fields(self, value: dict[str, Any]) -> dict[str, Any]:
        """One mapping."""
        return {"found": value}

    def value(self, fields: Any) -> dict[str, Any]:
        """The mapping of a line."""
        return dict(fields["found"])


def guidance_scores(short: np.ndarray, long: np.ndarray) -> np.ndarray:
    """Homologous models' guidance: softmax over the rows of norm(PPL_short) − norm(PPL_long), `[N]`.

    norm is (x − min) / (max − min) over the rows, as in the released code; all 0 where all are equal.
    """
    return softmax(_unit(short) - _unit(long))


def misalignment(attention: Sequence[float], nlls: Sequence[float]) -> float:
    """1 − cos(a, s) of two distributions over segments: attention, and what helps; 0 … 1.

    a is the answer's mean attention to a token of each segment, divided by its sum; s is the softmax of the
    negative log-perplexity of the answer given that segment alone. The paper calls the first normalised scores
    and the second importance; the last step of its released code is missing, so that norms are ours.
    """
    given = np.asarray(attention, dtype=np.float64)
    if not given.any():
        return 1.0  # nothing of the context was looked at, as behind a sliding window
    given = given / given.sum()
    helps = softmax(-np.asarray(nlls, dtype=np.float64))
    return float(1 - given @ helps / (np.linalg.norm(given) * np.linalg.norm(helps)))


def softmax(values: np.ndarray) -> np.ndarray:
    """Over all entries, `[N]`."""
    raised = np.exp(values - values.max())
    return raised / raised.sum()


def _unit(values: np.ndarray) -> np.ndarray:
    """Scaled to 0 … 1."""
    spread = values.max() - values.min()
    return (values - values.min()) / spread if spread > 0 else np.zeros_like(values)
