"""Stage `environment`: the card, and what it reaches: matrix products, its memory, and the way to the host."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.device import GIB, Device

ASKED = "driver_version,power.limit,clocks.max.sm"


def run(context: Context) -> None:
    """See the module."""
    device = context.device
    size = context.of_scale(8192, 256)
    context.cells(
        {
            "card": lambda: card(device),
            "tflops": lambda: {name: matrix_rate(device, name, size=size) for name in RATES},
            "gb_per_s": lambda: bandwidths(device, context.of_scale(GIB, 2**22)),
        }
    )


def card(device: Device) -> dict[str, Any]:
    """What the machine says of itself."""
    found: dict[str, Any] = {"name": device.card, "cores": os.cpu_count(), "torch": torch.__version__}
    if device.cuda:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "capability": torch.cuda.get_device_capability(),
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": properties.total_memory / GIB,
            "free_gib": device.room_gib(),
            "cuda": torch.version.cuda,
        }
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", f"--query-gpu={ASKED}", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
        found |= dict(zip(ASKED.split(","), (one.strip() for one in answer.split(",")), strict=False))
    return found


# What is multiplied → its type, and how torch may round products of float32.
RATES = {
    "bf16": (torch.bfloat16, "highest"),
    "fp32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
}


def matrix_rate(device: Device, name: str, *, size: int) -> float:
    """TFLOP/s of a product of two square matrices: 2 · size³ over its seconds."""
    dtype, precision = RATES[name]
    one, other = (torch.randn(size, size, device=device.torch).to(dtype) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        seconds = device.seconds(lambda: one @ other, warm=3)
    finally:
        torch.set_float32_matmul_precision(before)
    return 2 * size**3 / seconds / 1e12


def bandwidths(device: Device, size: int) -> dict[str, float]:
    """GB/s of copies of `size` bytes: within the device (read and written), and to and from the host."""
    there = torch.empty(size, dtype=torch.uint8, device=device.torch)
    other = torch.empty_like(there)
    found = {"device": 2 * size / device.seconds(lambda: other.copy_(there)) / 1e9}
    for kind in ("pageable", "pinned") if device.cuda else ("pageable",):
        here = torch.empty(size, dtype=torch.uint8, pin_memory=kind == "pinned")
        for way, run_copy in (
            ("to device", lambda here=here: there.copy_(here, non_blocking=True)),
            ("to host", lambda here=here: here.copy_(there, non_blocking=True)),
        ):
            found[f"{kind}, {way}"] = size / device.seconds(run_copy) / 1e9
    return found
