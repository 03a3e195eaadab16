"""Activation memory and time of a step against prompt length, for each memory lever and degree.

    python benchmarks/scaling.py                                    # every lever; README.md says how long it takes
    python benchmarks/scaling.py --levers tiled_disk --prompts 4096 8192
    python benchmarks/scaling.py --degrees 1 2 4 --kinds gather --prompts 8192 --levers tiled

Activation memory is what a step adds to the model and its gradients. Finished cells are kept and not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import report
from rich.console import Console
from rich.table import Table

from align.longseq.settings import DEFAULT_CHUNK
from align.models.settings import EMBEDDED

HERE = Path(__file__).parent
# What a cell switches on; the keywords of `apply_checkpointing`. `padded` is the library's own forward.
LEVERS: dict[str, dict[str, Any]] = {
    "padded": {},
    "full": {"mode": "full"},
    "keep_attention": {"mode": "keep_attention"},
    "tiled": {"mode": "full", "mlp_chunk": 512},
    "tiled_disk": {"mode": "full", "mlp_chunk": 512, "offload": "disk"},
}


def cells(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Settings of every cell, the longest prompt last."""
    for lever in arguments.levers:
        for degree in arguments.degrees:
            for kind in ["none"] if degree == 1 else arguments.kinds:
                for prompt in arguments.prompts:
                    yield {
                        "lever": lever,
                        "degree": degree,
                        "kind": kind,
                        "prompt": prompt,
                        "layers": arguments.layers,
                        "parameters": arguments.parameters,
                        "answers": arguments.answers,
                        "logits_chunk": arguments.logits_chunk,
                        "model": arguments.model,
                        "threads": arguments.threads,
                    }


def name_of(cell: dict[str, Any]) -> str:
    """Key of the results file."""
    keys = ("model", "threads", "parameters", "layers", "lever", "kind", "degree", "prompt")
    words = {key: str(cell[key]) for key in keys} | {"layers": str(cell["layers"] or "all")}
    # A path is one word of the name.
    words["model"] = words["model"].strip("/").replace("/", "--")
    words["threads"] += " thread" if cell["threads"] == 1 else " threads"
    words["lever"] += f" {cell['logits_chunk']}"
    words["parameters"] += " 1+" + str(len(cell["answers"]) - 1) + "×" + str(max(cell["answers"]))
    return "/".join(words.values())


def start(cell: dict[str, Any], rank: int, folder: str) -> subprocess.Popen[bytes]:
    """One process of a cell; what it prints goes to a file in `folder`."""
    settings = json.dumps(cell | {"levers": LEVERS[cell["lever"]]})
    with Path(folder, f"{rank}.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, str(HERE / "scaling_worker.py"), settings, str(rank), folder],
            # glibc would keep freed blocks, and the peak would read about twice the true one.
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": str(cell["threads"])},
            stdout=log,
            stderr=log,
        )


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Runs one cell in `degree` processes; of memory and time the largest of them.

    Raises:
        RuntimeError: with the end of what a process printed, where one failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes = [start(cell, rank, folder) for rank in range(cell["degree"])]
        try:
            while any(process.poll() is None for process in processes):
                time.sleep(0.5)
                if any(process.poll() for process in processes):
                    break
        finally:
            for process in processes:
                process.kill()
        for rank, process in enumerate(processes):
            if process.wait():
                raise RuntimeError(Path(folder, f"{rank}.log").read_text()[-3000:])
        ranks = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(cell["degree"])]
    return {key: max(found[key] for found in ranks) for key in ranks[0]} | {"cell": cell}


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, nargs="+", default=[1024, 2048, 4096, 8192], help="tokens")
    parser.add_argument(
        "--answers", type=int, nargs="+", default=[128, 128, 128], help="tokens; chosen first"
    )
    parser.add_argument("--levers", nargs="+", choices=LEVERS, default=list(LEVERS))
    parser.add_argument("--degrees", type=int, nargs="+", default=[1], help="processes that share a row")
    parser.add_argument("--kinds", nargs="+", choices=("ulysses", "gather"), default=["ulysses", "gather"])
    parser.add_argument("--parameters", choices=("full", "lora"), default="lora", help="what trains")
    parser.add_argument("--layers", type=int, default=0, help="the first ones only; 0: all, as trained")
    parser.add_argument("--logits-chunk", type=int, default=DEFAULT_CHUNK, help="as memory.logits_chunk")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--model", default=EMBEDDED, help="as model.path")
    parser.add_argument(
        "--output", type=Path, default=HERE / "results", help="folder of scaling.json and .png"
    )
    return parser.parse_args(words)


