"""`suite.score`: how an answer is held against accepted ones. A name, a function and how its mean is read make one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from align.core.errors import UserError
from align.evaluation import longbench_metrics
from align.evaluation.answers import contains_answer, never_found
from align.evaluation.intervals import Measure, mean_interval, proportion_interval

Records = Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class AnswerScore:
    """One way to score.

    Attributes:
        name: of the score in samples and summary.
        of: `(what is said, accepted answers) → 0 … 1`.
        measure: how its mean gets an interval.
        counted: what of an answer is looked at, unless `suite.counted` says so: `first_line` or `whole`.
        notes: of all records, what the mean is not to be read without.
        packages: of the extra `evaluate`, which it needs.
    """

    name: str
    of: Callable[[str, Sequence[str]], float]
    measure: Measure
    counted: str
    notes: Callable[[Records], list[str]] = lambda _: []
    packages: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises UserError where a package is missing."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f"suite.score needs the package {missing[0]}: `pip install 'long-preference[evaluate]'`."
            )


def best_of(metric: longbench_metrics.Metric, said: str, answers: Sequence[str]) -> float:
    """The best of a metric over the accepted answers."""
    return max(metric(said, answer, ()) for answer in answers)


_SHARE = Measure(partial(mean_interval, bounds=(0.0, 1.0)), "higher")

SCORES = {
    "contains": AnswerScore(
        "found",
        lambda said, answers: float(contains_answer(said, answers)),
        Measure(proportion_interval, "higher"),
        "first_line",
        never_found,
    ),
    "rouge_l": AnswerScore(
        "rouge_l", partial(best_of, longbench_metrics.rouge_l), _SHARE, "whole", packages=("rouge",)
    ),
    "rouge_l_zh": AnswerScore(
        "rouge_l",
        partial(best_of, longbench_metrics.rouge_l_zh),
        _SHARE,
        "whole",
        packages=("rouge", "jieba"),
    ),
}
