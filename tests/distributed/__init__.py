"""`run_distributed` for every test that needs processes, beside the tests of `align/distributed/`."""

from tests.distributed.processes import HangError, run_distributed

__all__ = ["HangError", "run_distributed"]
