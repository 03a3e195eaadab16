"""Runs killed, told to go, moved to other machines or out of disk end with the weights of an unbroken one."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing.spawn import ProcessExitedException, start_processes
from transformers import TrainerCallback, TrainerControl, TrainerState

from align.core.errors import UserError
from align.runs import checkpoints, exit_codes
from align.runs.preemption import Preemption
from tests.distributed import run_distributed
from tests.forked import command, forked, run, wait_for
from tests.longseq.plain import assert_close
from tests.rows import make_rows
from tests.tiny import save_tiny
from tests.training.helpers import make_trainer, weights

COMMON = [
    *("trainer.learning_rate=0.05", "trainer.optim=sgd", "positions=logo", "positions.target_length=4096"),
    *("trainer.use_cpu=true", "data.eval_size=3", "trainer.max_steps=8", "trainer.save_steps=2"),
    *("trainer.save_total_limit=null", "trainer.lr_scheduler_type=cosine"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("survival")
    save_tiny(folder / "model")
    make_rows(folder / "rows.jsonl", 14)  # 11 to train on: the second step of an epoch is ragged
    return folder


def arguments(folder: Path, name: str, *overrides: str) -> list[str]:
    return [
        *("align", "train", f"model.path={folder / 'model'}", f"data.path={folder / 'rows.jsonl'}"),
        *(f"output={folder / name}", *COMMON, *overrides),
    ]


def final(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / name / "model" / "model.safetensors")


SPREAD = ("trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=2")


@pytest.fixture(scope="module")
def unbroken(folder) -> dict[str, torch.Tensor]:
    """One process, four prompts a step, all checkpoints kept."""
    assert run(arguments(folder, "unbroken", *SPREAD)) == [0]
    return final(folder, "unbroken")


def broken_off(folder: Path, name: str, step: int) -> Path:
    """The unbroken run's folder as a kill after `step` would have left it."""
    target = folder / name
    target.mkdir()
    for file in ("config.yaml", "before.json"):
        shutil.copy(folder / "unbroken" / file, target)
    shutil.copytree(folder / "unbroken" / f"checkpoint-{step}", target / f"checkpoint-{step}")
    return target


# ---- other processes


@pytest.mark.parametrize(
    ("size", "overrides"),
    [
        (2, ("trainer.per_device_train_batch_size=1", "trainer.gradient_accumulation_steps=2")),
        (2, (*SPREAD, "parallel=gather")),
        pytest.param(
            4, ("trainer.per_device_train_batch_size=2", "parallel=ulysses"), marks=pytest.mark.slow
        ),
    ],
    ids=["2 processes", "degree 2", "2 groups of degree 2"],
)
def test_a_run_goes_on_with_other_processes(folder, unbroken, size, overrides):
    """Broken off in the middle of an epoch on one process, finished on several: weights to 1e-5."""
    name = f"moved-{size}-{len(overrides)}"
    accumulation = (
        ()
        if any("accumulation" in word for word in overrides)
        else ("trainer.gradient_accumulation_steps=1",)
    )
    broken_off(folder, name, 4)
    argv = arguments(folder, name, *overrides, *accumulation)
    assert run(argv, size, timeout=240) == [0] * size
    assert_close(final(folder, name), unbroken, tolerance=1e-5)


def test_another_number_of_prompts_a_step_is_refused(folder, unbroken):
    """Two processes with the batch of one would make steps of eight."""
    broken_off(folder, "doubled", 4)
    codes = run_distributed(command, 2, arguments(folder, "doubled", *SPREAD), timeout=240)
    assert codes == [exit_codes.USAGE] * 2
    assert "was made with 4 prompts a step, this start has 8" in (folder / "doubled.log").read_text()


# ---- SIGTERM


