"""launchers/: what accelerate reads from each configuration, and the commands that the scripts build.

The scripts run with stand-ins for `accelerate`, `srun` and `scontrol` that write down how they were called.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

from align.distributed.names import ON_CPU, WRAPPERS
from align.runs import exit_codes

LAUNCHERS = Path(__file__).parent.parent / "launchers"
CONFIGS = sorted(LAUNCHERS.glob("accelerate/**/*.yaml"))
TYPES = {
    "single": DistributedType.NO,
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "zero1": DistributedType.DEEPSPEED,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
    "zero3_offload": DistributedType.DEEPSPEED,
}


def test_one_configuration_for_each_wrapper():
    """Those that `align plan` names; of those that work without a GPU a form for it, alike but for the number."""
    assert {path.stem for path in CONFIGS if path.parent.name == "accelerate"} == set(TYPES)
    assert set(WRAPPERS) == {"none" if name == "single" else name for name in TYPES}
    on_cpu = [path for path in CONFIGS if path.parent.name == "cpu"]
    assert {path.stem for path in on_cpu} == set(ON_CPU) - {"none"}
    for path in on_cpu:
        pair = [yaml.safe_load(p.read_text()) for p in (path, path.parent.parent / path.name)]
        assert [one.pop("num_processes") for one in pair] == [2, 8]
        assert pair[0] == pair[1]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
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


# A launcher with one process that fails, as torch leaves its error, and its fellow elsewhere that waits for it.
FAILING = """
while [ "$1" != --log_dir ]; do [ "$1" = --machine_rank ] && rank="$2"; shift; done
if [ "$rank" = 1 ]; then
  mkdir -p "$2/none_x/attempt_0/1"
  echo '{"message": {"message": "RuntimeError: a wall"}}' >"$2/none_x/attempt_0/1/error.json"
  exit 1
