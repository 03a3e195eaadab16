"""`positions.redraw=epoch`: what a row's positions follow from, whoever reads it and wherever a run was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from align.data.dataset import PreferenceData, load_preference_data
from align.data.notices import notices
from align.data.placements.e2 import E2
from align.data.placements.logo import Logo
from align.data.placements.skip import Skip
from align.data.positions import place_row
from align.data.settings import DataSettings, PositionSettings
from align.data.stored_rows import to_example
from align.runs import checkpoints
from align.training.collate import Collator
from align.training.redrawn import EpochIndex, EpochIndices, RedrawnRows, training_rows
from align.training.sampling import EpochSampler, MarkedCollator, MarkedRows
from tests.longseq.plain import assert_close
from tests.rows import make_rows
from tests.tiny import tiny_tokenizer
from tests.training.helpers import make_trainer, weights

ROWS = 6


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    path = make_rows(tmp_path / "rows.jsonl", ROWS)

    def of(placement: Any, redraw: str = "epoch", seed: int = 5) -> PreferenceData:
        positions = PositionSettings(placement, chunk_tokens=8, redraw=redraw)
        wanted = DataSettings(path=str(path), eval_size=0)
        return load_preference_data(wanted, tiny_tokenizer(), positions=positions, seed=seed)

    return of


def marked(number: int, epoch: int) -> EpochIndex:
    index = EpochIndex(number)
    index.epoch = epoch
    return index


@pytest.mark.parametrize("placement", [Logo(900), E2(2000), Skip(900)], ids=lambda own: type(own).__name__)
def test_a_row_follows_from_seed_number_and_epoch(load: Any, placement: Any) -> None:
    """Epoch 0 is what is stored; later ones are drawn as `place_row` draws; the columns stay those of a stored row."""
    data = load(placement)
    rows = training_rows(data)
    assert len(rows) == ROWS and isinstance(rows, RedrawnRows)
    seen = set()
    for number in range(ROWS):
        stored = to_example(data.train[number])
        np.testing.assert_array_equal(to_example(rows[number]).position_ids, stored.position_ids)
        for epoch in range(3):
            row = rows[marked(number, epoch)]
            made = to_example(row)
            assert (
                row.keys() == data.train[number].keys() and row["largest_position"] == made.largest_position
            )
            assert made.drawn == stored.drawn and made.drawn is not None and made.drawn.index == number
            expected = place_row(stored, placement, made.drawn, seed=5, epoch=epoch)
            np.testing.assert_array_equal(made.position_ids, expected.position_ids)
            assert made.position_step == expected.position_step
            assert (np.diff(made.position_ids) >= 1).all()
            seen.add(tuple(made.position_ids))
    assert len(seen) == 3 * ROWS
    other = load(placement, seed=6)
    assert not np.array_equal(other.train[0]["position_ids"], data.train[0]["position_ids"])


def test_what_is_drawn_once_costs_nothing(load: Any) -> None:
    data = load(Logo(900), "never")
    assert training_rows(data) is data.train
    assert data.counts["largest_position"] == max(data.train["largest_position"][:])
    drawn = load(Skip(900))
    assert drawn.counts["largest_position"] == 899  # of any epoch, and so held against the model's window
    assert "Positions go up to 899, and the model was made for 512: model.rope stretches it." in notices(
        drawn, window=512
    )
    assert any(
        line.startswith("Positions of training rows are drawn anew") for line in notices(drawn, window=None)
    )
    assert not any("drawn anew" in line for line in notices(data, window=None))


@pytest.mark.parametrize(
    ("workers", "persistent"),
    [
        (0, False),
        pytest.param(2, False, marks=pytest.mark.slow),
        pytest.param(2, True, marks=pytest.mark.slow),
    ],
)
def test_whichever_worker_reads(load: Any, workers: int, persistent: bool) -> None:
    rows = training_rows(load(Skip(900)))
    sampler = EpochIndices(EpochSampler(ROWS, multiple=4, seed=1))
    loader = DataLoader(
        MarkedRows(rows),
        batch_size=4,
        sampler=sampler,
        collate_fn=MarkedCollator(Collator()),
        num_workers=workers,
        persistent_workers=persistent,
    )
    for epoch in (0, 1, 2):
        sampler.set_epoch(epoch)
        found = list(loader)
        order = np.random.default_rng([1, epoch]).permutation(ROWS).tolist()
        for batch, numbers in zip(found, (order[:4], order[4:]), strict=True):
            (packed,) = batch["batch"].rows
            for prompt, number in zip(packed.layout.prompts, numbers, strict=False):
                expected = to_example(rows[marked(number, epoch)]).position_ids
                got = packed.position_ids[0, slice(*prompt.prompt)].numpy()
                np.testing.assert_array_equal(got, expected)
        assert found[1]["real"].tolist() == [True, True, False, False]


def recording(rows: Any, folder: Path, **settings: Any) -> tuple[Any, list[list[int]]]:
    """A trainer of two epochs of three steps, and the positions of each batch that it has read."""
    read: list[list[int]] = []

    def collate(batch: Any) -> Any:
        made = Collator()(batch)
        read.append(made["batch"].rows[0].position_ids[0].tolist())
        return made

    trainer = make_trainer(
        folder,
        collator=collate,
        **{"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 2, "eval_strategy": "no"}
        | settings,
    )
    trainer.train_dataset = rows
    return trainer, read


def test_a_run_that_goes_on_draws_what_it_would_have_drawn(load: Any, tmp_path: Path) -> None:
    """Stopped in the middle of the second epoch; the two epochs have the same rows at other positions."""
    rows = training_rows(load(Skip(900)))
    saving = {"save_strategy": "steps", "save_steps": 2}
    unbroken, whole = recording(rows, tmp_path / "unbroken", **saving)
    unbroken.train()
    assert len(whole) == 6 and len({tuple(batch) for batch in whole}) == 6
    broken, _ = recording(rows, tmp_path / "broken", **saving, max_steps=4)
    broken.train()
    resumed, rest = recording(rows, tmp_path / "broken", **saving)
    folder = checkpoints.last_good(tmp_path / "broken")
    assert folder is not None and folder.name == "checkpoint-4"
    resumed.train(resume_from_checkpoint=str(folder))
    assert rest[-2:] == whole[-2:]
    assert_close(weights(resumed), weights(unbroken), tolerance=1e-6)
    assert torch.isfinite(torch.tensor(resumed.state.log_history[-1]["train_loss"]))


def test_other_rows_keep_their_sampler(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    assert isinstance(trainer._get_train_sampler(), EpochSampler)
