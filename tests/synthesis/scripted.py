"""A generator for the pipelines' tests: questions, plans and judgements by script, all prose by a tiny model.

A random model writes words but numbers no questions. `ScriptedSettings` is a Hydra target, so that a real process
of `align synthesize` can be run, and killed, on it.
"""

from __future__ import annotations

import io
import json
import random
import re
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

import hydra_conf
from align.generation.generators import Completion, Generator, Request, weights_of
from align.generation.local import LocalSettings
from align.generation.stage import Workspace
from align.models.settings import ModelSettings
from align.scores.judgement import DIMENSIONS
from tests.generation.helpers import KilledError
from tests.tiny import CHAT_TEMPLATE, SPECIAL_TOKENS, VOCABULARY_SIZE, tiny_model

_ROLES = ("system", "user", "assistant", "\n", ".")
_SYLLABLES = ("bar", "del", "fin", "gor", "hul", "kes", "lim", "mon", "nad", "pir", "ros")
WORDS = [first + second for first in _SYLLABLES for second in _SYLLABLES]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One made-up word, one token; ChatML as in `tests.tiny`."""
    names = [*SPECIAL_TOKENS, *_ROLES, *WORDS][:VOCABULARY_SIZE]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<|unk|>"))
    splits = [pre_tokenizers.Split(mark, behavior="isolated") for mark in ("\n", ".")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.Split(" ", behavior="removed")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
    )


def save_model(folder: Path) -> Path:
    """A tiny model with its tokenizer on disk."""
    tiny_model().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def words_text(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def write_documents(
    path: Path, count: int = 5, *, paragraphs: int = 8, words: int = 14, seed: int = 0
) -> Path:
    """JSON Lines with documents of paragraphs of random words."""
    rng = random.Random(seed)
    texts = ["\n\n".join(words_text(rng, words) for _ in range(paragraphs)) for _ in range(count)]
    path.write_text("".join(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(texts)))
    return path


class Scripted:
    """Answers what has a form of its own by script, and lets `local` write the rest.

    Args:
        local: answers all that the script does not know.
        groups: raise `KilledError` instead of giving the group after this many; None never does.
        pause: seconds before each group, so that a process can be killed between them.
    """

    def __init__(self, local: Generator, *, groups: int | None = None, pause: float = 0.0) -> None:
        self.local = local
        self.name = self.identity = "tiny"
        self.weights = weights_of(local)
        self.left = groups
        self.pause = pause

    def waves(self, openings: Sequence[Sequence[Request]]) -> list[range]:
        return self.local.waves(openings)

    def generate(
        self, requests: Sequence[Request], *, finished: Collection[str]
    ) -> Iterator[Sequence[tuple[Request, Completion]]]:
        for group in self._groups(requests, finished):
            if self.left == 0:
                raise KilledError
            if self.left is not None:
                self.left -= 1
            time.sleep(self.pause)
            yield group

    def _groups(
        self, requests: Sequence[Request], finished: Collection[str]
    ) -> Iterator[Sequence[tuple[Request, Completion]]]:
        scripted = [request for request in requests if script(request) is not None]
        for start in range(0, len(scripted), 2):
            group = scripted[start : start + 2]
            if any(request.digest not in finished for request in group):
                yield [(request, Completion(script(request) or "", 9, "stop")) for request in group]
        if prose := [request for request in requests if script(request) is None]:
            yield from self.local.generate(prose, finished=finished)


def script(request: Request) -> str | None:
    """The scripted answer; None where the model shall write."""
    rng = random.Random(request.seed)
    kind = request.id.rsplit("/", 1)[-1]
    if kind == "questions":
        found = re.findall(r"[a-z]{6}", request.messages[0].content) or WORDS
        if rng.random() < 0.25:
            return "no questions today"
        lines = [f"{k}. What is {rng.choice(found)} or {rng.choice(found)}?" for k in range(1, 5)]
        return "Here you are:\n" + "\n".join(lines)
    if kind.startswith("plan"):
        count = rng.randint(0, 3)
        return "\n".join(
            f"Paragraph {k} - Main Point: {rng.choice(WORDS)} - Word Count: {rng.randint(4, 12)} words"
            for k in range(1, count + 1)
        )
    if kind.startswith("judge"):
        marks = {name: rng.randint(1, 5) for name in DIMENSIONS}
        return f"Well.\n{json.dumps(marks)}" if rng.random() < 0.6 else "It is good."
    return None


@dataclass(frozen=True)
class ScriptedSettings(LocalSettings):
    """Group `generator` of a run on a tiny model; see `Scripted`."""

    pause: float = 0.0

    def open(self, model: ModelSettings, tokenizer: PreTrainedTokenizerBase) -> Scripted:  # type: ignore[override]
        return Scripted(super().open(model, tokenizer), pause=self.pause)


def settings_of(name: str) -> dict[str, object]:
    """The keys of hydra_conf/pipeline/<name>.yaml without its target and defaults."""
    config = OmegaConf.load(Path(hydra_conf.__file__).parent / "pipeline" / f"{name}.yaml")
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key not in ("_target_", "defaults")}


def workspace(output: Path, folder: Path, *, groups: int | None = None, seed: int = 1) -> Workspace:
    """A run's workspace on the model that `save_model` left in `folder`."""
    tokenizer = word_tokenizer()
    local = LocalSettings(batch_size=3).open(ModelSettings(path=str(folder)), tokenizer)
    return Workspace(output, seed, tokenizer, Scripted(local, groups=groups), Console(file=io.StringIO()))
