"""Many calls to one server at once: retried, paced, and ended without losing what has come."""

from __future__ import annotations

import heapq
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from align.core.errors import UserError

Job = TypeVar("Job")
Answer = TypeVar("Answer")
LONGEST_BACKOFF = 60.0  # seconds


class RetryError(Exception):
    """A call that may succeed later.

    Args:
        reason: for people, without secrets.
        after: seconds that the server asked to wait; None where it said nothing.
        everybody: the server turned the call away because of all calls together (a rate limit): all wait.
    """

    def __init__(self, reason: str, *, after: float | None = None, everybody: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after
        self.everybody = everybody


@dataclass(frozen=True)
class Pace:
    """How calls are made.

    Attributes:
        concurrency: most calls in flight.
        retries: most further attempts of a call. Being turned away does not count while others succeed.
        backoff: seconds before the first further attempt, doubled each time up to a minute, with jitter.
        patience: most seconds to wait where the server names a time.
        calls_per_minute: None: no limit.
        tokens_per_minute: None: no limit.
    """

    concurrency: int
    retries: int
    backoff: float
    patience: float
    calls_per_minute: float | None = None
    tokens_per_minute: float | None = None


@dataclass(order=True)
class _Attempt:
    """The next attempt of a call: of all that wait the one that is due first goes first.

    Attributes:
        due: when it may start, on the monotonic clock; 0 at first.
        place: the call's place among the jobs.
        failures: attempts that count as failed so far.
        successes_then: how many calls had succeeded when it last failed; −1 before that.
        started: when it last started.
    """

    due: float
    place: int
    failures: int = field(default=0, compare=False)
    successes_then: int = field(default=-1, compare=False)
    started: float = field(default=0.0, compare=False)


class Pool(Generic[Job, Answer]):
    """Runs `call` for every job in threads.

    A call that waits for its next attempt holds no place among those in flight.

    Args:
        call: makes a call; raises RetryError, or UserError where nothing will help.
        tokens: of a job, for `pace.tokens_per_minute`.
        pace: see there.
    """

    def __init__(self, call: Callable[[Job], Answer], tokens: Callable[[Job], int], pace: Pace) -> None:
        self.call = call
        self.tokens = tokens
        self.pace = pace
        self._changed = threading.Condition()
        self._results: queue.SimpleQueue[tuple[Job, Answer] | None] = queue.SimpleQueue()
        self._random = random.Random()  # jitter: nothing that is recorded depends on it
        self._failure: BaseException | None = None
        self._next_start = 0.0
        self._successes = 0
        self._pause = (
            0.0  # seconds between two starts while the server turns all calls away and names no time
        )
        self._paused_at = 0.0
        self._pauses = 0  # how often it has been lengthened since a call succeeded

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Answer]]:
        """Every job with its answer, as they come.

        Raises:
            UserError: after all answers that came, where a call failed for good.
        """
        self._jobs = jobs
        self._ready = [_Attempt(0.0, place) for place in range(len(jobs))]
        self._left = len(jobs)
        threads = [
            threading.Thread(target=self._work, daemon=True)
            for _ in range(min(self.pace.concurrency, len(jobs)))
        ]
        for thread in threads:
            thread.start()
        try:
            working = len(threads)
            while working:
                result = self._results.get()
                if result is None:
                    working -= 1
                else:
                    yield result
        finally:
            with self._changed:  # also where the reader has gone away: threads end after the call in hand
                self._left = 0
                self._changed.notify_all()
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            while (attempt := self._take()) is not None:
                self._try(attempt)
        except BaseException as error:
            self._fail(error)
        finally:
            self._results.put(None)

    def _take(self) -> _Attempt | None:
        """The next attempt, when its time has come; None at the end. Reserves its share of the rates."""
        with self._changed:
            while True:
                if self._left <= 0 or self._failure is not None:
                    return None
                now = time.monotonic()
                wait = self._wait(now)
                if wait <= 0:
                    attempt = heapq.heappop(self._ready)
                    wait = max(self._pause, self._interval(self._jobs[attempt.place]))
                    self._next_start = max(now, self._next_start) + wait
                    attempt.started = now
                    return attempt
                self._changed.wait(min(wait, 3600.0))

    def _wait(self, now: float) -> float:
        """Seconds until an attempt may start."""
        if not self._ready:
            return 3600.0
        return max(self._ready[0].due, self._next_start) - now

    def _interval(self, job: Job) -> float:
        """Seconds that this call takes up of the allowed rates."""
        calls, tokens = self.pace.calls_per_minute, self.pace.tokens_per_minute
        return max(60.0 / calls if calls else 0.0, 60.0 * self.tokens(job) / tokens if tokens else 0.0)

    def _try(self, attempt: _Attempt) -> None:
        job = self._jobs[attempt.place]
        try:
            answer = self.call(job)
        except RetryError as error:
            self._again(attempt, error)
            return
        self._results.put((job, answer))
        with self._changed:
            self._successes += 1
            self._left -= 1
            if self._pause:  # the server takes calls again
                self._pause, self._pauses = 0.0, 0
                self._next_start = time.monotonic()
                self._changed.notify_all()
            if self._left <= 0:
                self._changed.notify_all()

    def _again(self, attempt: _Attempt, error: RetryError) -> None:
        """Puts the attempt back with its new time, or gives up."""
        with self._changed:
            others_succeed = error.everybody and self._successes > attempt.successes_then
            attempt.successes_then = self._successes
            attempt.failures += 0 if others_succeed else 1
            if attempt.failures > self.pace.retries:
                raise UserError(
                    f"the server failed {attempt.failures} times in a row ({error.reason}): start the same command "
                    "again when it works; nothing that it answered is lost."
                )
            if error.after is not None and error.after > self.pace.patience:
                raise UserError(
                    f"the server asks to wait {error.after:.0f} s, longer than generator.patience "
                    f"({error.reason}): start the same command again then; nothing that it answered is lost."
                )
            backoff = self._doubled(attempt.failures - 1)
            jitter = self._random.uniform(0.5, 1.0)
            now = time.monotonic()
            if error.everybody:
                attempt.due = self._wait_together(attempt, error.after, now, jitter)
            else:
                attempt.due = now + (error.after if error.after is not None else backoff * jitter)
            heapq.heappush(self._ready, attempt)
            self._changed.notify()

    def _wait_together(self, attempt: _Attempt, after: float | None, now: float, jitter: float) -> float:
        """When this call is due, while all wait; where the server names none, they double until one succeeds.

        Calls that were on their way when the others began to wait lengthen nothing: one refusal has met them all. While
        the server names no time, one call at a time finds out whether it takes calls again.
        """
        if after is not None:
            self._next_start = max(self._next_start, now + after)
            return now + after
        if attempt.started >= self._paused_at:
            self._paused_at = now
            self._pause = self._doubled(self._pauses) * jitter
            self._pauses += 1
            self._next_start = max(self._next_start, now + self._pause)
        return 0.0  # as all that have not started: so it is always the first of the jobs that finds out

    def _doubled(self, times: int) -> float:
        """The backoff, doubled this many times, up to its longest; a number's powers end before a server's failures."""
        return min(LONGEST_BACKOFF, self.pace.backoff * 2.0 ** min(64, max(0, times)))

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