def growth(measured: Sequence[dict[str, Any]]) -> list[float | None]:
    """Bytes a token that each length adds to the one before it, over the checkpointed hidden states' bytes."""
    slopes: list[float | None] = [None]
    for shorter, longer in pairwise(measured):
        added = longer["activation_bytes"] - shorter["activation_bytes"]
        tokens = longer["cell"]["prompt"] - shorter["cell"]["prompt"]
        slopes.append(added / tokens / longer["checkpoint_bytes_per_token"])
    return slopes


def series(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The cells that differ in their prompt alone, shortest first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, measured in results["cells"].items():
        found.setdefault(name.rsplit("/", 1)[0], []).append(measured)
    return {
        name: sorted(cells, key=lambda each: each["cell"]["prompt"]) for name, cells in sorted(found.items())
    }


def alone(results: dict[str, Any], cell: dict[str, Any]) -> dict[str, Any] | None:
    """The same cell in one process, with whatever threads: memory hardly depends on them; None where there is none."""
    wanted = cell | {"degree": 1, "kind": "none"}
    return next(
        (one for one in results["cells"].values() if one["cell"] | {"threads": wanted["threads"]} == wanted),
        None,
    )


def table(results: dict[str, Any]) -> Table:
    """One line a cell: memory, growth, and the ratios to one process without levers beyond `full`."""
    shown = Table(title="A step by length, lever and degree", title_justify="left")
    for column in (
        "model / threads / trains / layers / lever, logits chunk / exchange / degree",
        "prompt",
        "activations MB",
        "growth",
        "of degree 1",
        "CPU s",
        "CPU of full",
    ):
        shown.add_column(column, justify="left" if "/" in column else "right")
    for name, measured in series(results).items():
        for each, slope in zip(measured, growth(measured), strict=True):
            cell = each["cell"]
            single = alone(results, cell)
            plain = results["cells"].get(name_of(cell | {"lever": "full"}))
            shown.add_row(
                name,
                str(cell["prompt"]),
                f"{each['activation_bytes'] / 1e6:.0f}",
                "" if slope is None else f"{slope:.2f} ×",
                "" if single is None else f"{each['activation_bytes'] / single['activation_bytes']:.2f} ×",
                f"{each['processor_seconds']:.0f}",
                "" if plain is None else f"{each['processor_seconds'] / plain['processor_seconds']:.2f} ×",
            )
        shown.add_section()
    return shown


def draw(results: dict[str, Any], path: Path) -> None:
    """Activation memory and processor time against the prompt's length, one line a series."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.2))
    for name, measured in series(results).items():
        prompts = [each["cell"]["prompt"] for each in measured]
        axes[0].plot(
            prompts,
            [each["activation_bytes"] / 1e6 for each in measured],
            "o-",
            label=name,
        )
        axes[1].plot(prompts, [each["processor_seconds"] for each in measured], "o-")
    axes[0].set_ylabel("activations, MB a process")
    axes[1].set_ylabel("processor seconds a step and process")
    axes[0].legend(fontsize=6, frameon=False)
    for axis in axes:
        axis.set_xlabel("prompt, tokens")
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Measures what is not there yet, and writes after every cell."""
    arguments, console = parse(), Console()
    console.width = max(console.width, 140)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "scaling.json"
    results = json.loads(path.read_text()) if path.is_file() else {"cells": {}}
    for cell in cells(arguments):
        name = name_of(cell)
        if name in results["cells"]:
            continue
        measured = measure(cell) | {"machine": report.machine(arguments.threads)}
        # Two commands may run at once: what the other has written meanwhile stays.
        results = json.loads(path.read_text()) if path.is_file() else results
        results["cells"][name] = measured
        path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        console.print(f"{name}: {measured['activation_bytes'] / 1e6:.0f} MB", highlight=False)
    draw(results, path.with_suffix(".png"))
    console.print(table(results))
    console.print(f"written: {path} and {path.with_suffix('.png')}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
