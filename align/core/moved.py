"""Modules and names that have moved: old ones are accepted for one release, with a sentence that says what to write.

`allow_targets`, `_target_`s and imports of version 0.1.0 go on working: `import align.model` gives the names of
`align.models.loading`, `align.models.settings` and the others that the module was split into, and
`from align.data.dataset import Collator` the class that is `align.training.collate.Collator` now.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from align.core.errors import MovedWarning

# Old module → where its names are now, the first one named to the user.
MOVED: dict[str, tuple[str, ...]] = {
    "align.checkpoints": ("align.runs.checkpoints",),
    "align.children": ("align.runs.children",),
    "align.config": ("align.core.config",),
    "align.continuation": ("align.runs.continuation",),
    "align.data.distribution": ("align.training.sampling",),
    "align.data.rows": ("align.data.stored_rows",),
    "align.errors": ("align.core.errors",),
    "align.evaluation.statistics": ("align.evaluation.intervals",),
    "align.instantiate": ("align.core.instantiate",),
    "align.jobs": ("align.runs.jobs",),
    "align.longseq.agreement": ("align.distributed.agreement", "align.longseq.parallel"),
    "align.longseq.exchange": ("align.longseq.gather", "align.longseq.collectives"),
    "align.longseq.memory": ("align.longseq.checkpointing", "align.longseq.settings"),
    "align.lora": ("align.adapters.lora", "align.adapters.adapter", "align.models.settings"),
    "align.memory": ("align.training.peak_memory",),
    "align.methods": ("align.training.methods", "align.training.method_settings"),
    "align.metrics": ("align.training.metrics", "align.training.metric_names"),
    "align.model": (
        "align.models.loading",
        "align.models.settings",
        "align.models.checks",
        "align.models.paths",
        "align.models.embedded",
        "align.adapters.lora",
        "align.adapters.adapter",
        "align.models.structure",
        "align.core.files",
    ),
    "align.model_card": ("align.training.model_card",),
    "align.models.lora": ("align.adapters.adapter", "align.adapters.targets"),
    "align.plain_rows": ("align.longseq.plain_rows",),
    "align.planning.report": ("align.planning.tables",),
    "align.preemption": ("align.runs.preemption",),
    "align.progress": ("align.training.progress",),
    "align.quantization": ("align.models.quantization",),
    "align.reference_build": ("align.reference.build",),
    "align.reference_cache": ("align.reference.cache",),
    "align.reference_fill": ("align.training.fill",),
    "align.reference_key": ("align.reference.key", "align.models.identity"),
    "align.reference_shards": ("align.reference.shards", "align.reference.settings"),
    "align.results": ("align.training.results", "align.training.metric_names", "align.core.files"),
    "align.rope": ("align.models.rope", "align.models.settings"),
    "align.runfolder": ("align.runs.folder", "align.core.files"),
    "align.sealed": ("align.runs.saving",),
    "align.scores.judge": ("align.scores.judgement",),
    "align.settings": ("align.training.run", "align.training.settings", "align.longseq.settings"),
    "align.small_copy": ("align.verification.small_copy",),
    "align.synthesis.agent_write": ("align.synthesis.longwriter.agent_write",),
    "align.synthesis.archives": ("align.documents.archives",),
    "align.synthesis.auto_scorer": ("align.synthesis.logo.auto_relevance",),
    "align.synthesis.batches": ("align.generation.batches",),
    "align.synthesis.beginnings": ("align.generation.prefixes",),
    "align.synthesis.cache": ("align.generation.call_cache",),
    "align.synthesis.candidates": ("align.synthesis.longwriter.candidates",),
    "align.synthesis.chunking": ("align.documents.chunking",),
    "align.synthesis.context_use": ("align.synthesis.selection.context_use",),
    "align.synthesis.contexts": ("align.synthesis.logo.contexts",),
    "align.synthesis.continued": ("align.generation.prefix_attention",),
    "align.synthesis.documents": ("align.documents.loading",),
    "align.synthesis.duplicates": ("align.documents.duplicates",),
    "align.synthesis.escape": ("align.generation.markers",),
    "align.synthesis.gateau": ("align.synthesis.selection.gateau",),
    "align.synthesis.generators": ("align.generation.generators",),
    "align.synthesis.instructions": ("align.synthesis.longwriter.instructions",),
    "align.synthesis.judge": ("align.synthesis.logo.verdicts",),
    "align.synthesis.ledger": ("align.generation.ledger",),
    "align.synthesis.lengths": ("align.documents.lengths",),
    "align.synthesis.local": ("align.generation.local", "align.generation.local_generator"),
    "align.synthesis.plans": ("align.synthesis.longwriter.writing_plan",),
    "align.synthesis.pool": ("align.generation.pool",),
    "align.synthesis.prompt": ("align.generation.prompts",),
    "align.synthesis.quality": ("align.synthesis.longwriter.quality",),
    "align.synthesis.questions": ("align.synthesis.longpo.numbered",),
    "align.synthesis.rows": ("align.synthesis.logo.rows", "align.synthesis.answers"),
    "align.synthesis.sampling": ("align.generation.sampling",),
    "align.synthesis.scorers": ("align.synthesis.logo.relevance",),
    "align.synthesis.select": ("align.synthesis.selection.select",),
    "align.synthesis.self_lengthen": ("align.synthesis.longwriter.self_lengthen",),
    "align.synthesis.server": ("align.generation.server",),
    "align.synthesis.spacy_scorer": ("align.synthesis.logo.spacy_relevance",),
    "align.synthesis.stage": ("align.generation.stage", "align.core.display"),
    "align.synthesis.windows": ("align.synthesis.longpo.windows",),
    "align.trainer": ("align.training.trainer",),
    "align.training_log": ("align.training.log",),
    "align.weighting": ("align.training.weighting",),
    "align.wrappers": ("align.distributed.wrappers", "align.distributed.names"),
}

_REFERENCE = {
    "sources": ("AdapterOff", "Frozen", "Reference", "ReferenceUsage", "autocast_forward", "sum_turns"),
    "settings": ("ReferenceSettings", "reference_model", "resolve_source"),
}
# Old name in a module → where it is now. A module that is still there asks for it with `renamed`.
RENAMED: dict[str, str] = {
    "align.models.lora.add_lora": "align.adapters.adapter.add_adapter",
    "align.data.dataset.Collator": "align.training.collate.Collator",
    "align.longseq.Group": "align.longseq.PackedPrompt",
    "align.longseq.shared_prefix.Group": "align.longseq.shared_prefix.PackedPrompt",
    "align.synthesis.scorers.Scorer": "align.synthesis.logo.relevance.RelevanceScorer",
    **{
        f"align.reference.{name}": f"align.reference.{module}.{name}"
        for module, names in _REFERENCE.items()
        for name in names
    },
}


def renamed(module: str, name: str) -> Any:
    """What an old name in `RENAMED` names now, after a warning: a module's `__getattr__` (PEP 562).

    Raises:
        AttributeError: a name that there never was.
    """
    place = RENAMED.get(f"{module}.{name}")
    if place is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    warnings.warn(
        f"{module}.{name} is {place} now; the old name goes with the next release.",
        MovedWarning,
        stacklevel=3,
    )
    where, _, attribute = place.rpartition(".")
    return getattr(importlib.import_module(where), attribute)


def current_names(name: str) -> list[str]:
    """Where a dotted name may be now: `align.synthesis.scorers.Bm25` → `[align.synthesis.logo.relevance.Bm25]`.

    A name whose module has not moved is its own only entry.
    """
    module, _, attribute = name.rpartition(".")
    if name in RENAMED:
        return [RENAMED[name]]
    return [f"{place}.{attribute}" for place in MOVED.get(module, (module,))]


class MovedFinder(MetaPathFinder):
    """Finds the old names of `MOVED`; every other import is left to Python."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A module that stands in for the old one, after a warning."""
        places = MOVED.get(fullname)
        if places is None:
            return None
        warnings.warn(
            f"{fullname} has moved: write {places[0]} instead. The old name goes with the next release.",
            MovedWarning,
            stacklevel=2,
        )
        return ModuleSpec(fullname, _Alias(places))


class _Alias(Loader):
    """Fills a module with the names of others."""

    def __init__(self, places: Sequence[str]) -> None:
        self.places = places

    def exec_module(self, module: ModuleType) -> None:
        """Every name that is not Python's own; the first place wins."""
        for place in self.places:
            found: dict[str, Any] = vars(importlib.import_module(place))
            for name, value in found.items():
                if not name.startswith("__"):
                    module.__dict__.setdefault(name, value)
        module.__dict__["__getattr__"] = partial(renamed, module.__name__)


def accept_moved_names() -> None:
    """Lets imports find what has moved; called once, when `align` is imported."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(MovedFinder())
