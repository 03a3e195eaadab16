"""What a `_target_` of the configuration may name: this project's classes by group, and what one's own has to have.

A `_target_` is called with the arguments beside it, so that the name of a function would be a command: whoever wrote
the configuration would run it. Of `align` only the classes below are called, wherever they stand. A package in
`allow_targets` adds classes of the same form, never its functions.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """What one place of the configuration takes.

    Attributes:
        own: names in this project, as `module.name` of where each is defined.
        methods: what a class from elsewhere has to have; the protocol of the place has the same.
        is_dataclass: whether its fields are the group's keys, so that their types can be checked.
    """

    own: tuple[str, ...]
    methods: tuple[str, ...]
    is_dataclass: bool = True


# Kinds by the last part of a key that they stand at: `suite`, `pipeline.scorer`, `pipeline.quality.generator`.
KINDS: dict[str, Kind] = {
    "adapter": Kind(
        (
            "align.adapters.half.Half",
            "align.adapters.library.Library",
            "align.adapters.lora.Lora",
            "align.adapters.region.Region",
            "align.adapters.soft_prompt.SoftPrompt",
            "align.adapters.spiel.Spiel",
        ),
        (
            *(
                "check",
                "check_options",
                "takes_wrapper",
                "check_launch",
                "with_modules",
                "with_tokenizer",
                "without_values",
            ),
            *("add", "begin", "rates", "callbacks"),
        ),
    ),
    "attention": Kind(
        (
            "align.patterns.choices.EveryFull",
            "align.patterns.choices.EveryWindow",
            "align.patterns.choices.Hybrid",
            "align.patterns.choices.Shifted",
        ),
        ("check", "fit", "at"),
    ),
    "others": Kind(  # of attention=hybrid: the pattern of the layers that are not full
        (
            "align.patterns.pattern.Chunked",
            "align.patterns.pattern.Full",
            "align.patterns.pattern.Strided",
            "align.patterns.pattern.Window",
        ),
        ("check", "blocks", "sees"),
    ),
    "suite": Kind(
        (
            "align.evaluation.longbench.LongBench",
            "align.evaluation.longwrite.LongWrite",
            "align.evaluation.perplexity.Perplexity",
            "align.evaluation.preference.Preference",
            "align.evaluation.questions.Questions",
            "align.evaluation.retrieval.Retrieval",
            "align.evaluation.short.Short",
        ),
        ("check", "run"),
    ),
    "pipeline": Kind(
        (
            "align.synthesis.buckets.pipeline.BucketsPipeline",
            "align.synthesis.existing.ExistingRows",
            "align.synthesis.logo.pipeline.LogoPipeline",
            "align.synthesis.longpo.pipeline.LongPOPipeline",
            "align.synthesis.longwriter.pipeline.LongWriterPipeline",
            "align.synthesis.utk.pipeline.UtkPipeline",
        ),
        ("check", "read", "run"),
    ),
    "generator": Kind(
        ("align.generation.local.LocalSettings", "align.generation.server.OpenAISettings"),
        ("check", "open"),
    ),
    "select": Kind(
        (
            "align.synthesis.selection.context_dependency.ContextDependency",
            "align.synthesis.selection.gateau.Gateau",
            "align.synthesis.selection.length_score.LengthScore",
            "align.synthesis.selection.reference_logp.ReferenceLogp",
            "align.synthesis.selection.select.ByLength",
            "align.synthesis.selection.select.ByMargin",
            "align.synthesis.selection.select.KeepAll",
            "align.synthesis.selection.survival.Survival",
        ),
        ("check", "scores"),
    ),
    "combine": Kind(
        (
            "align.merging.average.Average",
            "align.merging.average.Interpolate",
            "align.merging.half_reset.HalfReset",
            "align.merging.slerp.Slerp",
            "align.merging.task_vectors.DareLinear",
            "align.merging.task_vectors.DareTies",
            "align.merging.task_vectors.TaskArithmetic",
            "align.merging.task_vectors.Ties",
        ),
        ("check", "fit", "linear", "over"),
    ),
    "table": Kind(
        (
            "align.rope_tables.clex.Clex",
            "align.rope_tables.giraffe.Giraffe",
            "align.rope_tables.lists.Factors",
            "align.rope_tables.lists.Frequencies",
            "align.rope_tables.ntk.Ntk",
        ),
        ("check", "frequencies"),
    ),
    "memory": Kind(
        ("align.generation.memories.NoMemory", "align.generation.memories.TempLora"), ("check", "keep")
    ),
    "positions": Kind(
        (
            "align.data.placements.e2.E2",
            "align.data.placements.logo.Logo",
            "align.data.placements.randomised.Randomised",
            "align.data.placements.skip.Skip",
        ),
        ("check", "fitted", "place"),
    ),
    "token_weights": Kind(
        ("align.data.weighers.Rank", "align.data.weighers.Spans"), ("check", "reads", "weights")
    ),
    "order": Kind(
        ("align.data.orders.Buckets", "align.data.orders.Grow", "align.data.orders.Shuffled"),
        ("check", "check_mixture", "arrange"),
    ),
    "query_scale": Kind(
        (
            "align.query_scale.constant.Constant",
            "align.query_scale.llama4.Llama4",
            "align.query_scale.log_length.LogLength",
        ),
        ("check", "scale", "words"),
    ),
    "scorer": Kind(
        (
            "align.synthesis.logo.auto_relevance.auto_scorer",
            "align.synthesis.logo.relevance.Bm25",
            "align.synthesis.logo.relevance.TfIdf",
            "align.synthesis.logo.spacy_relevance.SpacyOverlap",
        ),
        ("score", "is_critical"),
        is_dataclass=False,
    ),
    "quality": Kind(
        ("align.synthesis.longwriter.quality.Checks", "align.synthesis.longwriter.quality.Judge"),
        ("check", "score"),
        is_dataclass=False,
    ),
    "agent_write": Kind(
        ("align.synthesis.longwriter.agent_write.AgentWrite",), ("check", "write"), is_dataclass=False
    ),
    "self_lengthen": Kind(
        ("align.synthesis.longwriter.self_lengthen.SelfLengthen",), ("check", "lengthen"), is_dataclass=False
    ),
}


def target_problem(target: Any, node: Mapping[str, Any], kind: str | None) -> str | None:
    """Why an object of an allowed package may not be called, in words; None where it may.

    Args:
        target: the function or class, not called yet.
        node: the mapping that names it.
        kind: of `KINDS`; None where a place takes any.
    """
    place = f"{target.__module__}.{getattr(target, '__qualname__', '')}"
    if kind is not None and node.get("_partial_"):
        return "a whole object is wanted here: remove `_partial_`"
    if place.startswith("align."):
        return (
            None if place in _own(kind) else f"take {', '.join(_own(kind))}, or a class of a package of yours"
        )
    if kind is None:
        whole = inspect.isclass(target) or place.startswith("losses.") or node.get("_partial_") is True
        return None if whole else "a function would run at once: add `_partial_: true`, or name a class"
    return _lack(target, kind)


def _own(kind: str | None) -> list[str]:
    """What this project has of a kind; of None, of all."""
    return sorted({name for each in ([kind] if kind else KINDS) for name in KINDS[each].own})


def _lack(target: Any, kind: str) -> str | None:
    """What a target from elsewhere lacks to stand where a kind is wanted; None where it lacks nothing."""
    if not inspect.isclass(target):
        return f"a {kind} is a class, not a function"
    lacking = [f"{name}()" for name in KINDS[kind].methods if not _has(target, name)]
    if lacking:
        return f"a {kind} has {' and '.join(lacking)}, which this class has not"
    if KINDS[kind].is_dataclass and not dataclasses.is_dataclass(target):
        return f"a {kind} is a dataclass, whose fields are the keys of the group"
    return None


def _has(target: type, name: str) -> bool:
    """Whether a class defines or inherits a method; what only its metaclass has does not count."""
    return any(callable(vars(base).get(name)) for base in target.__mro__)
