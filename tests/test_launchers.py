"""launchers/: what accelerate reads from each configuration, and the commands that the scripts build.

The scripts run with stand-ins for `accelerate`, `srun` and `scontrol` that write down how they were called.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

LAUNCHERS = Path(__file__).parent.parent / "launchers"
CONFIGS = sorted(LAUNCHERS.glob("accelerate/*.yaml"))
TYPES = {
    "single": DistributedType.NO,
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
    "zero3_offload": DistributedType.DEEPSPEED,
}


def test_one_configuration_for_each_wrapper():
    assert {path.stem for path in CONFIGS} == set(TYPES)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_takes_every_key(path):
    """`load_config_from_file` refuses unknown keys at the top, the parser's names are those of the two blocks."""
    config = load_config_from_file(str(path))
    assert config.distributed_type == TYPES[path.stem]
    assert config.mixed_precision == "no", "precision belongs to model.dtype and trainer.bf16"
    known = vars(launch_command_parser().parse_args(["script.py"]))
    nested = {**config.deepspeed_config, **config.fsdp_config}
    assert set(nested) <= set(known)
    if path.stem.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(path.stem[4])
        offload = "cpu" if path.stem.endswith("offload") else "none"
        assert config.deepspeed_config["offload_optimizer_device"] == offload


def run(script: str, *arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script with the stand-ins first on PATH, from the repository's folder."""
    stand_ins = {
        "accelerate": 'echo "accelerate $*"',
        "scontrol": 'echo "node7"; echo "node8"',
        # One task a machine, as srun starts them side by side.
        "srun": 'shift; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
    }
    for name, body in stand_ins.items():
        path = folder / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    clean = {"PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", str(LAUNCHERS / script), *arguments],
        env=clean | environment,
        cwd=LAUNCHERS.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def test_multi_node_command(tmp_path):
    done = run(
        "multi_node.sh",
        *("zero3", "seed=1", "data.template='{context} {question}'"),
        folder=tmp_path,
        MACHINES="2",
        MACHINE_RANK="1",
        MAIN_ADDRESS="10.0.0.1",
        GPUS_PER_MACHINE="8",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("launch ")[1] == (
        f"--config_file {LAUNCHERS}/accelerate/zero3.yaml --num_machines 2 --machine_rank 1 --num_processes 16 "
        "--main_process_ip 10.0.0.1 --main_process_port 29500 "
        "-m align.train seed=1 data.template='{context} {question}'\n"
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        ((), {}, "name a file of launchers/accelerate/ first"),
        (("zero9",), {}, "accelerate/zero9.yaml"),
        (("ddp",), {"MACHINES": "2", "MACHINE_RANK": "0"}, "MAIN_ADDRESS is not set"),
    ],
)
def test_multi_node_says_what_is_missing(tmp_path, arguments, environment, sentence):
    done = run("multi_node.sh", *arguments, folder=tmp_path, **environment)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_slurm_job_starts_each_machine_with_its_rank(tmp_path):
    done = run(
        "slurm.sbatch",
        *("fsdp2", "output=/shared/run 1"),
        folder=tmp_path,
        SLURM_NNODES="2",
        SLURM_JOB_NODELIST="node[7-8]",
        SLURM_JOB_ID="20007",
        SLURM_GPUS_ON_NODE="4",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for rank, line in enumerate(lines):
        assert f"--num_machines 2 --machine_rank {rank} --num_processes 8" in line
        assert "--main_process_ip node7 --main_process_port 20007 -m align.train output=/shared/run 1" in line
