"""`align inspect`, and `align.inspect(…)` from Python: rows as the model will see them, and checks of the data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from rich.console import Console

from align.adapters.reading import read_model
from align.core.config import typed
from align.core.errors import UserError
from align.core.readable import Readable
from align.data.position_settings import read_positions
from align.data.settings import DataSettings, PositionSettings
from align.data.sources import check_row_paths
from align.models.checks import check_model
from align.models.settings import ModelSettings
from align.runs.api import make_callable
from align.runs.command import hydra_entry
from align.runs.outputs import asked_file, is_json_lines

if TYPE_CHECKING:
    from align.data.checks import Finding

FIELDS = ("kind", "reason", "message")  # of a line of the file `findings`: by them an earlier one is known


@dataclass(frozen=True)
class Inspection(Readable):
    """What was found in the data.

    Attributes:
        findings: each with its kind and a sentence; empty where nothing is wrong.
        counts: see `PreferenceData.counts`; empty where rows could not be read.
    """

    findings: list[Finding]
    counts: dict[str, int] = field(default_factory=dict)


@hydra_entry("inspect")
def main(config: DictConfig) -> int:
    """The command: 1 where there are findings."""
    return 1 if inspect(config).findings else 0


def inspect(config: DictConfig) -> Inspection:
    """Prints rows, counts and findings."""
    model = read_model(config)
    settings = typed(DataSettings, config, "data")
    positions = read_positions(config)
    for key in ("rows", "characters", "seed"):
        if not isinstance(config[key], int) or config[key] < 0:
            raise UserError(f"{key}={config[key]} must be a whole number from 0 on.")
    if not isinstance(config.labels, bool):
        raise UserError(f"labels={config.labels} must be true or false.")
    check_model(model)
    check_row_paths(settings)
    listed = findings_file(config)
    # Nothing above imports torch, so that a slip is answered at once.
    from align.data.checks import write_findings
    from align.data.display import print_findings

    console = Console(soft_wrap=False)
    findings, counts = _look(console, config, model, settings, positions)
    print_findings(console, findings)
    if listed is not None:
        write_findings(findings, listed)
    return Inspection(findings, counts)


def findings_file(config: DictConfig) -> Path | None:
    """The file that lists the findings, which may be an earlier list and no other file; None where none is asked for.

    Raises:
        UserError: it cannot be written, or holds something else.
    """
    return asked_file(config, "findings", lambda path: is_json_lines(path, FIELDS))


def _look(
    console: Console,
    config: DictConfig,
    model: ModelSettings,
    settings: DataSettings,
    positions: PositionSettings,
) -> tuple[list[Finding], dict[str, int]]:
    """Prints the first rows and the counts, as training reads them; returns what is wrong, and the counts."""
    from align.data.checks import Finding, check_rows, context_leaks, over_the_limit, unusable_rows
    from align.data.dataset import assemble, build_places
    from align.data.display import print_counts, print_row
    from align.data.length_words import in_window_words
    from align.data.numbers import Number
    from align.data.positions_of_model import fit_positions
    from align.data.row_builder import Demands
    from align.data.stored_rows import to_example
    from align.data.vocabulary import vocabulary_of
    from align.models.loading import load_config, model_tokenizer, native_window
    from align.models.reach import position_limit

    positions = fit_positions(positions, model)
    tokenizer = model_tokenizer(model)
    # As training reads them: cut to the model's window where no length is set. Rows cut to a length of the user's fit.
    window = native_window(model) if settings.max_length is None else None
    reach = position_limit(model) if positions.placement is not None else window
    read = replace(settings, max_length=settings.max_length or window, bad_rows="drop", bad_rows_limit=None)
    demands = Demands(
        rejected=config.require_rejected and not config.labels,
        vocabulary=vocabulary_of(load_config(model)),
        numbers=(Number("label", "label", "label"),) if config.labels else (),
    )
    places = build_places(read, tokenizer, positions=positions, seed=config.seed, demands=demands)
    findings = [*unusable_rows(places, window=window), *over_the_limit(places, settings)]
    try:
        data = assemble(places, read, seed=config.seed)
    except UserError as error:  # training would end here; what rows there are is shown all the same
        findings = [*findings, Finding("settings", in_window_words(str(error), window))]
        if not all(len(place.rows) for place in places.all):
            return findings, {}
        data = assemble(places, replace(read, eval_size=0, mix=[]), seed=config.seed)
    for i in range(min(config.rows, len(data.train))):
        print_row(
            console, to_example(data.train[i]), tokenizer, characters=config.characters, labels=config.labels
        )
    print_counts(console, data, window=window, reach=reach, bad_rows=settings.bad_rows)
    found = check_rows(data, window=window, reach=reach)
    return [*findings, *found, *context_leaks(settings)], data.counts


make_callable(__name__)

if __name__ == "__main__":
    main()
