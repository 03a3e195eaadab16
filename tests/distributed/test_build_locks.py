"""A lock of torch's extensions that nobody holds is named before DeepSpeed starts; one that is held is not."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from align.core.errors import AlignWarning
from align.distributed.build_locks import left_locks, warn_of_left_locks


@pytest.fixture
def lock(tmp_path):
    """As torch makes it for `deepspeed_shm_comm`, by a process that was killed an hour and a half ago."""
    path = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    path.parent.mkdir(parents=True)
    path.touch()
    os.utime(path, (path.stat().st_mtime - 5400,) * 2)
    return path


def launched(folder, **more: str) -> dict[str, str]:
    return {"ACCELERATE_USE_DEEPSPEED": "true", "TORCH_EXTENSIONS_DIR": str(folder)} | more


def test_a_left_lock_is_named_with_its_age_and_stays(lock, tmp_path):
    with pytest.warns(
        AlignWarning, match=r"deepspeed_shm_comm/lock is 90 minutes old and no process .* delete it"
    ):
        warn_of_left_locks(environment=launched(tmp_path))
    assert lock.exists()


def test_a_lock_that_is_held_is_not_named(tmp_path):
    """torch's own lock, held by this process."""
    (tmp_path / "cpu_adam").mkdir()
    baton = FileBaton(str(tmp_path / "cpu_adam" / "lock"))
    assert baton.try_acquire()
    assert left_locks(tmp_path) == []
    os.close(baton.fd)
    assert left_locks(tmp_path) == [tmp_path / "cpu_adam" / "lock"]


@pytest.mark.parametrize("more", [{"ACCELERATE_USE_DEEPSPEED": "false"}, {"LOCAL_RANK": "1"}])
def test_others_keep_silent(lock, tmp_path, more):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_left_locks(environment=launched(tmp_path, **more))


def test_what_tests_compile_stands_in_their_checkout(pytestconfig):
    """A lock in the home folder, left by whatever was killed there, stops no test."""
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    assert folder.is_dir()
    assert pytestconfig.rootpath in folder.parents
