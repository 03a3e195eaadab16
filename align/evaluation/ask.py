"""Prompts answered by the model, one ledger a process; prompts with a common beginning are read once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from align.core.errors import UserError
from align.core.files import write_bytes_atomically
from align.core.readable import agreeing, counted
from align.generation.generators import (
    Completion,
    Message,
    Request,
    Sampling,
    WindowError,
    derive_seed,
    weights_of,
)
from align.generation.ledger import Ledger
from align.generation.shares import own_share
from align.generation.spoken import spoken
from align.generation.stage import WORK, Workspace, answer_stage
from align.runs.exclusive import exclusive

if TYPE_CHECKING:
    from align.evaluation.suite import Evaluation

PATIENCE = timedelta(days=7)  # of processes that wait for each other


@dataclass(frozen=True)
class Sample:
    """A prompt and what is known of it.

    Attributes:
        request: the call.
        facts: plain JSON values for the record: accepted answers, length, depth, …
    """

    request: Request
    facts: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Unique in its suite."""
        return self.request.id


def user_request(
    name: str, content: str, *, seed: int, max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0
) -> Request:
    """One user message through the chat template; by default decoded greedily."""
    sampling = Sampling(temperature, top_p, 0, max_new_tokens)
    return Request(name, (Message("user", content),), sampling, derive_seed(seed, name))


def answer(
    stage: str, samples: Sequence[Sample], evaluation: Evaluation, *, shorter: str
) -> list[Completion]:
    """Every sample's completion without thinking blocks, in order; processes share the samples and all get all answers.

    A process stores its answers in a ledger of its own, which no other one writes to. A later start reads the ledgers
    of all earlier ones, with any number of processes.

    Args:
        stage: names the ledgers.
        samples: what is asked.
        evaluation: the suite's.
        shorter: what to lower where a prompt does not fit the model's window: the suite's keys.

    Raises:
        UserError: a prompt does not fit the model's window; other weights have answered before.
    """
    requests = {sample.request.digest: sample.request for sample in samples}
    workspace = evaluation.workspace
    if own_name(stage) == stage:
        # All calls together, those that are stored too: batches come out the same after a restart.
        own = _missing(requests, _finished(f"{stage}.*", workspace))
    else:
        own = own_share(lambda: _missing(requests, _finished_by_any(stage, workspace)))
    if own:
        try:
            answer_stage(own_name(stage), [requests[digest] for digest in own], first_shows(workspace))
        except WindowError as error:
            raise UserError(f"{error.what}: {shorter}.") from error
    wait_for_all()
    done = _finished_by_any(stage, workspace)
    wait_for_all()  # nobody writes again before all have read
    said = [done[sample.request.digest] for sample in samples]
    return spoken(stage, said, first_shows(workspace).console)


def cut_note(records: Sequence[Mapping[str, Any]], limit: str) -> list[str]:
    """A sentence where answers were cut at their most tokens, by what `cut` of a record says.

    Args:
        records: one a sample.
        limit: what cut them, for people: the suite's key.
    """
    cut = sum(bool(record["cut"]) for record in records)
    were = agreeing(len(records), "was", "were")
    return [f"{cut} of {counted(len(records), 'answer')} {were} cut at {limit}."] if cut else []


def adopt_answers(stage: str, workspace: Workspace) -> None:
    """Takes the calls of all ledgers of a stage into this process's own one, as an earlier start has left them.

    For stages whose calls follow from each other, so that nobody can tell beforehand which of them are missing: with
    another number of processes each is given other work, and finds its calls all the same.

    Raises:
        UserError: a ledger holds a line that is no answer.
    """
    own = workspace.output / WORK / f"{own_name(stage)}.jsonl"
    others = {*own.parent.glob(f"{stage}.jsonl"), *own.parent.glob(f"{stage}.*.jsonl")} - {own}
    mine = _lines(own)
    found: dict[str, bytes] = {}
    for path in sorted(others):
        found |= _lines(path)
    wait_for_all()  # nobody writes before all have read
    if found.keys() - mine.keys():
        write_bytes_atomically(own, b"".join(line + b"\n" for line in (found | mine).values()))


def _lines(path: Path) -> dict[str, bytes]:
    """The whole lines of a ledger, by the digest of their call."""
    if not path.is_file():
        return {}
    Ledger.read(path)
    return {json.loads(line)["request"]: line for line in path.read_bytes().split(b"\n")[:-1]}


def _missing(digests: Iterable[str], done: Mapping[str, Completion]) -> list[str]:
    return [digest for digest in digests if digest not in done]


def own_name(stage: str) -> str:
    """The stage's ledger, or this process's own one where several share it."""
    from accelerate import PartialState

    state = PartialState()
    return stage if state.num_processes == 1 else f"{stage}.{state.process_index}"


def first_shows(workspace: Workspace) -> Workspace:
    """Only the first process shows a bar; its share stands for the others'."""
    from accelerate import PartialState

    return workspace if PartialState().is_main_process else replace(workspace, console=Console(quiet=True))


def join_processes(*, cpu: bool) -> None:
    """Makes the processes of one launch known to each other.

    One may have far more to write than another, and torch would end them all after 10 or 30 minutes of waiting. Where a
    process fails, its launcher ends the others.
    """
    from accelerate import PartialState

    PartialState(cpu=cpu, timeout=PATIENCE)


@contextmanager
def exclusive_of_all(output: str) -> Iterator[None]:
    """The folder is this launch's own for as long as the context lasts: its first process keeps other launches out.

    Raises:
        UserError: in every process, where another run is at work in it.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState()
    with ExitStack() as held:
        refused: list[Any] = [None]
        if state.is_main_process:
            try:
                held.enter_context(exclusive(output))
            except UserError as error:
                refused = [str(error)]
        if state.num_processes > 1:
            broadcast_object_list(refused, from_process=0)
        if refused[0] is not None:
            raise UserError(refused[0])
        yield


def wait_for_all() -> None:
    """Returns when every process has come here."""
    from accelerate import PartialState

    PartialState().wait_for_everyone()


def _finished_by_any(stage: str, workspace: Workspace) -> dict[str, Completion]:
    """The answers in all ledgers of a stage."""
    return _finished(stage, workspace) | _finished(f"{stage}.*", workspace)


def _finished(pattern: str, workspace: Workspace) -> dict[str, Completion]:
    """The answers in the ledgers of this name; none of them is written to."""
    found: dict[str, Completion] = {}
    for path in sorted((workspace.output / WORK).glob(f"{pattern}.jsonl")):
        found |= Ledger.read(path, weights=weights_of(workspace.generator))
    return found
