"""One thread a process: models are tiny, and threads that wait for each other take the time of other tests."""

import gc
import os

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch is imported; processes that tests start inherit it


def pytest_collection_finish() -> None:
    """What has been imported stays: garbage is looked for among the objects of tests alone."""
    gc.collect()
    gc.freeze()
