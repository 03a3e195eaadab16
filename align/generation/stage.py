"""A stage of a pipeline: all its calls, answered once, shown as a bar, resumed where they stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Generator as Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console

from align.core.display import progress_bar
from align.core.errors import UserError
from align.generation.generators import Completion, Generator, Request, ScoredText, TextScorer, weights_of
from align.generation.ledger import Ledger, LogProbLedger
from align.generation.spoken import spoken

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Result = TypeVar("Result")
Dialogue = Coroutine[list[Request], list[Completion], Result]
WORK = "work"  # folder of unfinished and finished calls below the output folder


@dataclass(frozen=True)
class Workspace:
    """What every pipeline is given.

    Attributes:
        output: the run's folder.
        seed: the run's seed.
        tokenizer: of the model, for token budgets.
        generator: answers requests.
        console: for people; everything shown goes to stderr.
    """

    output: Path
    seed: int
    tokenizer: PreTrainedTokenizerBase
    generator: Generator
    console: Console


def run_stage(name: str, requests: Sequence[Request], workspace: Workspace) -> list[Completion]:
    """The completions of all requests without thinking blocks, in their order; those of an earlier start are read."""
    return spoken(name, answer_stage(name, requests, workspace), workspace.console)


def answer_stage(name: str, requests: Sequence[Request], workspace: Workspace) -> list[Completion]:
    """The same as the model wrote them."""
    ledger = Ledger(workspace.output / WORK / f"{name}.jsonl", weights=weights_of(workspace.generator))
    pending = sum(request.digest not in ledger.finished for request in requests)
    if pending:
        with progress_bar(workspace.console) as progress:
            task = progress.add_task(name, total=len(requests), completed=len(requests) - pending)
            _answer(requests, ledger, workspace, lambda new: progress.advance(task, new))
    return [ledger.finished[request.digest] for request in requests]


def run_dialogues(
    name: str,
    dialogues: Sequence[Dialogue[Result]],
    workspace: Workspace,
    *,
    together: int | None = None,
) -> list[Result]:
    """What each dialogue returns, in their order; calls of an earlier start are read from the disk.

    Dialogues go on together in waves that the generator chooses, one round of requests after the other.

    Args:
        name: of the stage; all calls are in one ledger.
        dialogues: Python generators that yield requests and are sent completions, see `generators`.
        workspace: the run's.
        together: dialogues a wave; None leaves it to the generator. Many together fill batches where each
            round of a dialogue has few calls, a generator's own choice keeps long prefixes at hand.
    """
    ledger = Ledger(workspace.output / WORK / f"{name}.jsonl", weights=weights_of(workspace.generator))
    results: dict[int, Result] = {}
    quiet = Console(quiet=True)
    with progress_bar(workspace.console) as progress:
        task = progress.add_task(name, total=len(dialogues))

        def advance(place: int, completions: list[Completion] | None) -> list[Request] | None:
            try:
                if completions is None:
                    return next(dialogues[place])
                return dialogues[place].send(spoken(name, completions, quiet))
            except StopIteration as end:
                results[place] = end.value
                progress.advance(task)
                return None

        openings = [advance(place, None) for place in range(len(dialogues))]
        if together is None:
            waves = workspace.generator.waves([opening or [] for opening in openings])
        else:
            count = len(dialogues)
            waves = [range(i, min(i + together, count)) for i in range(0, count, max(1, together))]
        for wave in waves:
            asked = [(place, opening) for place in wave if (opening := openings[place]) is not None]
            while asked:
                _answer([request for _, own in asked for request in own], ledger, workspace, lambda _: None)
                asked = [
                    (place, following)
                    for place, own in asked
                    if (following := advance(place, [ledger.finished[request.digest] for request in own]))
                    is not None
                ]
    spoken(name, list(ledger.finished.values()), workspace.console)  # says how many thought
    return [results[place] for place in range(len(dialogues))]


def run_scores(name: str, texts: Sequence[ScoredText], workspace: Workspace) -> list[list[float]]:
    """Log-probs of every text's answer, one a token; those of an earlier start are read from the disk.

    Raises:
        UserError: the generator is a server, which gives none.
    """
    if not isinstance(workspace.generator, TextScorer):
        raise UserError(f"{name} needs log-probs of given texts, which only generator=local gives.")
    ledger = LogProbLedger(workspace.output / WORK / f"{name}.jsonl", weights=weights_of(workspace.generator))
    pending = [text for text in texts if text.digest not in ledger.finished]
    if pending:
        with progress_bar(workspace.console) as progress:
            task = progress.add_task(name, total=len(texts), completed=len(texts) - len(pending))
            for item in workspace.generator.log_probs(pending):
                ledger.append([item])
                progress.advance(task)
    return [ledger.finished[text.digest] for text in texts]


def _answer(
    requests: Sequence[Request], ledger: Ledger, workspace: Workspace, advance: Callable[[int], None]
) -> None:
    """Has every request answered and stored; `advance` learns how many new answers a group has brought."""
    if all(request.digest in ledger.finished for request in requests):
        return
    for group in workspace.generator.generate(requests, finished=ledger.finished.keys()):
        new = sum(request.digest not in ledger.finished for request, _ in group)
        ledger.append(group)
        advance(new)
