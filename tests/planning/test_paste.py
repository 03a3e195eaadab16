"""The lines that `align plan` prints to be pasted: one machine, several, a CPU; every word as it was given."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import hydra
import pytest

from align.planning import planner
from align.planning.planner import own_overrides
from align.planning.tables import commands, overrides
from tests.planning.plans import plan

ROOT = Path(__file__).parents[2]

AWKWARD = ["data.mix=[{path: my rows.jsonl, ratio: 2.0}]", "data.template='{context} $x'", "~data.eval_path"]


def pasted(*words: str, own: list[str]) -> list[str]:
    """What `align plan` prints below its tables."""
    made = plan("model=llama3_8b", "method=dpo", "rows.prompt=2000", "model.lora.r=16", *words)
    assert made.best is not None
    return commands(made.best, made.machine, rest=own)


def test_one_machine_is_one_command():
    """The shell makes the user's own words of it again."""
    (line,) = pasted(own=AWKWARD)
    words = shlex.split(line)
    assert words[:2] == ["accelerate", "launch"]
    assert words[words.index("--num_processes") + 1] == "8"
    assert words[words.index("align.train") + 1 :][: len(AWKWARD)] == AWKWARD
    assert (ROOT / words[words.index("--config_file") + 1]).is_file()


def test_several_machines_have_a_line_each_and_slurm_s():
    comment, hand, other, slurm = pasted("gpus.count=16", "gpus.nodes=2", own=AWKWARD)
    assert comment.startswith("#")
    assert other.startswith("#")
    assert hand.startswith(
        "MACHINES=2 MACHINE_RANK=RANK MAIN_ADDRESS=ADDRESS GPUS_PER_MACHINE=8 launchers/multi_node.sh "
    )
    assert slurm.startswith("sbatch --nodes=2 --gpus-per-node=8 launchers/slurm.sbatch ")
    for line, script in ((hand, "launchers/multi_node.sh"), (slurm, "launchers/slurm.sbatch")):
        words = shlex.split(line)
        name = words[words.index(script) + 1]
        assert (ROOT / "launchers" / "accelerate" / f"{name}.yaml").is_file()
        assert words[words.index(script) + 2 :][: len(AWKWARD)] == AWKWARD


@pytest.mark.parametrize("count", [1, 2])
def test_a_cpu_has_its_own_launch_files(count):
    (line,) = pasted("gpus=cpu", f"gpus.count={count}", "gpus.memory_gb=900", own=[])
    file = re.search(r"--config_file launchers/accelerate/(\S+)\.yaml", line)
    assert file is not None
    assert (
        file[1] == "single" if count == 1 else file[1] in {"cpu/ddp", "cpu/zero1", "cpu/zero2", "cpu/zero3"}
    )
    assert line.endswith(" trainer.use_cpu=true")


@pytest.mark.parametrize(
    ("given", "rows", "wanted"),
    [
        (["rows.prompt=84000", "method=dpo", "gpus=cpu"], None, ["method=dpo", "data.path=ROWS.jsonl"]),
        (["data.path=mine.jsonl", "memory=auto"], "mine.jsonl", ["data.path=mine.jsonl"]),
        (["seed=1"], "from/python.jsonl", ["seed=1", "data.path=from/python.jsonl"]),
        (
            ["--config-dir", "my conf", "-cd=x", "method=mine", "--cfg", "job", "~memory.offload", "~seed"],
            "rows",
            ["--config-dir", "my conf", "-cd=x", "method=mine", "~seed", "data.path=rows"],
        ),
    ],
)
def test_the_command_to_paste_names_rows(given, rows, wanted):
    assert own_overrides(given, rows=rows) == wanted


def test_cheapest_fits_and_its_overrides_compose():
    made = plan("model=llama3_8b", "method=dpo", "rows.prompt=30000", "model.lora.r=16", "gpus.count=2")
    assert made.best is not None
    assert made.best.memory.total <= made.machine.memory
    with hydra.initialize_config_module("hydra_conf", version_base="1.3"):
        config = hydra.compose("train", ["method=dpo", *overrides(made.best)])
    assert config.memory.checkpointing == made.best.strategy.levers.checkpointing
    assert any("launchers/accelerate/" in line for line in commands(made.best, made.machine, rest=[]))


@pytest.mark.parametrize(
    ("words", "said", "added"),
    [
        (["rows.prompt=7680"], None, False),  # with an answer of 512 the window of 8192
        (["rows.prompt=7681"], "cut these rows of 8193 tokens to the model's window of 8192", True),
        (["rows.prompt=84000"], "model.rope.type=yarn model.rope.factor=11", True),
        (["rows.prompt=84000", "model.rope.theta=2e8"], None, False),  # stretched on purpose: nothing is cut
        (["rows.prompt=84000", "data.max_length=84512"], None, False),
        (["rows.prompt=84000", "data.max_length=9000"], "data.max_length=9000 would cut these rows", False),
        (["data.max_length=9000"], None, False),
    ],
)
def test_a_plan_says_what_training_would_cut(capsys, words, said, added):
    """The command that was pasted trained on the model's window, and the plan was of other rows."""
    made = plan("model=llama3_8b", "method=dpo", "model.lora.r=16", *words)
    assert (made.cut is None) == (said is None)
    planner.show(made, own_overrides(words, rows=None))
    shown = capsys.readouterr().out
    assert said is None or said in shown
    command = shown.strip().splitlines()[-1]
    given = any(word.startswith("data.max_length=") for word in words)
    assert ("data.max_length=" in command) == (added or given)
    if added:
        assert f"data.max_length={made.job.rows.prompt + 512}" in command