fi
trap 'exit 1' TERM
while :; do sleep 0.1; done
"""
# A launcher that is killed and leaves no error; and one that saves when it is told to stop.
KILLED = "exit 9"
SAVING = """
while [ "$1" != --log_dir ]; do shift; done
trap 'echo saved after "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT"; exit 1' TERM
echo started
while [ ! -e "$2/../stopped" ]; do sleep 0.1; done
sleep 1
exit 1
"""


def start(
    script: str,
    *arguments: str,
    folder: Path,
    accelerate: str = 'echo "accelerate $*"',
    # One task a machine, as srun starts them.
    srun: str = 'shift 2; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
    **environment: str,
) -> subprocess.Popen[str]:
    """The script with the stand-ins first on PATH, from the repository's folder; logs go to `folder`."""
    stand_ins = {"accelerate": accelerate, "srun": srun, "scontrol": 'echo "node7"; echo "node8"'}
    for name, body in stand_ins.items():
        path = folder / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    clean = {"PATH": f"{folder}:{os.environ['PATH']}", "LOG_FOLDER": str(folder)}
    return subprocess.Popen(
        ["bash", str(LAUNCHERS / script), *arguments],
        env=clean | environment,
        cwd=LAUNCHERS.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script: str, *arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Started and waited for."""
    process = start(script, *arguments, folder=folder, **environment)
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


TWO = {"MACHINES": "2", "MAIN_ADDRESS": "10.0.0.1", "GPUS_PER_MACHINE": "8"}


def test_multi_node_command(tmp_path):
    done = run(
        "multi_node.sh",
        *("zero3", "seed=1", "data.template='{context} {question}'"),
        folder=tmp_path,
        MACHINE_RANK="1",
        **TWO,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("launch ")[1] == (
        f"--config_file {LAUNCHERS}/accelerate/zero3.yaml --num_machines 2 --machine_rank 1 --num_processes 16 "
        f"--main_process_ip 10.0.0.1 --main_process_port 29500 --log_dir {tmp_path}/10.0.0.1-29500/machine-1 "
        "--tee 3 -m align.train seed=1 data.template='{context} {question}'\n"
    )


SCHEDULERS = {
    "Kubernetes": {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "a", "PET_MASTER_PORT": "7"},
    "names of torchrun": {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "7"},
    "Open MPI": {
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": "1",
        "MAIN_ADDRESS": "a",
        "MAIN_PORT": "7",
    },
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_multi_node_reads_what_schedulers_set(tmp_path, name):
    """Rank, number, address, port; and one RUN_ID, which overrides may name. A CPU form knows its processes."""
    echo = 'echo "accelerate $* under $RUN_ID"'
    done = run("multi_node.sh", "cpu/ddp", folder=tmp_path, accelerate=echo, **SCHEDULERS[name])
    assert done.returncode == 0, done.stderr
    assert "--num_machines 2 --machine_rank 1 --num_processes 4 " in done.stdout
    assert "--main_process_ip a --main_process_port 7 " in done.stdout
    assert done.stdout.endswith("under a-7\n")


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        ((), {}, "name a file of launchers/accelerate/ first"),
        (("zero9",), {}, "accelerate/zero9.yaml"),
        (("ddp",), {"MACHINE_RANK": "0"}, "MACHINES is not set"),
        (("ddp",), {"MACHINES": "2", "MACHINE_RANK": "0"}, "MAIN_ADDRESS is not set"),
        (("ddp",), {"MACHINES": "1:2", "MACHINE_RANK": "0"}, "MACHINES=1:2 is no whole number"),
        (("ddp",), {"MACHINES": "2", "MACHINE_RANK": "2"}, "ranks of 2 machines end at 1"),
        (("ddp",), {"MACHINES": "09", "MACHINE_RANK": "09"}, "ranks of 9 machines end at 8"),
        (
            ("ddp",),
            {"MACHINES": "2", "MACHINE_RANK": "0", "MAIN_ADDRESS": "a", "MAIN_PORT": "x"},
            "MAIN_PORT=x is no whole number",
        ),
    ],
)
def test_multi_node_says_what_is_missing(tmp_path, arguments, environment, sentence):
    done = run("multi_node.sh", *arguments, folder=tmp_path, **environment)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_numbers_with_zeros_before_them_are_decimal(tmp_path):
    """Rank 08 of 010 machines, as some schedulers write them: bash's arithmetic would take them as octal."""
    words = {"MACHINES": "010", "NODE_RANK": "08", "MAIN_ADDRESS": "a", "GPUS_PER_MACHINE": "08"}
    done = run("multi_node.sh", "ddp", folder=tmp_path, **words)
    assert done.returncode == 0, done.stderr
    assert "--num_machines 10 --machine_rank 8 --num_processes 80 " in done.stdout


def test_hidden_gpus_do_not_count(tmp_path):
    """nvidia-smi lists all GPUs of a machine, whatever this job may use."""
    (tmp_path / "nvidia-smi").write_text("#!/usr/bin/env bash\nprintf 'GPU 0\\nGPU 1\\nGPU 2\\nGPU 3\\n'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    words = {"MACHINES": "2", "MACHINE_RANK": "0", "MAIN_ADDRESS": "a"}
    for hidden, number in (({}, 8), ({"CUDA_VISIBLE_DEVICES": "1,3,2"}, 6)):
        done = run("multi_node.sh", "ddp", folder=tmp_path, **words, **hidden)
        assert f"--num_processes {number} " in done.stdout, done.stderr


def test_a_missing_program_is_named_before_anything_starts(tmp_path):
    """Without python the failing rank's message could not be read."""
    for name in ("bash", "dirname", "env"):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = run("multi_node.sh", "ddp", folder=tmp_path, PATH=str(tmp_path), MACHINE_RANK="0", **TWO)
    assert done.returncode == 2
    assert "there is no python on PATH: activate the environment" in done.stderr


def test_the_first_failure_ends_the_job_on_every_machine(tmp_path):
    """Machine 0 would wait for ever; an error of an earlier start with the same name does not count."""
    (tmp_path / "10.0.0.1-29500").mkdir()
    (tmp_path / "10.0.0.1-29500" / "failed").write_text("an earlier start")
    machines = [
        start("multi_node.sh", "ddp", folder=tmp_path, accelerate=FAILING, MACHINE_RANK=str(rank), **TWO)
        for rank in (0, 1)
    ]
    for machine in machines:
        _, err = machine.communicate(timeout=240)
        assert machine.returncode == 1
        assert err.splitlines()[-1] == (
            "multi_node.sh: the job ended because of rank 9 on machine 1: RuntimeError: a wall"
        )


def test_a_launcher_that_says_nothing_is_named(tmp_path):
    done = run("multi_node.sh", "ddp", folder=tmp_path, accelerate=KILLED, MACHINE_RANK="1", **TWO)
    assert done.returncode == 1
    assert "the job ended because of machine 1, whose launcher ended with code 9" in done.stderr


def test_sigterm_reaches_the_launcher_and_ends_with_its_own_code(tmp_path):
    """Only machine 0 is told; the processes of machine 1, which agree with those of machine 0, leave by themselves."""
    machines = [
        start(
            *("multi_node.sh", "ddp"),
            folder=tmp_path,
            accelerate=SAVING,
            MACHINE_RANK=str(rank),
            GRACE_SECONDS="77",
            **TWO,
        )
        for rank in (0, 1)
    ]
    for machine in machines:
        assert machine.stdout is not None
        assert machine.stdout.readline() == "started\n"
    machines[0].send_signal(signal.SIGTERM)
    for machine, expected in zip(machines, ("saved after 77\n", ""), strict=True):
        out, err = machine.communicate(timeout=240)
        assert machine.returncode == exit_codes.STOPPED
        assert out == expected
        assert "machine 0 was told to stop; the same command goes on" in err


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
        assert "--main_process_ip node7 --main_process_port 20007" in line
        assert (
            f"--log_dir {tmp_path}/20007/machine-{rank} --tee 3 -m align.train output=/shared/run 1" in line
        )


@pytest.mark.parametrize(("environment", "cores"), [({"SLURM_CPUS_PER_TASK": "64"}, "64"), ({}, "unset")])
def test_slurm_tasks_have_the_job_s_cores(tmp_path, environment, cores):
    """srun has not taken them from the job since Slurm 22.05, but from a variable of its own."""
    srun = 'echo "cores ${SRUN_CPUS_PER_TASK-unset}"'
    done = run("slurm.sbatch", "ddp", folder=tmp_path, srun=srun, **environment)
    assert done.stdout == f"cores {cores}\n", done.stderr


def test_the_lines_of_the_documentation_start_one_job(tmp_path):
    """By hand on two machines and by Slurm: the same processes, but for rank, address, port and name."""
    page = (LAUNCHERS.parent / "docs" / "scaling.md").read_text()
    lines = re.findall(r"^(?:MACHINES=|sbatch ).*$", page, flags=re.MULTILINE)
    assert len(lines) == 3
    slurm = {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "x", "SLURM_JOB_ID": "1", "SLURM_GPUS_ON_NODE": "8"}
    # What sbatch does with its options is Slurm's; the script runs on the first machine.
    (tmp_path / "sbatch").write_text('#!/usr/bin/env bash\nshift 2; exec bash "$@"\n')
    (tmp_path / "sbatch").chmod(0o755)
    started = []
    for line, environment in zip(
        lines, ({"GPUS_PER_MACHINE": "8"}, {"GPUS_PER_MACHINE": "8"}, slurm), strict=True
    ):
        (tmp_path / "line.sh").write_text(line)
        done = run(str(tmp_path / "line.sh"), folder=tmp_path, **environment)
        assert done.returncode == 0, done.stderr
        started += re.findall(
            r"--machine_rank (\d) --num_processes (\d+) .* -m (align.train .*)", done.stdout
        )
    (_, _, words), *_ = started
    assert started == [(str(rank), "16", words) for rank in (0, 1, 0, 1)]


def test_slurm_job_ends_with_the_code_of_its_tasks(tmp_path):
    """And is not ended itself by the signal that Slurm sends to its tasks."""
    job = start("slurm.sbatch", "ddp", folder=tmp_path, srun="echo started; sleep 1; exit 143")
    assert job.stdout is not None
    assert job.stdout.readline() == "started\n"
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=240) == exit_codes.STOPPED
    job.communicate()
