"""What a model finds in rows: it is loaded only if a row is missing, and what is found stays on the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from align.core.display import progress_bar
from align.core.errors import UserError
from align.core.files import cache_folder
from align.data.examples import TokenizedExample
from align.generation.generators import digest_of
from align.generation.ledger import LinesFile
from align.generation.stage import WORK, Workspace
from align.models.settings import ModelSettings
from align.models.text_part import text_config
from align.patterns.layers import patterns_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

DEVICES = ("auto", "cpu", "cuda")
Measure = Callable[["PreTrainedModel", TokenizedExample], dict[str, Any]]


def check_tells_attention(config: PreTrainedConfig, key: str) -> None:
    """Refuses a model of the configuration key `key` that is read by chosen patterns, which tell no weights.

    Raises:
        UserError: the group `attention` chose them when it was trained.
    """
    if patterns_of(text_config(config)) is not None:
        raise UserError(
            f"{key} names a model that was trained with patterns of the group attention, whose weights of attention no "
            "way of reading tells: name another model."
        )


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
        """Of the tokens, of which of them count, of the context's places, and of the settings."""
        answer = self.example.answers[0]
        ids = [self.example.prompt_ids.tolist(), answer.input_ids.tolist(), answer.scored.tolist()]
        return digest_of([ids, [list(span) for span in self.example.chunk_spans], self.settings])


class Measurements(LinesFile[dict[str, Any]]):
    """What a model found in each row, on disk."""

    def fields(self, value: dict[str, Any]) -> dict[str, Any]:
        """One mapping."""
        return {"found": value}

    def value(self, fields: Any) -> dict[str, Any]:
        """The mapping of a line."""
        return dict(fields["found"])


def measured(
    stage: str,
    examples: Sequence[TokenizedExample],
    measure: Measure,
    workspace: Workspace,
    *,
    model: ModelSettings,
    key: str,
    device: str,
    asked: str = "",
) -> list[dict[str, Any]]:
    """What the model finds in each row, in their order; what an earlier start has found is read.

    Two equal rows are read once. The model is let go behind it, so that another one has the memory.

    Args:
        stage: names the file and the bar.
        examples: in the model's tokens.
        measure: from the model in eval mode and a row to plain JSON values.
        workspace: the run's.
        model: which, and how it is loaded.
        key: of the configuration that names it, for messages.
        device: `auto`, `cpu` or `cuda`.
        asked: what else the numbers depend on, as text.

    Raises:
        UserError: weights that have changed since an earlier start.
    """
    from align.models.identity import weights_fingerprint
    from align.models.loading import load_causal_lm, load_config

    weights = weights_fingerprint(model, load_config(model, key=key), cache_folder(), key=key)
    store = Measurements(workspace.output / WORK / f"{stage}.jsonl", weights=weights)
    calls = [RowToMeasure(example, f"{model}{asked}") for example in examples]
    missing = list({call.digest: call for call in calls if call.digest not in store.finished}.values())
    if missing:
        network = load_causal_lm(model, device=_device(device)).eval()
        with progress_bar(workspace.console) as progress:
            task = progress.add_task(stage, total=len(missing))
            for call in missing:
                store.append([(call, measure(network, call.example))])
                progress.advance(task)
    return [store.finished[call.digest] for call in calls]


def _device(name: str) -> torch.device:
    import torch

    cuda = torch.cuda.is_available()
    return torch.device(("cuda" if cuda else "cpu") if name == "auto" else name)
