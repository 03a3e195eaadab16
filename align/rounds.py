"""`align rounds`: make data, train on it, make the next, longer data with the result, train on (LongPO's rounds)."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from align.core.config import typed
from align.core.errors import UserError
from align.core.files import write_atomically
from align.data.sources import check_place
from align.export import ACCEPT
from align.runs import exit_codes
from align.runs.api import make_callable
from align.runs.children import run_child
from align.runs.command import hydra_entry
from align.runs.outputs import check_folder
from align.runs.quoting import override

if TYPE_CHECKING:
    from omegaconf import DictConfig

TRAINED = "train.jsonl"  # what `align synthesize` leaves in its output folder


@dataclass(frozen=True)
class ModelKeys:
    """Group key `model`."""

    path: str = "embedded"
    trust_remote_code: bool = False


@dataclass(frozen=True)
class ReferenceKeys:
    """Group key `reference`."""

    model: str = "first"


@dataclass(frozen=True)
class DataKeys:
    """Group key `data`."""

    paths: list[str | None] = field(default_factory=list)


@dataclass(frozen=True)
class SynthesizeKeys:
    """Group key `synthesize`."""

    pipeline: str = "longpo"
    overrides: list[str] = field(default_factory=list)
    later: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TrainKeys:
    """Group key `train`."""

    method: str = "longpo"
    overrides: list[str] = field(default_factory=list)
    later: list[str] = field(default_factory=list)
    launch: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RoundsSettings:
    """Top-level keys; see hydra_conf/rounds.yaml."""

    lengths: list[int]
    model: ModelKeys = field(default_factory=ModelKeys)
    reference: ReferenceKeys = field(default_factory=ReferenceKeys)
    data: DataKeys = field(default_factory=DataKeys)
    synthesize: SynthesizeKeys = field(default_factory=SynthesizeKeys)
    train: TrainKeys = field(default_factory=TrainKeys)
    seed: int = 42
    output: str = "outputs/rounds"


@dataclass(frozen=True)
class Step:
    """One command of a round.

    Attributes:
        round: from 1 on.
        name: `data`, `train` or `model`: what it makes, and its folder within the round's.
        command: the words of the command.
        record: file that holds the command once it has ended well.
    """

    round: int
    name: str
    command: tuple[str, ...]
    record: Path


@hydra_entry("rounds")
def main(config: DictConfig) -> None:
    """The command."""
    rounds(config)


def rounds(config: DictConfig) -> Path:
    """Checks everything, then runs the steps that have not ended yet; the folder of the last model."""
    settings = typed(RoundsSettings, config, "")
    steps = plan(settings)
    check_folder(settings.output)
    for step in steps:
        given = settings.data.paths[step.round - 1 : step.round]
        if step.name == "train" and given and given[0] is not None and not finished(step):
            check_place(given[0], key=f"data.paths[{step.round - 1}]")
    console = Console(stderr=True)
    for step in steps:
        if not finished(step):
            run(step, console)
    last = Path(settings.output) / f"round-{len(settings.lengths)}" / "model"
    Console().print(f"model {last}", soft_wrap=True, highlight=False, markup=False)
    return last


def plan(settings: RoundsSettings) -> list[Step]:
    """Every step of every round, in order; runs and reads nothing.

    Raises:
        UserError: no lengths, lengths that do not grow, or data for more rounds than there are.
    """
    _check(settings)
    steps: list[Step] = []
    model = settings.model.path
    for number, length in enumerate(settings.lengths, start=1):
        folder = Path(settings.output) / f"round-{number}"
        given = settings.data.paths[number - 1] if number <= len(settings.data.paths) else None
        commands = {
            "train": _train(settings, number, length, model, given or str(folder / "data" / TRAINED), folder),
            "model": _export(settings, folder),
        }
        if given is None:
            commands = {"data": _synthesize(settings, number, length, model, folder), **commands}
        steps += [Step(number, name, command, folder / f"{name}.json") for name, command in commands.items()]
        model = str(folder / "model")
    return steps


def finished(step: Step) -> bool:
    """Whether the step has ended well before, by the same command.

    Raises:
        UserError: it has, by another command, or the record says nothing.
    """
    if not step.record.is_file():
        return False
    # The first word, Python, may have moved.
    known, wanted = _recorded(step.record)[1:], list(step.command[1:])
    if known != wanted:
        old, new = Counter(known), Counter(wanted)
        changed = sorted(((old - new) + (new - old)).elements()) or ["the same ones in another order"]
        raise UserError(
            f"round {step.round} has made its {step.name} with other settings ({', '.join(changed)}): set them back, "
            f"remove {step.record.parent} and the rounds after it, or name another output folder."
        )
    return True


def _recorded(record: Path) -> list[str]:
    """The command of a step that has ended."""
    try:
        words = json.loads(record.read_text(encoding="utf-8"))["command"]
        if isinstance(words, list) and words and all(isinstance(word, str) for word in words):
            return words
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(_no_record(record)) from error
    raise UserError(_no_record(record))


def _no_record(record: Path) -> str:
    return (
        f"{record} says no command that has ended, as a disk that was full may leave it: remove it, and the step is "
        "taken up where it stands."
    )


def run(step: Step, console: Console) -> None:
    """Runs the step and records that it has ended.

    Raises:
        UserError: it ended with an error, whose own message stands above.
        SystemExit: SIGTERM ended it; the same command goes on.
    """
    console.print(f"round {step.round}: {step.name}", style="bold", highlight=False, markup=False)
    step.record.parent.mkdir(parents=True, exist_ok=True)
    code = run_child(step.command)
    if code == exit_codes.STOPPED:
        raise SystemExit(exit_codes.STOPPED)
    if code:
        raise UserError(
            f"round {step.round}: making its {step.name} ended with exit code {code}, see above; what is finished "
            "stays, and the same command goes on."
        )
    write_atomically(step.record, json.dumps({"command": step.command}, indent=1) + "\n")


def _check(settings: RoundsSettings) -> None:
    lengths = settings.lengths
    if not lengths or min(lengths) < 1:
        raise UserError(
            f"lengths={lengths} needs a number of tokens from 1 on for each round, [131072, 262144]."
        )
    if any(later < earlier for earlier, later in pairwise(lengths)):
        raise UserError(f"lengths={lengths} must not shrink from round to round.")
    more = (
        settings.synthesize.overrides,
        settings.synthesize.later,
        settings.train.overrides,
        settings.train.later,
    )
    if any("trust_remote_code" in text.partition("=")[0] for texts in more for text in texts):
        raise UserError(
            "model.trust_remote_code is a key of `align rounds` itself, which each of its steps then gets: set it "
            "there, not in the overrides of a step."
        )
    if len(settings.data.paths) > len(lengths):
        raise UserError(
            f"data.paths names rows for {len(settings.data.paths)} rounds, lengths only {len(lengths)} rounds."
        )


def _synthesize(
    settings: RoundsSettings, number: int, length: int, model: str, folder: Path
) -> tuple[str, ...]:
    more = [*settings.synthesize.overrides, *(settings.synthesize.later if number > 1 else [])]
    return _align(
        "synthesize",
        f"pipeline={settings.synthesize.pipeline}",
        f"pipeline.target_length={length}",
        override("model.path", model),
        *_trust(settings, "model.trust_remote_code"),
        f"seed={settings.seed}",
        *_filled(more, number, length),
        override("output", folder / "data"),
    )


def _train(
    settings: RoundsSettings, number: int, length: int, model: str, data: str, folder: Path
) -> tuple[str, ...]:
    more = [*settings.train.overrides, *(settings.train.later if number > 1 else [])]
    reference = {"first": settings.model.path if number > 1 else None, "previous": None}.get(
        settings.reference.model, settings.reference.model
    )
    return _align(
        "train",
        f"method={settings.train.method}",
        override("model.path", model),
        *_trust(settings, "model.trust_remote_code"),
        override("data.path", data),
        f"data.max_length={length}",
        *([] if reference is None else [override("reference.model", reference)]),
        f"seed={settings.seed}",
        *_filled(more, number, length),
        override("output", folder / "train"),
        launch=settings.train.launch,
    )


def _export(settings: RoundsSettings, folder: Path) -> tuple[str, ...]:
    """Whatever the policy has beside its architecture is accepted: the next round reads it, with this toolkit."""
    places = override("path", folder / "train"), override("output", folder / "model")
    return _align("export", *places, *_trust(settings, "trust_remote_code"), f"accept=[{','.join(ACCEPT)}]")


def _trust(settings: RoundsSettings, key: str) -> list[str]:
    """Code that comes with the model is allowed to every step, since each decides for itself."""
    return [f"{key}=true"] if settings.model.trust_remote_code else []


def _filled(overrides: Sequence[str], number: int, length: int) -> list[str]:
    return [text.replace("{length}", str(length)).replace("{round}", str(number)) for text in overrides]


def _align(command: str, *overrides: str, launch: Sequence[str] = ()) -> tuple[str, ...]:
    """`align COMMAND` by this Python, or by a launcher, which starts one of its own."""
    return (*(launch or (sys.executable,)), "-m", f"align.{command}", *overrides)


make_callable(__name__)

if __name__ == "__main__":
    main()
