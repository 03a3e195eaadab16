"""One thread a process, garbage of tests alone, DeepSpeed built where only tests build, the longest files first."""

from __future__ import annotations

import gc
import os
from importlib.metadata import version

import pytest

# Models are tiny: threads that wait for each other only take time. Before torch is imported; children inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Files of half a minute or so on one core, mostly starts of Python and torch: begun last, one would end alone.
LONGEST = [
    "test_distributed_train.py",
    "test_two_hosts.py",
    "test_launch_failures.py",
    "test_parallel.py",
    "test_cli.py",
    "test_wrappers.py",
    "test_survival.py",
    "test_planning.py",
]


def pytest_configure(config: pytest.Config) -> None:
    """What DeepSpeed compiles at its first use stands in the checkout's own cache, once for each torch.

    In the home folder a run of anything that was killed while it compiled has left a lock there, and every test that
    starts DeepSpeed would wait for its end. Here only tests build, so a lock that nobody holds is deleted.
    """
    if hasattr(config, "workerinput"):
        return  # pytest-xdist: the first process has set it for all
    from align.distributed.build_locks import left_locks  # imports torch, which reads the variable above

    folder = config.rootpath / ".pytest_cache" / f"torch_extensions_{version('torch')}"
    folder.mkdir(parents=True, exist_ok=True)
    for lock in left_locks(folder):
        lock.unlink(missing_ok=True)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The same order in every worker of pytest-xdist; alone, pytest keeps its own."""
    if hasattr(config, "workerinput"):
        order = {name: i for i, name in enumerate(LONGEST)}
        items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_collection_finish() -> None:
    """What has been imported stays: garbage is looked for among the objects of tests alone."""
    gc.collect()
    gc.freeze()
