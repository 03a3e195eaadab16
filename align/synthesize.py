"""`align synthesize`, and `align.synthesize(…)` from Python: preference data from documents."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from align.core.config import check_choice
from align.core.instantiate import build
from align.documents.duplicates import Removed, check_duplicates, copies_by_kind, remove_duplicates
from align.documents.lengths import show_documents, token_counts
from align.documents.loading import Document, fingerprint
from align.generation.generators import GeneratorSettings
from align.generation.nobody import Nobody
from align.generation.pace import changes_no_answer
from align.generation.stage import WORK, Workspace
from align.models.checks import check_model
from align.models.reading import typed_model
from align.models.settings import ModelSettings
from align.runs.api import make_callable
from align.runs.command import hydra_entry
from align.runs.exclusive import exclusive
from align.runs.folder import RESUME, claim_output
from align.runs.outputs import check_folder
from align.synthesis.card import write_card
from align.synthesis.pipeline import ROWS, Pipeline, Summary, reads_documents, report, uses_generator
from align.synthesis.selection.select import Selector, select_rows

UNSELECTED = "unselected"  # folder of a pipeline's rows and calls where `select` keeps some of them


@hydra_entry("synthesize")
def main(config: DictConfig) -> None:
    """The command."""
    synthesize(config)


def synthesize(config: DictConfig) -> Summary:
    """Checks everything, reads the documents, makes the rows or goes on making them, and shows counts."""
    start = time.monotonic()
    pipeline, generator, model = check(config)
    selector: Selector = build(config, "select")
    documents, removed = _without_copies(pipeline, config)
    # Nothing above imports torch, so that a slip is answered at once.
    from align.models.loading import model_tokenizer

    tokenizer = model_tokenizer(model)
    show_documents(token_counts(documents, tokenizer, Console(stderr=True)), removed, Console(stderr=True))
    asks = uses_generator(pipeline) or selector.name is not None
    opened = generator.open(model, tokenizer) if asks else Nobody(model.path)
    with exclusive(config.output):
        output = claim(config, documents_sha256=fingerprint(documents))
        workspace = Workspace(output, config.seed, tokenizer, opened, Console(stderr=True))
        summary = select(selector, pipeline, documents, workspace)
        summary = dataclasses.replace(summary, dropped={**copies_by_kind(removed), **summary.dropped})
        write_card(summary, config, workspace)
        report(summary, Console(), seconds=time.monotonic() - start)
    return summary


def _without_copies(
    pipeline: Pipeline, config: DictConfig
) -> tuple[Sequence[Document], Sequence[Removed] | None]:
    """What the pipeline reads, and the documents left out; None where each text is wanted for itself."""
    read = pipeline.read()
    if not reads_documents(pipeline):
        return read, None
    return remove_duplicates(read, kind=config.deduplicate, threshold=config.near_duplicate)


def select(
    selector: Selector, pipeline: Pipeline, documents: Sequence[Document], workspace: Workspace
) -> Summary:
    """The pipeline's rows; with a selector, those it keeps, the others staying below `unselected/`."""
    if selector.name is None:
        return pipeline.run(documents, workspace)
    inner = dataclasses.replace(workspace, output=workspace.output / UNSELECTED)
    made = pipeline.run(documents, inner)
    kept, lost = select_rows(selector, made.path, workspace.output / ROWS, workspace)
    return Summary(
        path=workspace.output / ROWS,
        rows=kept,
        counts={**made.counts, "rows before selection": made.rows},
        dropped={**made.dropped, f"not selected by {selector.name}": lost},
        method=made.method,
        pairs=made.pairs,
    )


def check(config: DictConfig) -> tuple[Pipeline, GeneratorSettings, ModelSettings]:
    """Every setting as its type, contradictions refused; reads no documents and no weights."""
    model = typed_model(config)
    check_model(model)
    check_choice("resume", str(config.resume), RESUME)
    check_folder(config.output)
    check_duplicates(config.deduplicate, config.near_duplicate)
    return build(config, "pipeline"), build(config, "generator"), model


def claim(config: DictConfig, *, documents_sha256: str) -> Path:
    """The output folder as this configuration's own; `resume=never` empties it of earlier calls."""
    output = Path(config.output)
    known = OmegaConf.to_container(config, resolve=True)
    ignored = ("resume", *sorted(changes_no_answer(config)))
    claim_output(output, {**known, "documents_sha256": documents_sha256}, ignore=ignored)  # type: ignore[dict-item]
    if config.resume == "never":
        for folder in (WORK, UNSELECTED):
            shutil.rmtree(output / folder, ignore_errors=True)
    return output


make_callable(__name__)

if __name__ == "__main__":
    main()
