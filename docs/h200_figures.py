"""What sentences quote of `make gpu` on an H200; see figures.py."""

from __future__ import annotations

from collections.abc import Iterator

from docs.tables import read


def over_trl(*prompts: int, ours: str = "shared", rival: str = "trl") -> str:
    """How much faster a DPO step is than TRL's on an H200, with LoRA and all parameters."""
    speed = read("gpu/nvidia-h200.json")["stages"]["speed"]["result"]
    jobs = [f"dpo {kind}, {prompt} + 512 + 512" for kind in ("lora", "full") for prompt in prompts]
    found = [speed[f"{job}, {rival}"]["seconds"] / speed[f"{job}, {ours}"]["seconds"] for job in jobs]
    return f"{min(found):.2f} to {max(found):.2f} ×"


def on_an_h200() -> Iterator[str]:
    """docs/performance.md: `make gpu` on an H200."""
    stages = read("gpu/nvidia-h200.json")["stages"]
    length, planner = (stages[name]["result"] for name in ("length", "planner"))
    yield f"{over_trl(16384, 32768)} as fast as `DPOTrainer` with its defaults"
    yield f"{over_trl(16384, 32768, ours='shared_liger', rival='trl_fastest')} with Liger's kernels in both"
    yield f"with a prompt of 4,096 {over_trl(4096)}"
    moved = [length[f"{name}, offload=host"]["tried"]["65536"] for name in length if "offload" not in name]
    kept = [cell["tried"]["65536"] for name, cell in length.items() if "offload" not in name]
    over = [one["seconds"] / other["seconds"] for one, other in zip(moved, kept, strict=True)]
    yield f"took {min(over):.2f} to {max(over):.2f} × the time on one H200"
    errors = [cell["error"] for cell in planner.values()]
    memory = [100 * error["memory"] for error in errors]
    yield f"memory was planned within −{-min(memory):.1f} and +{max(memory):.1f} %"
    late = sorted(100 * error["time"] for error in errors)[:3]
    yield f"three of six steps took longer than planned by far (−{-late[2]:.0f} to −{-late[0]:.0f} %)"
