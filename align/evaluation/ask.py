"""Prompts answered by the model, one ledger a process; prompts with a common beginning are read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from align.generation.generators import Completion, Message, Request, Sampling, derive_seed
from align.generation.ledger import Ledger
from align.generation.spoken import spoken
from align.generation.stage import WORK, answer_stage, run_stage

if TYPE_CHECKING:
    from align.evaluation.suite import Evaluation


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
    """One user message; by default decoded greedily."""
    sampling = Sampling(temperature, top_p, 0, max_new_tokens)
    return Request(name, (Message("user", content),), sampling, derive_seed(seed, name))


def answer(stage: str, samples: Sequence[Sample], evaluation: Evaluation) -> list[Completion]:
    """Every sample's completion, in order; several processes share the samples and all get all answers.

    A process takes every n-th sample and stores its answers in a ledger of its own. A later start reads the
    ledgers of all earlier ones, with any number of processes.
    """
    from accelerate import PartialState

    state = PartialState()
    requests = [sample.request for sample in samples]
    if state.num_processes == 1:
        return run_stage(stage, requests, evaluation.workspace)
    folder = evaluation.workspace.output / WORK
    done = _finished(folder, stage)
    missing = [request for request in requests if request.digest not in done]
    own = missing[state.process_index :: state.num_processes]
    # Only the first process shows a bar; its share stands for the others'.
    console = evaluation.workspace.console
    quiet = replace(
        evaluation.workspace, console=console if state.is_main_process else type(console)(quiet=True)
    )
    if own:
        answer_stage(f"{stage}.{state.process_index}", own, quiet)
    state.wait_for_everyone()
    done = _finished(folder, stage)
    state.wait_for_everyone()
    return spoken(stage, [done[request.digest] for request in requests], quiet.console)


def _finished(folder: Any, stage: str) -> dict[str, Completion]:
    """The answers in all ledgers of a stage."""
    found: dict[str, Completion] = {}
    for path in sorted([*folder.glob(f"{stage}.jsonl"), *folder.glob(f"{stage}.*.jsonl")]):
        found |= Ledger(path).finished
    return found
