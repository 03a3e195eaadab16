"""What a loss is called with: the prompts of a micro-batch, or all prompts of the global step at once.

A loss over the whole step (`needs.batch: step`: KTO's KL, AOT's sorting, BCO's running mean) may not change with the
micro-batch, the accumulation or the number of processes. So every process has the log-probs of all of the step's
prompts: those of other data-parallel groups as numbers, its own with their graph. Where a step has several
micro-batches they are read once before, without a graph: a forward pass more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from align.distributed.host import gather_numbers, several_processes
from align.longseq.moving import to_device
from align.training.methods import Method
from losses import LossOutput, PairLogps

if TYPE_CHECKING:
    from align.training.trainer import PreferenceTrainer


@dataclass(frozen=True)
class Scored:
    """A micro-batch that has been read: its log-probs, and `[B]` which of its prompts are no placeholders."""

    policy: PairLogps
    reference: PairLogps | None
    real: Sequence[bool]


class StepLosses(Protocol):
    """How a trainer calls the loss of its method."""

    def begin(self, batches: Sequence[dict[str, Any]], score: Callable[[Any], Scored]) -> None:
        """Takes in the micro-batches of a step before the first of them is trained on.

        Args:
            batches: this process's.
            score: gives a micro-batch's log-probs without a graph.
        """

    def reference(self) -> PairLogps | None:
        """Reference log-probs of the next micro-batch, where they are known already."""

    def output(self, scored: Scored) -> LossOutput:
        """Losses and rewards of the next micro-batch's prompts; the losses' sum has the gradient of the step's."""

    def held_out(self, parts: Sequence[Scored]) -> Iterator[LossOutput]:
        """The same of held-out rows, of which `parts` are all that this process has read."""


def read_before(trainer: PreferenceTrainer, inputs: dict[str, Any]) -> Scored:
    """The log-probs of a micro-batch that will be trained on later: without a graph, and without dropout."""
    model = trainer.model_wrapped
    model.eval()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        scored = trainer.scored(model, trainer._prepare_inputs(inputs))
    model.train()
    return scored


