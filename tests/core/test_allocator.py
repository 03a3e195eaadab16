"""The setting of torch's allocator: made where nobody has made one, on a machine with NVIDIA's driver."""

from __future__ import annotations

import subprocess
import sys

import pytest

from align.core.allocator import VARIABLES, advice, is_expandable, let_segments_grow


@pytest.fixture
def driver(tmp_path):
    """The driver's file, as a machine with a GPU has it."""
    path = tmp_path / "version"
    path.write_text("NVRM version: NVIDIA")
    return path


@pytest.mark.parametrize(
    ("torch", "name"),
    [
        ("2.8.0", "PYTORCH_CUDA_ALLOC_CONF"),
        ("2.9.0", "PYTORCH_ALLOC_CONF"),
        ("2.13.0+cpu", "PYTORCH_ALLOC_CONF"),
        ("3.0.0a0", "PYTORCH_ALLOC_CONF"),
    ],
)
def test_it_is_set_under_the_versions_name_and_said(torch, name, driver):
    environment: dict[str, str] = {}
    said = let_segments_grow(environment, torch=torch, driver=driver)
    assert environment == {name: "expandable_segments:True"}
    assert said is not None and said.startswith(f"{name}=expandable_segments:True is set for this run")
    assert is_expandable(environment)
    assert let_segments_grow(environment, torch=torch, driver=driver) is None, "said once"


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("value", ["expandable_segments:False", "max_split_size_mb:512", ""])
def test_what_the_user_has_set_stays(name, value, driver):
    environment = {name: value}
    assert let_segments_grow(environment, torch="2.13.0", driver=driver) is None
    assert advice(environment, torch="2.13.0", driver=driver) is None
    assert environment == {name: value}
    assert not is_expandable(environment)


def test_without_a_gpu_nothing_is_set(tmp_path):
    environment: dict[str, str] = {}
    assert let_segments_grow(environment, driver=tmp_path / "none") is None
    assert advice(environment, driver=tmp_path / "none") is None
    assert environment == {}


@pytest.mark.parametrize(
    ("environment", "grow"),
    [
        ({}, False),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:512, expandable_segments:true"}, True),
        # torch reads the first that is set.
        (
            {
                "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:9",
                "PYTORCH_ALLOC_CONF": "expandable_segments:True",
            },
            False,
        ),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, True),
    ],
)
def test_it_is_read_as_torch_reads_it(environment, grow):
    assert is_expandable(environment) is grow


def test_a_notebook_is_advised(driver):
    """Nothing is set in a process that may have used the GPU."""
    environment: dict[str, str] = {}
    said = advice(environment, torch="2.13.0", driver=driver)
    assert (
        said is not None and "PYTORCH_ALLOC_CONF=expandable_segments:True, set before Python starts" in said
    )
    assert environment == {}


def test_torch_is_not_imported_for_it():
    code = "import sys; from align.core.allocator import let_segments_grow; let_segments_grow({})"
    code += "; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("module", ["align.train", "align"])
def test_the_command_sets_it_before_torch_is_imported(module):
    """`align train` and what `accelerate launch` starts, `python -m align.train`: main does it first of all."""
    words = ["train"] if module == "align" else []
    code = (
        "import runpy, sys; from pathlib import Path; import align.core.allocator as a\n"
        "def seen():\n"
        "    assert 'torch' not in sys.modules; print('asked before torch', flush=True)\n"
        "import align.train; align.train.let_segments_grow = seen\n"
        f"sys.argv = ['align', *{words!r}, 'data.path=none.jsonl', 'model.dtype=float8']\n"
        "from align import cli\n"
        "(cli.main if sys.argv[1:2] == ['train'] else align.train.main)()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ran.stdout.startswith("asked before torch"), ran.stderr
    assert ran.returncode == 2
