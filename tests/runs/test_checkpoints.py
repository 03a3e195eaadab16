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
from tests.distributed.processes import run_distributed


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


def save_by_torch(value: object, path: Path) -> None:
    with path.open("wb") as stream:  # torch itself refuses a name like `.metadata`
        torch.save(value, stream)


def save_by_newer_pickle(value: object, path: Path) -> None:
    """Names its functions by an instruction that old pickles have not."""
    with path.open("wb") as stream:
        torch.save(value, stream, pickle_protocol=4)


def save_by_pickle(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


def save_as_text(value: object, path: Path) -> None:
    """The oldest protocol is readable text."""
    path.write_bytes(pickle.dumps(value, protocol=0))


NAMES = (
    *(
        "optimizer.pt",
        "rng_state_0.pth",
        "pytorch_model.bin",
        "custom_checkpoint_0.pkl",
        "random_states_0.pkl",
    ),
    *(
        "pytorch_model_fsdp_0/.metadata",
        "pytorch_model_fsdp_0/__0_0.distcp",
        "data",
        "a.PT",
        "latest_states",
        ".x",
    ),
    *(
        "global_step3/mp_rank_00_model_states.pt",
        "weights.ckpt",
        "deep/er/x.npy",
        "latest/x",
        "model.safetensors.pkl",
    ),
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("save", [save_by_torch, save_by_newer_pickle, save_by_pickle, save_as_text])
def test_a_pickle_that_names_other_code_is_refused_unread(tmp_path, save, name):
    """Whatever it is called, and sealed like a good one: the seal is no signature. Looking at it must not run it."""
    folder, marker = tmp_path / "checkpoint-3", tmp_path / "ran"
    path = folder / name
    path.parent.mkdir(parents=True)
    save({"state": Intruder(marker)}, path)
    checkpoints.seal(folder)
    found = checkpoints.defect(folder)
    assert found is not None
    assert f"{name} is refused, because it names" in found
    assert ("mkdir" if save is save_by_torch else "something other than tensors") in found
    assert not marker.exists()
    with pytest.raises(UserError, match="cannot be used"):
        checkpoints.find_resume(tmp_path, str(folder))
    assert checkpoints.find_resume(tmp_path, "auto") is None


def test_torchs_own_distributed_checkpoint_is_refused(tmp_path, monkeypatch):
    """A real one, with an index that runs code: what FSDP2 writes with SHARDED_STATE_DICT, and unpickles."""
    import torch.distributed.checkpoint as dcp

    folder, marker = tmp_path / "checkpoint-3", tmp_path / "ran"
    dcp.save({"weight": torch.ones(3)}, checkpoint_id=folder / "pytorch_model_fsdp_0")
    checkpoints.seal(folder)
    assert "pytorch_model_fsdp_0/.metadata is refused" in (checkpoints.defect(folder) or "")
    (folder / "pytorch_model_fsdp_0" / ".metadata").write_bytes(pickle.dumps(Intruder(marker)))
    with pytest.raises(dcp.api.CheckpointException):  # the folder that was made is no index
        dcp.load({"weight": torch.zeros(3)}, checkpoint_id=folder / "pytorch_model_fsdp_0")
    assert marker.exists()  # so it is worth refusing
    marker.rmdir()
    checkpoints.seal(folder)
    assert "pytorch_model_fsdp_0/.metadata is refused" in (checkpoints.defect(folder) or "")
    assert not marker.exists()


@pytest.mark.parametrize("text", ["../evil", "/tmp/evil", "", "..", "global_step9", "a\\b"])
def test_deepspeeds_pointer_stays_in_the_checkpoint(tmp_path, text):
    """It names the folder whose files DeepSpeed unpickles: one outside would not have been inspected."""
    folder = make_checkpoint(tmp_path, 3)
    (folder / "global_step3").mkdir()
    (folder / "latest").write_text("global_step3")
    checkpoints.seal(folder)
    assert checkpoints.defect(folder) is None
    (folder / "latest").write_text(text)
    checkpoints.seal(folder)
    assert checkpoints.defect(folder) == "latest is refused, because it names no folder beside it"


@pytest.mark.parametrize("target", ["elsewhere", "elsewhere/optimizer.pt"])
def test_a_link_is_refused(tmp_path, target):
    """The folder that it leads to would not have been inspected."""
    folder = make_checkpoint(tmp_path, 3)
    (tmp_path / "elsewhere").mkdir()
    torch.save({}, tmp_path / "elsewhere" / "optimizer.pt")
    (folder / "states").symlink_to(tmp_path / target)
    checkpoints.seal(folder)
    assert checkpoints.defect(folder) == "states is refused, because it is a link, which may lead anywhere"


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', "[[1]]"])
def test_a_seal_of_another_form_is_no_seal(tmp_path, content):
    folder = make_checkpoint(tmp_path, 3)
    (folder / checkpoints.SEAL).write_text(content)
    if content == "[]":  # an empty list is an empty seal: nothing is promised
        assert checkpoints.defect(folder) == "its seal names no file"
    else:
        assert "its seal cannot be read" in (checkpoints.defect(folder) or "")


def test_what_no_run_will_go_on_from_is_said_when_it_is_saved(tmp_path, caplog):
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    (folder / "vocabulary.dat").write_bytes(b"words")
    with caplog.at_level(logging.WARNING, logger="align"):
        checkpoints.seal(folder)
    assert "no run will go on from it: vocabulary.dat is refused" in caplog.text


def agree(rank, size, output):
    """What each process goes on from, or why it does not, for three values of `resume`."""
    said = []
    for resume in ("auto", "never", f"{output}/checkpoint-2"):
        try:
            found = checkpoints.agree_resume(Path(output), resume, patience=1.0)
            said.append(None if found is None else found.name)
        except UserError as error:
            said.append(str(error))
    return said


def test_processes_go_on_from_the_checkpoint_that_the_first_one_found(tmp_path):
    """A newer one is damaged: one process finds that out, and all go on from the older, or are told."""
    make_checkpoint(tmp_path, 1)
    flip_a_bit(make_checkpoint(tmp_path, 2))
    first, second = run_distributed(agree, 2, str(tmp_path))
    assert first == second
    assert first[:2] == ["checkpoint-1", None] and "model.safetensors is damaged" in first[2]


def look(rank, size, folder):
    """Rank 1 does not find what rank 0 has found."""
    if rank == 0:
        return "there"
    try:
        checkpoints._check_choice(Path(folder), 0.2)
    except UserError as error:
        return str(error)
    return "there"


def test_a_machine_that_does_not_see_the_checkpoint_says_so(tmp_path):
    there, said = run_distributed(look, 2, str(tmp_path / "checkpoint-7"))
    assert there == "there"
    assert "process 1 does not find" in said and "a file system that all machines share" in said


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
