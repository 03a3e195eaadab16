"""Sealed checkpoints: a torn or damaged one is named and passed over."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path

import pytest
import torch

from align.core.errors import UserError
from align.runs import checkpoints


def make_checkpoint(output: Path, step: int) -> Path:
    folder = output / f"checkpoint-{step}"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(200)))
    (folder / "sub" / "trainer_state.json").write_text("{}")
    checkpoints.seal(folder)
    return folder


def test_newest_good_one_by_number_not_by_name(tmp_path):
    for step in (2, 10, 9):
        make_checkpoint(tmp_path, step)
    assert checkpoints.last_good(tmp_path) == tmp_path / "checkpoint-10"


def flip_a_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[77] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_a_bit, "model.safetensors is damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "model.safetensors is damaged"),
        (lambda folder: (folder / "sub" / "trainer_state.json").unlink(), "trainer_state.json is missing"),
        (lambda folder: (folder / checkpoints.SEAL).unlink(), "never completed"),
        (lambda folder: (folder / checkpoints.SEAL).write_text("{torn"), "seal cannot be read"),
    ],
)
def test_damaged_checkpoint_is_named_and_passed_over(tmp_path, caplog, damage, reason):
    good, bad = make_checkpoint(tmp_path, 1), make_checkpoint(tmp_path, 2)
    damage(bad)
    with caplog.at_level(logging.WARNING, logger="align"):
        assert checkpoints.last_good(tmp_path) == good
    assert str(bad) in caplog.text
    assert reason in caplog.text


def test_resume_values(tmp_path):
    folder = make_checkpoint(tmp_path, 3)
    assert checkpoints.find_resume(tmp_path, "never") is None
    assert checkpoints.find_resume(tmp_path, "auto") == folder
    assert checkpoints.find_resume(tmp_path, str(folder)) == folder
    assert checkpoints.find_resume(tmp_path / "empty", "auto") is None
    with pytest.raises(UserError, match="is no folder"):
        checkpoints.find_resume(tmp_path, str(tmp_path / "checkpoint-9"))
    flip_a_bit(folder)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        checkpoints.find_resume(tmp_path, str(folder))


class Intruder:
    """What an attacker's pickle does: names a function to call when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize(("save", "named"), [("torch", "mkdir"), ("pickle", "something other than tensors")])
def test_a_pickle_that_names_other_code_is_refused_unread(tmp_path, save, named):
    """Sealed like a good one: the seal is no signature. Looking at it must not run it."""
    folder, marker = tmp_path / "checkpoint-3", tmp_path / "ran"
    folder.mkdir()
    path = folder / "optimizer.pt"
    if save == "torch":
        torch.save({"state": Intruder(marker)}, path)
    else:
        path.write_bytes(pickle.dumps({"state": Intruder(marker)}))
    checkpoints.seal(folder)
    found = checkpoints.defect(folder)
    assert found is not None
    assert "optimizer.pt is refused, because it names" in found
    assert named in found
    assert not marker.exists()


def test_an_optimizers_own_state_is_read(tmp_path):
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    checkpoints.seal(folder)
    assert checkpoints.defect(folder) is None
