"""The soft mask of `adapter=region` in a run: made or read before the first step, and kept with the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.adapters.importance import measure, read_texts, spare
from align.core.errors import UserError
from align.core.files import write_bytes_atomically
from align.core.telling import is_first, tell

KEPT = "soft_mask.safetensors"


class Sparing(TrainerCallback):
    """Has rows of weights that matter for general text get less of their gradients.

    Args:
        policy: inside PEFT, with trained copies of projections.
        source: a file of importances, or of texts from which they are measured on the starting model.
        names: of the projections of all layers, as in the model without PEFT.
    """

    def __init__(self, policy: nn.Module, source: Path, names: Sequence[str]) -> None:
        self.policy, self.source, self.names = policy, source, names
        self.found: dict[str, Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measures or reads the importances, unless a checkpoint had them; the model is where it trains now."""
        if not self.found and self.source.suffix == ".safetensors":
            self.found = load_file(self.source)
        if not self.found:
            texts = read_texts(self.source, kwargs["processing_class"])
            self.found = measure(self.policy, texts, self.names)
            tell(f"adapter.soft_mask: importances measured on {len(texts)} texts of {self.source}.")
        spare(self.policy, self.found, source=str(self.source))
        if is_first():
            write_bytes_atomically(Path(str(args.output_dir)) / KEPT, save(self.found))

    def write_state(self, folder: Path) -> None:
        """See `KeptState`."""
        write_bytes_atomically(folder / KEPT, save(self.found))

    def read_state(self, folder: Path) -> None:
        """See `KeptState`: a run that goes on spares what it has spared, whatever the source holds by now."""
        if not (folder / KEPT).is_file():
            raise UserError(
                f"{folder} holds no {KEPT}, without which adapter.soft_mask cannot go on: name another checkpoint."
            )
        self.found = load_file(folder / KEPT)
