"""What a card has been measured at, for simulations: by `benchmarks/results/gpu/`, None where that has nothing.

    python -m benchmarks.gpu_rates                # every kind of `hydra_conf/gpus/`, measured against assumed

- **peak**: FLOP/s of a large matrix product in bf16;
- **matrix** and **attention**: FLOP/s that training reaches in the model's products and in attention, fitted to timed
  steps of an 8B with LoRA: seconds = products / matrix + attention's work / attention, both counted by
  `align/planning/time.py`, over all steps without offloading, each by its relative error;
- **to_host**: bytes/s from pinned memory of the host to the GPU and back, the slower of both;
- **memory**: bytes of the card.

Two forms of files are read: `CARD.json` of `python -m benchmarks.gpu`, with stages, and the first look before it.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

import hydra_conf
from align.adapters.lora import Lora
from align.models.settings import ModelSettings
from align.planning.architecture import Architecture, measure, read_config
from align.planning.job import Job, Levers, Precision, Rows, Strategy
from align.planning.settings import GpuSettings
from align.planning.time import work

FOLDER = Path(__file__).parent / "results" / "gpu"
GROUP = Path(hydra_conf.__file__).parent / "gpus"
# A file of `hydra_conf/gpus/` → what the card's own name has in it.
CARDS = {
    "h100_80gb": "H100 80GB",
    "h200": "H200",
    "a100_80gb": "A100-SXM4-80GB",
    "rtx4090": "RTX 4090",
}
MODEL, RANK, ANSWER = "meta-llama/Meta-Llama-3-8B-Instruct", 16, 512
TILES = {"tiles": {"mode": "full", "mlp_chunk": 4096}}  # of the stage `length`


@dataclass(frozen=True)
class TimedStep:
    """A step of LOGO 1 + 2 of an 8B with LoRA: its levers, tokens of the prompt, and seconds."""

    levers: Levers
    prompt: int
    seconds: float


@dataclass(frozen=True)
class Rates:
    """See the module; `card` is None where no card of the kind was measured."""

    card: str | None = None
    peak: float | None = None
    matrix: float | None = None
    attention: float | None = None
    to_host: float | None = None
    memory: float | None = None

    def settings(self, given: GpuSettings) -> dict[str, float]:
        """Keys of the group `gpus` with the measured values in the place of the given ones."""
        known = {
            "mfu": self.matrix and self.matrix / (given.peak_tflops * 1e12),
            "attention_mfu": self.attention and self.attention / (given.peak_tflops * 1e12),
            "host_gb_per_s": self.to_host and self.to_host / 1e9,
            "memory_gb": self.memory and self.memory / 1e9,
        }
        return {key: value for key, value in known.items() if value is not None}


def given_settings(kind: str) -> GpuSettings:
    """A file of `hydra_conf/gpus/`."""
    values: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(GROUP / f"{kind}.yaml"))  # type: ignore[assignment]
    return GpuSettings(**values)


def rates_of(kind: str, folder: Path = FOLDER) -> Rates:
    """The rates of a kind of card, each from the file that has it and was written last.

    Args:
        kind: a file of `hydra_conf/gpus/`.
        folder: of the results.
    """
    found = Rates()
    for content in _of_card(CARDS.get(kind), folder):
        stages = content.get("stages", {})
        environment = _result(stages, "environment")
        copies = environment.get("gb_per_s", {})
        ways = [copies.get(f"pinned, to {way}") for way in ("device", "host")]
        matrix, attention = fit(list(timed_steps(content))) or (None, None)
        read = {
            "peak": _times(environment.get("tflops", {}).get("bf16"), 1e12)
            or _times(content.get("environment", {}).get("bf16_tflops"), 1e12),
            "matrix": matrix,
            "attention": attention,
            "to_host": min(ways) * 1e9 if all(ways) else None,
            "memory": _times(environment.get("card", {}).get("memory_gib"), 2**30),
        }
        found = Rates(content["card"], **{key: value or getattr(found, key) for key, value in read.items()})
    return found


def timed_steps(content: dict[str, Any]) -> Iterator[TimedStep]:
    """The steps of an 8B in a file of either form, without those that were offloaded or extrapolated."""
    length = content.get("length", {})
    for name, cell in length.items():  # `full {'mlp_chunk': 4096} 65536`
        mode, _, rest = name.partition(" ")
        levers, _, prompt = rest.rpartition(" ")
        if isinstance(cell, dict) and "offload" not in levers:
            yield TimedStep(Levers(mode, **ast.literal_eval(levers)), int(prompt), float(cell["seconds"]))
    for name, levers in TILES.items():
        cell = _result(content.get("stages", {}), "length").get(f"logo lora, Llama-3-8B, {name}", {})
        for prompt, step in cell.get("tried", {}).items() if isinstance(cell, dict) else ():
            if "seconds" in step and isinstance(step.get("layers"), int):
                yield TimedStep(
                    Levers(levers["mode"], mlp_chunk=levers["mlp_chunk"]), int(prompt), step["seconds"]
                )


def fit(steps: Sequence[TimedStep]) -> tuple[float, float] | None:
    """FLOP/s of products and of attention, by least squares of the relative errors; None for fewer than two steps.

    A step of 2 seconds with 400 TFLOP of products and 200 of attention, and one of 6 with 800 of both: 400 TFLOP/s and
    200.
    """
    if len({step.prompt for step in steps}) < 2:
        return None
    model = large()
    rows = []
    for step in steps:
        job = Job(Rows(step.prompt, (ANSWER,) * 3), Precision(2))
        rows.append(work(model, job, Strategy(levers=step.levers), job.rows))
    seconds = np.array([step.seconds for step in steps])
    inverse, *_ = np.linalg.lstsq(np.array(rows) / seconds[:, None], np.ones(len(steps)), rcond=None)
    if min(inverse) <= 0:
        return None
    return float(1 / inverse[0]), float(1 / inverse[1])


def large() -> Architecture:
    """The model of the timed steps."""
    settings = ModelSettings(path=MODEL, adapter=Lora(r=RANK))
    return measure(read_config(settings)[0], settings)


def _of_card(name: str | None, folder: Path) -> Iterator[dict[str, Any]]:
    """The files of a card, the one that was written last at the end."""
    files = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        if name is not None and name in str(content.get("card", "")):
            stages = [str(entry.get("date", "")) for entry in content.get("stages", {}).values()]
            files.append((max([str(content.get("date", "")), *stages]), path.name, content))
    yield from (content for _, _, content in sorted(files, key=lambda file: file[:2]))


def _result(stages: dict[str, Any], stage: str) -> dict[str, Any]:
    """What a stage has found at full scale; empty where it has not run, or ended in an error."""
    entry = stages.get(stage, {})
    found = entry.get("result") if entry.get("scale", "full") == "full" else None
    return found if isinstance(found, dict) else {}


def _times(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit


def main() -> None:
    """Prints measured against assumed."""
    made = Table(title="measured, and what hydra_conf/gpus/ says", title_justify="left")
    for heading in ("gpus", "card", "bf16 TFLOP/s", "mfu", "attention_mfu", "host_gb_per_s", "memory_gb"):
        made.add_column(heading, justify="right")
    for kind in CARDS:
        given, rates = given_settings(kind), rates_of(kind)
        measured = rates.settings(given)
        peak = "not measured" if rates.peak is None else f"{rates.peak / 1e12:.0f}"
        keys = ("mfu", "attention_mfu", "host_gb_per_s", "memory_gb")
        cells = [
            f"{measured[key]:.3g} ({getattr(given, key)})" if key in measured else f"({getattr(given, key)})"
            for key in keys
        ]
        made.add_row(kind, rates.card or "none", f"{peak} ({given.peak_tflops:.0f})", *cells)
    Console(width=160).print(made)


if __name__ == "__main__":
    main()
