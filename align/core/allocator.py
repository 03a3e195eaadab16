"""How torch's allocator keeps a GPU's memory: segments that grow, which break up less than those of a fixed size.

A step of long rows asks for tensors of many sizes. From segments of a fixed size pieces stay over that no tensor fits;
a segment that grows (`expandable_segments:True`) is one stretch of addresses. torch reads the setting from the
environment when it first uses a GPU, so that it has to be there before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# What torch reads, the first that is set: the CUDA allocator asks in this order (c10/cuda/CUDAAllocatorConfig.h).
VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
EXPANDABLE = "expandable_segments:True"
_RENAMED = (2, 9)  # the version of torch from which the old name is met with a warning
# NVIDIA's driver on Linux; Windows' subsystem for Linux, which cannot let segments grow, has no such file.
DRIVER = Path("/proc/driver/nvidia/version")


def allocator_settings(environment: Mapping[str, str] = os.environ) -> str:
    """What the environment tells torch's allocator; empty where it tells nothing."""
    return next((environment[name] for name in VARIABLES if environment.get(name)), "")


def is_expandable(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether segments grow."""
    words = allocator_settings(environment).replace(" ", "").lower().split(",")
    return EXPANDABLE.lower() in words


def let_segments_grow(
    environment: MutableMapping[str, str] = os.environ, *, torch: str | None = None, driver: Path = DRIVER
) -> str | None:
    """Sets the variable where nobody has set one, on a machine with an NVIDIA GPU; imports no torch.

    Args:
        environment: of the process.
        torch: torch's version; None is the installed one's.
        driver: a file that is there where NVIDIA's driver is.

    Returns:
        What was done, as a sentence; None where nothing was, a value of the user's own being one reason.
    """
    if any(name in environment for name in VARIABLES) or not driver.exists():
        return None
    name = _variable(torch or _installed())
    environment[name] = EXPANDABLE
    return (
        f"{name}={EXPANDABLE} is set for this run, so that memory on the GPU breaks up less; "
        f"set {name} yourself to have it otherwise."
    )


def advice(
    environment: Mapping[str, str] = os.environ, *, torch: str | None = None, driver: Path = DRIVER
) -> str | None:
    """What a process in which torch is imported already, as in a notebook, is to be told; None where nothing is."""
    if any(name in environment for name in VARIABLES) or not driver.exists():
        return None
    name = _variable(torch or _installed())
    return f"{name}={EXPANDABLE}, set before Python starts, would let memory on the GPU break up less."


def _variable(torch: str) -> str:
    """The name that a version of torch reads without a warning: of 2.8.0 the old one, of 2.9.0 the new."""
    major, minor = (int(part) for part in torch.split(".")[:2])
    return "PYTORCH_ALLOC_CONF" if (major, minor) >= _RENAMED else "PYTORCH_CUDA_ALLOC_CONF"


def _installed() -> str:
    """The installed torch's version, by its package; where there is none the first with the new name."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return ".".join(map(str, _RENAMED))
