"""Soft prompts: k tokens of their own before each prompt, whose embeddings train (or stay, while the model trains)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.adapters.adapter import Still
from align.core.config import check_choice, check_seed
from align.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

TRAINS = ("prompt", "base")
VOCABULARY = "vocabulary"  # of `adapter.init`
NAME = "soft_prompt"  # of the rows in the files that PEFT writes, as models/soft_prompt.py names them
FREQUENT = 5000  # first ids of a vocabulary, which in one of byte pairs are the most frequent tokens
WEIGHTS = "adapter_model.safetensors"  # as PEFT names it


@dataclass(frozen=True)
class SoftPrompt(Still):
    """Prompt tuning (arXiv 2104.08691); see hydra_conf/adapter/soft_prompt.yaml and models/soft_prompt.py.

    Attributes:
        tokens: k, tokens before each prompt.
        init: `vocabulary`, the embeddings of frequent tokens drawn by `seed`; else a text, those of its tokens.
        path: folder of a run that has trained a prompt, which this one begins with; null begins anew.
        trains: `prompt`; or `base`, all parameters of the model with the prompt of `path` before each prompt
            (ProMoT's second stage, arXiv 2211.00635).
        radius: how far a row may move from where it began, see `ball`; null: anywhere.
        seed: of the draw.
        modules_to_save: ends of the names of modules that train in full beside it.
    """

    tokens: int = 20
    init: str = VOCABULARY
    path: str | None = None
    trains: str = "prompt"
    radius: float | None = None
    seed: int = 42
    modules_to_save: list[str] = field(default_factory=list)

    kind = "soft_prompt"
    takes_four_bits = False

    @property
    def removable(self) -> bool:
        """While the prompt trains: rows are read without it, by the model that has not changed."""
        return self.trains == "prompt"

    @property
    def trains_checkpoint_weights(self) -> bool:
        """Where the model trains, or modules beside the prompt."""
        return self.trains == "base" or bool(self.modules_to_save)

    @property
    def soft_tokens(self) -> int:
        """See `Adapter`."""
        return self.tokens

    def check(self) -> None:
        """Refuses numbers, words and combinations that train nothing, and a folder without such a prompt."""
        check_choice("adapter.trains", self.trains, TRAINS)
        check_seed(self.seed)
        if self.tokens < 1:
            raise UserError(f"adapter.tokens={self.tokens} is no prompt: give a number of tokens from 1 on.")
        if not self.init.strip():
            raise UserError(f"adapter.init={self.init!r} has no tokens: give a text, or {VOCABULARY}.")
        if self.radius is not None and not 0.0 < self.radius < float("inf"):
            raise UserError(
                f"adapter.radius={self.radius} is no radius: give a number above 0, or null for none."
            )
        if self.trains == "base":
            self._check_base()
        if self.path is not None:
            self._check_stored(self.path)

    def _check_base(self) -> None:
        """What does not go with a prompt that stays."""
        if self.path is None:
            raise UserError(
                "adapter.trains=base trains the model behind a prompt that has been trained before: name the run that "
                "did, adapter.path=FOLDER."
            )
        for name in ("radius", "modules_to_save"):
            if getattr(self, name):
                raise UserError(
                    f"adapter.{name} is of a prompt that trains, and adapter.trains=base trains the model: leave it "
                    "out."
                )

    def _check_stored(self, path: str) -> None:
        """The prompt of `path` has `tokens` tokens; read from the file's head alone."""
        tokens = _stored(path)[2][0]
        if tokens != self.tokens:
            raise UserError(
                f"adapter.path={path} holds a prompt of {tokens} tokens: set adapter.tokens={tokens}."
            )

    def takes_wrapper(self, wrapper: str) -> bool:
        """In every one without a ball; with one not in DeepSpeed's, whose optimizer steps copies of the weights."""
        return self.radius is None or not wrapper.startswith("zero")

    def check_launch(self, wrapper: str, arguments: TrainingArguments) -> None:
        """Refuses a ball where what is changed in the weights does not reach the optimizer."""
        launched = arguments.deepspeed_plugin is not None and self.radius is not None
        if launched or not self.takes_wrapper(wrapper):
            raise UserError(
                "adapter.radius changes weights after each step, and DeepSpeed's optimizer steps copies of them: "
                "launch with ddp or fsdp2, or set adapter.radius=null."
            )

    def with_modules(self, names: Sequence[str]) -> SoftPrompt:
        """See `Adapter`; with `trains=base` they train anyway."""
        if self.trains == "base":
            return self
        return replace(self, modules_to_save=[*self.modules_to_save, *names])

    def add(self, model: PreTrainedModel) -> Any:
        """See `Adapter`."""
        from align.adapters.copies import train_copies
        from align.adapters.targets import saved_of
        from align.models.soft_prompt import PromptRows, add_soft_prompt
        from align.models.text_part import freeze_other_parts, text_modules

        ends = tuple(saved_of(model, self.modules_to_save, []))
        beside = [name for name, _ in text_modules(model) if ends and name.endswith(ends)]
        rows = PromptRows(self._rows(model), trains=self.trains == "prompt")
        prompt = add_soft_prompt(model, rows)
        if self.trains == "prompt":
            return train_copies(model, [prompt, *beside])
        freeze_other_parts(model)
        return model

    def _rows(self, model: PreTrainedModel) -> Tensor:
        """`[k, H]` embeddings of frequent tokens, in float32 at least."""
        import numpy as np

        from align.models.soft_prompt import vocabulary_rows

        frequent = min(FREQUENT, vocabulary_rows(model.get_input_embeddings()))
        drawn = np.random.default_rng(self.seed).choice(frequent, self.tokens, replace=self.tokens > frequent)
        return _embedded(model, drawn.tolist())

    def begin(self, policy: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        """See `Adapter`: the prompt of `path`, or the embeddings of a text."""
        from align.models.soft_prompt import prompt_weights
        from align.models.structure import find_causal_lm

        weights = prompt_weights(policy)
        if self.path is not None:
            rows = _trained(self.path)
            width = weights[0].shape[1]
            if rows.shape[1] != width:
                raise UserError(
                    f"adapter.path={self.path} holds a prompt for embeddings of {rows.shape[1]} numbers, and those of "
                    f"model.path have {width}: it was trained for another model."
                )
        elif self.init != VOCABULARY:
            ids = tokenizer(self.init, add_special_tokens=False)["input_ids"]
            if not ids:
                raise UserError(f"adapter.init={self.init!r} has no tokens: give a text, or {VOCABULARY}.")
            repeated = [ids[i % len(ids)] for i in range(self.tokens)]
            rows = _embedded(find_causal_lm(policy), repeated)
        else:
            return
        for weight in weights:
            weight.data.copy_(rows)

    def callbacks(self, policy: nn.Module) -> Sequence[TrainerCallback]:
        """See `Adapter`: the ball that rows stay in."""
        if self.radius is None:
            return ()
        from align.adapters.ball import StayInBall
        from align.models.soft_prompt import prompt_layer

        return (StayInBall(prompt_layer(policy), self.radius),)


def _embedded(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """`[k, H]` what a model's embedding gives of some ids, in float32 at least."""
    import torch

    from align.adapters.copies import whole

    tokens: Any = model.get_input_embeddings()
    with torch.no_grad(), whole([tokens.weight]):
        rows: Tensor = tokens(torch.tensor(ids, device=tokens.weight.device))
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def check_mergeable(weights: Path) -> None:
    """Refuses a folder that holds a soft prompt: it is no weight of a model.

    Args:
        weights: what a run has saved: an adapter, or a whole model.
    """
    if _found(weights) is not None:
        raise UserError(
            f"{weights} holds a soft prompt, which no ordinary model folder has a place for: ask the policy while it "
            "trains (suites), or train the model behind it (adapter.path, adapter.trains=base) and take that one."
        )


def _stored(path: str) -> tuple[Path, str, list[int]]:
    """The file that holds the prompt of a run, a checkpoint or a folder of weights; its name in it, and `[k, H]`."""
    for folder in (Path(path), Path(path) / "model"):
        found = _found(folder)
        if found is not None:
            return found
    raise UserError(
        f"adapter.path={path} holds no soft prompt: name the folder of a run of adapter=soft_prompt that has ended, or "
        "a checkpoint of one."
    )


def _found(folder: Path) -> tuple[Path, str, list[int]] | None:
    """The same of one folder, read from the head of its file without torch; None without a prompt."""
    file = folder / WEIGHTS
    if not file.is_file():
        return None
    try:
        with file.open("rb") as stream:
            head = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: restore it.") from error
    return next(((file, name, each["shape"]) for name, each in head.items() if f".{NAME}." in name), None)


def _trained(path: str) -> Tensor:
    """`[k, H]` the prompt of a run."""
    from safetensors import safe_open

    file, name, _ = _stored(path)
    with safe_open(str(file), framework="pt") as opened:
        rows: Tensor = opened.get_tensor(name)
    return rows