def step_losses(method: Method, degree: int, process: int, gather: Callable[[Tensor], Tensor]) -> StepLosses:
    """The way in which `needs.batch` asks for a method's loss to be called.

    Args:
        method: the loss and its needs.
        degree: processes that share a row, and hold the same.
        process: this one's rank.
        gather: every process's `[n, …]` tensor behind each other.
    """
    if method.needs.batch == "prompt":
        return PromptByPrompt(method)
    return OverTheStep(method, degree=degree, group=process // degree, gather=gather)


class PromptByPrompt:
    """For losses of which each value follows from its own prompt."""

    def __init__(self, method: Method) -> None:
        self._loss = method.loss

    def begin(self, batches: Sequence[dict[str, Any]], score: Callable[[Any], Scored]) -> None:
        """See `StepLosses`."""

    def reference(self) -> None:
        """See `StepLosses`."""

    def output(self, scored: Scored) -> LossOutput:
        """See `StepLosses`."""
        return self._loss(scored.policy, scored.reference)

    def held_out(self, parts: Sequence[Scored]) -> Iterator[LossOutput]:
        """See `StepLosses`."""
        return (self.output(part) for part in parts)


class OverTheStep:
    """For losses that are called with all prompts of the global step.

    Args:
        method: the loss, and what it remembers from step to step.
        degree: processes that share a row, and hold the same.
        group: this process's data-parallel group, from 0.
        gather: every process's `[n, …]` tensor behind each other.
    """

    def __init__(
        self, method: Method, *, degree: int, group: int, gather: Callable[[Tensor], Tensor]
    ) -> None:
        self._method, self._degree, self._group, self._gather = method, degree, group, gather
        self._known: list[Scored] = []  # of the present step, read before; empty where it is one micro-batch
        self._step: _Joined | None = None
        self._next = 0

    def begin(self, batches: Sequence[dict[str, Any]], score: Callable[[Any], Scored]) -> None:
        """See `StepLosses`."""
        self._known, self._step, self._next = [], None, 0
        if len(batches) > 1:
            self._known = [score(batch) for batch in batches]
            self._step = self._observed(self._known)

    def reference(self) -> PairLogps | None:
        """See `StepLosses`."""
        return self._known[self._next].reference if self._known else None

    def output(self, scored: Scored) -> LossOutput:
        """See `StepLosses`."""
        if self._step is None:
            self._step, self._next = self._observed([scored]), 0
        place, self._next = self._next, self._next + 1
        step = self._step
        if self._next == len(step.parts):
            self._known, self._step, self._next = [], None, 0
        return step.of_part(self._method, place, scored)

    def held_out(self, parts: Sequence[Scored]) -> Iterator[LossOutput]:
        """See `StepLosses`."""
        if not parts:
            return iter(())
        joined = self._joined(parts)
        return (joined.of_part(self._method, place, part) for place, part in enumerate(parts))

    def _observed(self, parts: Sequence[Scored]) -> _Joined:
        """The step's prompts, after the loss's states have been told of them."""
        joined, learners = self._joined(parts), self._method.learners().values()
        if learners:
            policy, reference = joined.whole()
            outputs = [loss(policy, reference) for loss, _ in learners]
            for (_, state), output in zip(learners, outputs, strict=True):
                state.observe(policy, output)
        return joined

    def _joined(self, parts: Sequence[Scored]) -> _Joined:
        answers = max(part.policy.rejected.shape[1] for part in parts)
        flags = [bool(flag) for part in parts for flag in part.real]
        groups, all_flags = 1, flags
        if several_processes():
            told = gather_numbers([answers, *map(int, flags)])[:: self._degree]
            answers, groups = max(row[0] for row in told), len(told)
            all_flags = [bool(flag) for row in told for flag in row[1:]]

        def table(sides: Sequence[PairLogps | None]) -> Tensor | None:
            own = [to_table(each, answers) for each in sides if each is not None]
            if not own:
                return None
            found = self._gather(torch.cat(own).detach())
            return found.view(groups, -1, len(flags), found.shape[1])[:, 0].flatten(0, 1)

        policy = table([part.policy for part in parts])
        assert policy is not None
        reference = table([part.reference for part in parts])
        return _Joined(tuple(parts), policy, reference, all_flags, self._group * len(flags), answers)


@dataclass(frozen=True)
class _Joined:
    """The prompts of all groups as tables of numbers, a row each.

    Attributes:
        parts: this process's micro-batches.
        policy: `[n, columns]`, see `to_table`.
        reference: the same; None without.
        real: `[n]` which are no placeholders.
        start: this process's first row.
        answers: M.
    """

    parts: tuple[Scored, ...]
    policy: Tensor
    reference: Tensor | None
    real: Sequence[bool]
    start: int
    answers: int

    def whole(self) -> tuple[PairLogps, PairLogps | None]:
        """Log-probs of all real prompts, without a graph."""
        return self._of_real(self.policy, self.reference)

    def of_part(self, method: Method, place: int, live: Scored) -> LossOutput:
        """Losses and rewards of micro-batch `place`, whose log-probs with their graph are `live`'s."""
        count = len(live.real)
        first = self.start + sum(len(part.real) for part in self.parts[:place])
        own = [first + i for i in range(count) if self.real[first + i]]
        policy = torch.cat(
            [self.policy[:first], to_table(live.policy, self.answers), self.policy[first + count :]]
        )
        output = method.loss(*self._of_real(policy, self.reference))
        # Places of this micro-batch's real prompts among all real ones, and within the micro-batch.
        before = list(accumulate(self.real, initial=0))
        device = policy.device
        rows = _index([before[i] for i in own], device)
        slots = _index([i - first for i in own], device)
        nothing = torch.zeros_like(live.policy.chosen, dtype=torch.bool)
        blank = torch.where(nothing, live.policy.chosen, 0.0).to(output.loss.dtype)  # 0, with a graph
        losses = blank.index_copy(0, slots, output.loss[rows])
        if (
            own
        ):  # the others' losses may depend on these prompts: their gradient comes along, their value does not
            others = output.loss.sum() - output.loss[rows].sum()
            share = torch.zeros_like(blank).index_fill(0, slots[:1], 1.0)
            nothing_but_slope = (
                others - others.detach()
            )  # not a number where another prompt's loss is not finite
            losses = losses + share * torch.where(nothing_but_slope == 0, nothing_but_slope, 0.0)
        rewards = output.rejected_reward[rows, : live.policy.rejected.shape[1]]
        return LossOutput(
            losses,
            torch.zeros_like(blank.detach()).index_copy(0, slots, output.chosen_reward[rows]),
            torch.zeros_like(live.policy.rejected.detach()).index_copy(0, slots, rewards),
        )

    def _of_real(self, policy: Tensor, reference: Tensor | None) -> tuple[PairLogps, PairLogps | None]:
        index = _index([i for i, real in enumerate(self.real) if real], policy.device)
        like = self.parts[0]
        chosen = from_table(policy[index], like.policy, self.answers)
        if reference is None or like.reference is None:
            return chosen, None
        return chosen, from_table(reference[index], like.reference, self.answers)


def _index(places: Sequence[int], device: torch.device) -> Tensor:
    return to_device(torch.tensor(places, dtype=torch.long), device)


def to_table(logps: PairLogps, answers: int) -> Tensor:
    """`[B, columns]` all numbers of `logps`, rejected answers filled up to `answers` by absent ones.

    Log-probs −2 and `[−3, −4]` of 5 and `[6, 7]` tokens with room for three rejected answers:
    `−2, −3, −4, 0, 5, 6, 7, 0`.
    """
    room = answers - logps.rejected.shape[1]
    wide = [value[:, None] if value.dim() == 1 else pad(value, (0, room)) for value in _tensors(logps)]
    return torch.cat([value.to(logps.chosen.dtype) for value in wide], dim=1)


def from_table(table: Tensor, like: PairLogps, answers: int) -> PairLogps:
    """The inverse of `to_table`; `like` says which numbers there are."""
    room = answers - like.rejected.shape[1]
    widths = [1 if value.dim() == 1 else value.shape[1] + room for value in _tensors(like)]
    columns = iter(table.split(widths, dim=1))

    def back(value: Any) -> Any:
        if isinstance(value, Tensor):
            column = next(columns).to(value.dtype)
            return column[:, 0] if value.dim() == 1 else column
        if isinstance(value, PairLogps):
            return PairLogps(**{each.name: back(getattr(value, each.name)) for each in fields(PairLogps)})
        if isinstance(value, Mapping):
            return {name: back(each) for name, each in value.items()}
        return value

    found: PairLogps = back(like)
    return found


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor of log-probs, in the order of their fields."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PairLogps):
        for each in fields(PairLogps):
            yield from _tensors(getattr(value, each.name))
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