class TermAt(TrainerCallback):
    """Sends this process SIGTERM when a step begins."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_the_running_step(tmp_path):
    """Told to go in the third of eight steps: that step is saved, and the next start ends with the same weights."""
    whole = make_trainer(tmp_path / "whole", max_steps=8)
    whole.train()
    stopped = make_trainer(tmp_path / "stopped", max_steps=8)
    stopped.add_callback(TermAt(2))
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        stopped.add_callback(preemption)
        stopped.train()
    assert signal.getsignal(signal.SIGTERM) is before
    assert preemption.stopped
    folder = checkpoints.last_good(tmp_path / "stopped")
    assert folder is not None and folder.name == "checkpoint-3"
    resumed = make_trainer(tmp_path / "stopped", max_steps=8)
    resumed.train(resume_from_checkpoint=str(folder))
    assert_close(weights(resumed), weights(whole), tolerance=1e-6)


def told(rank: int, size: int) -> list[bool]:
    """Rank 1 alone is told, in its second step; what each rank decides after its three steps."""
    decided = []
    with Preemption() as preemption:
        for step in range(3):
            if rank == 1 and step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            control = TrainerControl()
            arguments = type("Arguments", (), {"device": torch.device("cpu")})()
            preemption.on_step_end(arguments, TrainerState(), control)
            assert control.should_save == control.should_training_stop == preemption.stopped
            decided.append(preemption.stopped)
    return decided


def test_all_processes_save_the_same_step():
    assert run_distributed(told, 2) == [[False, True, True]] * 2


def test_sigterm_ends_the_command_with_its_own_code(folder, unbroken, tmp_path):
    """From outside, at no moment in particular: exit code 143, a sealed checkpoint; then the same weights."""
    name, argv = "told", arguments(folder, "told", *SPREAD)
    process = forked(argv)
    wait_for(lambda: any((folder / name).glob("checkpoint-*")), process)
    os.kill(process.pid, signal.SIGTERM)
    process.join(240)
    assert process.exitcode == exit_codes.STOPPED
    assert checkpoints.last_good(folder / name) is not None
    assert not (folder / name / "results.json").exists()
    assert run(argv) == [0]
    assert_close(final(folder, name), unbroken, tolerance=1e-6)


# ---- a full disk


FILE_LIMIT = 200_000  # bytes; the weights take more


def test_a_full_disk_ends_in_a_sentence_and_keeps_the_last_checkpoint(folder, unbroken):
    """The weights no longer fit: the sentence names the last checkpoint, which verifies; with room it goes on."""
    target = broken_off(folder, "full", 4)
    argv = arguments(folder, "full", *SPREAD)
    process = forked(argv, file_limit=FILE_LIMIT)
    process.join(240)
    assert process.exitcode == exit_codes.USAGE
    err = (folder / "full.log").read_text()
    assert "Traceback" not in err
    (said,) = [line for line in err.splitlines() if line.startswith("align train:")]
    assert "checkpoint-6 could not be written" in said
    assert f"the last checkpoint is {target / 'checkpoint-4'}" in said
    assert checkpoints.checkpoints(target) == [target / "checkpoint-4"]
    assert checkpoints.defect(target / "checkpoint-4") is None
    assert run(argv) == [0]
    assert_close(final(folder, "full"), unbroken, tolerance=1e-6)


# ---- torn and damaged checkpoints


def test_ten_damaged_checkpoints_are_named_and_passed_over(folder, unbroken, tmp_path, caplog):
    """A real checkpoint copied eleven times; ten copies are cut short or have one bit flipped, at random places."""
    rng = random.Random(0)
    source = folder / "unbroken" / "checkpoint-2"
    for step in range(1, 12):
        shutil.copytree(source, tmp_path / f"checkpoint-{step}")
    for step in range(2, 12):
        files = [path for path in sorted((tmp_path / f"checkpoint-{step}").iterdir()) if path.stat().st_size]
        path = rng.choice(files)
        content = bytearray(path.read_bytes())
        place = rng.randrange(len(content))
        if step % 2:
            del content[place:]
        else:
            content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(content))
    with caplog.at_level(logging.WARNING, logger="align"):
        assert checkpoints.last_good(tmp_path) == tmp_path / "checkpoint-1"
    for step in range(2, 12):
        assert sum(f"{tmp_path / f'checkpoint-{step}'}:" in line for line in caplog.messages) == 1


def test_deepspeed_on_another_number_of_processes_is_refused(folder, unbroken, tmp_path):
    from align.runs.continuation import StepShape, check_continuation

    checkpoint = folder / "unbroken" / "checkpoint-2"
    check_continuation(checkpoint, StepShape(2, "DDP", 4))
    with pytest.raises(UserError, match="optimizer state of none, which DeepSpeed cannot read"):
        check_continuation(checkpoint, StepShape(2, "DeepSpeed", 4))
    sharded = tmp_path / "checkpoint-2"
    sharded.mkdir()
    text = (
        (checkpoint / "trainer_state.json").read_text().replace('"wrapper": "none"', '"wrapper": "DeepSpeed"')
    )
    (sharded / "trainer_state.json").write_text(text)
    check_continuation(sharded, StepShape(1, "DeepSpeed", 4))
    with pytest.raises(UserError, match="cut for 1 processes, and this start has 2"):
        check_continuation(sharded, StepShape(2, "DeepSpeed", 4))


# ---- SIGKILL


def _join_group(rank: int, size: int, folder: str, argv: list[str]) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    dist.init_process_group("gloo", init_method=f"file://{folder}", rank=rank, world_size=size)
    code = command(rank, size, argv)
    if code:
        sys.exit(code)


def joined(context) -> None:
    """Waits for the end of all processes; raises for the one that failed first."""
    while not context.join(timeout=5, grace_period=1):
        pass


def killed_at(
    argv: list[str], size: int, rendezvous: str, victim: int, moment: Callable[[], bool]
) -> list[int | None]:
    """Exit codes of a start whose process `victim` gets SIGKILL at a moment; the others are ended by then or after."""
    if size == 1:
        process = forked(argv)
        wait_for(moment, process, seconds=600)
        process.kill()
        process.join()
        return [process.exitcode]
    context = start_processes(
        _join_group, args=(size, rendezvous, argv), nprocs=size, join=False, start_method="forkserver"
    )
    wait_for(moment, context.processes[victim], seconds=600)
    context.processes[victim].kill()
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        joined(context)
    return [process.exitcode for process in context.processes]


MOMENTS = 20
LATE = 40  # of 60 steps: a run that has come so far is killed at once, while there is something left of it


def last_step(output: Path) -> int:
    """The newest checkpoint's step, whole or torn; 0 without any."""
    return max((int(path.name.split("-")[1]) for path in output.glob("checkpoint-*")), default=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "tolerance"), [(1, 1e-6), (4, 1e-5)], ids=["one process", "one of four ranks"]
)
def test_killed_at_twenty_random_moments(folder, unbroken, tmp_path, size, tolerance):
    """SIGKILL to one process at a random moment of its life, the same command again, twenty times over.

    A start lives for a random share of the time that an unbroken one takes, counted from when the process begins
    to train or earlier; the run goes on from whatever that left.
    """
    rng = random.Random(size)
    spread = (
        SPREAD
        if size == 1
        else (
            *(
                "trainer.per_device_train_batch_size=2",
                "trainer.gradient_accumulation_steps=1",
                "parallel=gather",
            ),
        )
    )
    reference, name = f"whole-{size}", f"killed-{size}"
    long = ("trainer.max_steps=60", "trainer.save_total_limit=2", "trainer.num_train_epochs=60")
    started = time.monotonic()
    assert run(arguments(folder, reference, *spread, *long), size, timeout=600) == [0] * size
    took = time.monotonic() - started
    argv = arguments(folder, name, *spread, *long)
    for start in range(MOMENTS):
        # Early moments are as likely as late ones; the run may not end before the last kill.
        end = time.monotonic() + rng.uniform(0.1, 0.5) * took

        def moment(end: float = end) -> bool:
            return time.monotonic() > end or last_step(folder / name) >= LATE

        victim = rng.randrange(size)
        codes = killed_at(argv, size, str(tmp_path / f"rendezvous-{start}"), victim, moment)
        assert codes[victim] == -signal.SIGKILL
        assert not (folder / name / "results.json").exists()
    assert run(argv, size, timeout=600) == [0] * size
    assert_close(final(folder, name), final(folder, reference), tolerance=tolerance)
