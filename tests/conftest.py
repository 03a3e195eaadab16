"""One thread a process, garbage of tests alone, and the longest files first where tests are spread over cores."""

from __future__ import annotations

import gc
import os

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
