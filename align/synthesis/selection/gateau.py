"""GATEAU (arXiv 2410.15633): rows that need their long context most, by two rankings.

Homologous models' guidance: where a model of a short window finds the answer much harder than the same model with
a long one, it depends on what stands far away. Contextual awareness: where the long model's attention goes
elsewhere than to the segments that help it, the context is hard to understand.
"""

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
from align.models.settings import ModelSettings, RopeSettings
from align.synthesis.selection.gateau_numbers import are_numbers, guidance_scores, misalignment, softmax
from align.synthesis.selection.measuring import DEVICES, Measure, check_tells_attention, measured
from align.synthesis.selection.select import Score, check_keep, tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WHICH = ("short", "long")


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
            check_path(str(getattr(self, key)), key=f"select.{key}")
        for key in ("short_rope", "long_rope"):
            unknown = set(getattr(self, key)) - set(RopeSettings.__dataclass_fields__)
            if unknown:
                raise UserError(
                    f"select.{key} takes the keys of model.rope, not {', '.join(sorted(unknown))}."
                )
            table = getattr(self, key).get("table")
            if table is not None and not hasattr(table, "frequencies"):
                raise UserError(f"select.{key}.table needs a `_target_`, as model.rope.table has.")
            if table is not None:
                table.check()
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

        examples = self._examples(path)
        short = self._measure("short", examples, workspace, lambda model, e: {"nll": answer_nll(model, e)})
        long = self._measure("long", examples, workspace, self._read_long)
        usable = [i for i in range(len(examples)) if are_numbers(short[i], long[i])]
        if not usable:
            raise UserError(
                f"select=gateau: {self.short_model} and {self.long_model} together gave no number for any row: see "
                "what they answer, or read them with select.dtype=float32."
            )
        if len(usable) < len(examples):
            workspace.console.print(
                f"gateau: {len(examples) - len(usable)} of {counted(len(examples), 'row')} got no number from one of "
                "the models (NaN, or beyond all numbers), so that they have no rank and are not kept.",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        ranked = self._ranked([short[i] for i in usable], [long[i] for i in usable])
        found = dict(zip(usable, ranked, strict=True))
        nothing = Score(None, "no number: one of the models gave NaN, or a perplexity beyond all numbers")
        return [found.get(i, nothing) for i in range(len(examples))]

    def _ranked(self, short: Sequence[dict[str, Any]], long: Sequence[dict[str, Any]]) -> list[Score]:
        """The scores of rows of which everything is a number."""
        guidance = guidance_scores(
            np.exp([entry["nll"] for entry in short]), np.exp([entry["nll"] for entry in long])
        )
        misaligned = np.array(
            [misalignment(entry["attention"], entry["segment_nll"]) for entry in long], dtype=np.float64
        )
        total = self.alpha * guidance + (1 - self.alpha) * softmax(misaligned)
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
            for i in range(len(total))
        ]

    def _examples(self, path: Path) -> list[TokenizedExample]:
        """The rows as both models read them: in their own tokens, not those of `model.path`."""
        from align.data.vocabulary import check_ids, vocabulary_of
        from align.models.loading import load_config, load_tokenizer

        settings = {f"select.{which}_model": self._settings(which) for which in WHICH}
        short, long = (load_tokenizer(own.path, key=key) for key, own in settings.items())
        own_tokens = self._own_tokens(short, long)
        configs = {key: load_config(own, key=key) for key, own in settings.items()}
        check_tells_attention(configs["select.long_model"], "select.long_model")
        sizes = [vocabulary_of(config) for config in configs.values()]
        examples = []
        for _, example in tokenized(path, long):
            if not example.chunk_spans:
                raise UserError(f"{example.source}: select=gateau needs rows with a context.")
            ids = {*example.prompt_ids.tolist(), *example.answers[0].input_ids.tolist()}
            for token in ids & own_tokens.keys():
                raise UserError(
                    f"{example.source}: it holds {own_tokens[token]!r}, a token that only the tokenizer of "
                    f"select.long_model={self.long_model} has: name two models of one family."
                )
            for size in sizes:
                check_ids(example, size, tokenizer=long)
            examples.append(example)
        return examples

    def _own_tokens(self, short: PreTrainedTokenizerBase, long: PreTrainedTokenizerBase) -> dict[int, str]:
        """Added tokens, such as one for padding, that only the long model has; all else has to be the same in both."""
        of_short, of_long = short.get_vocab(), long.get_vocab()
        added = {token.content for own in (short, long) for token in own.added_tokens_decoder.values()} - (
            of_short.keys() & of_long.keys()
        )
        differing = {token for token, _ in of_short.items() ^ of_long.items()} - added
        if differing:
            raise UserError(
                f"select.short_model={self.short_model} and select.long_model={self.long_model} have different "
                f"tokenizers ({counted(len(differing), 'token')} differ, {min(differing)!r} among them), so that their "
                "perplexities cannot be compared: name two models of one family."
            )
        return {of_long[token]: token for token in added & of_long.keys()}

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
        self, which: str, examples: Sequence[TokenizedExample], workspace: Workspace, measure: Measure
    ) -> list[dict[str, Any]]:
        """What one model finds in each row."""
        return measured(
            f"gateau-{which}",
            examples,
            measure,
            workspace,
            model=self._settings(which),
            key=f"select.{which}_model",
            device=self.device,
            asked=str(self.segment_tokens),
        )

    def _settings(self, which: str) -> ModelSettings:
        return ModelSettings(
            path=str(getattr(self, f"{which}_model")),
            dtype=self.dtype,
            rope=RopeSettings(**getattr(self, f"{which}_rope")),
        )
