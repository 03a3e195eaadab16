"""What many short rows cost before training: a first start with one process and two, a cached one, `align inspect`.

python -m benchmarks.data_scale                      # a million rows; writes results/data_scale.json
python -m benchmarks.data_scale --rows 100000 --against FOLDER   # the same also for the sources in FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from align.models.embedded import embedded_model

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "data_scale.json"
WORKER = Path(__file__).with_name("data_scale_worker.py")
WORDS = (ROOT / "benchmarks" / "README.md").read_text().split()
# Name of a step → the command, and whether it starts with an empty cache. In this order.
STEPS = {
    "first start, num_proc=1": ("train", ["data.num_proc=1"], True),
    "cached start": ("train", ["data.num_proc=1"], False),
    "first start, num_proc=2": ("train", ["data.num_proc=2"], True),
    "inspect": ("inspect", ["rows=0"], True),
}


def write_rows(path: Path, rows: int) -> None:
    """Chat rows with a question of 16 words and two answers of 8, none equal to another; the same at every call."""
    draw = random.Random(0)
    with path.open("w") as file:
        for i in range(rows):
            question, chosen, rejected = (" ".join(draw.choices(WORDS, k=n)) for n in (16, 8, 8))
            row = {
                "prompt": [{"role": "user", "content": f"{i} {question}"}],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": f"{rejected} {i}"}],
            }
            file.write(json.dumps(row) + "\n")


def measure(tree: Path, command: str, overrides: list[str], folder: Path) -> dict[str, float]:
    """One step in a process of its own."""
    given = [f"data.path={folder / 'rows.jsonl'}", f"model.path={embedded_model()}", *overrides]
    if command == "train":
        given += [f"output={tempfile.mkdtemp(dir=folder)}", "method=dpo", "trainer.report_to=none"]
    reading, writing = os.pipe()
    environment = os.environ | {
        "PYTHONPATH": str(tree),
        "ALIGN_CACHE": str(folder / "cache"),
        "DATA_SCALE_OUT": str(writing),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, str(WORKER), command, *given],
        env=environment,
        cwd=folder,
        pass_fds=[writing],
        capture_output=True,
        text=True,
        check=False,
    )
    os.close(writing)
    with os.fdopen(reading) as file:
        answer = file.read()
    if not answer or json.loads(answer)["code"] > 1:
        raise SystemExit(f"{command} {' '.join(given)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return json.loads(answer)


def measure_tree(tree: Path, rows: int) -> dict[str, dict[str, float]]:
    """Every step on one tree of sources."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", rows)
        for step, (command, overrides, empty) in STEPS.items():
            if empty:
                subprocess.run(["rm", "-rf", str(folder / "cache")], check=True)
            found[step] = measure(tree, command, overrides, folder)
            print(f"{tree.name}: {step}: {found[step]}", flush=True)
    return found


def table(results: dict[str, dict]) -> str:
    """The steps as Markdown."""
    lines = ["| | rows | step | processor s | wall s | peak GB |", "|---|---|---|---|---|---|"]
    for name, result in results.items():
        for step, found in result["steps"].items():
            figures = f"{found['processor_s']:.1f} | {found['wall_s']:.1f} | {found['peak_gb']:.2f}"
            lines.append(f"| {name} | {result['rows']:,} | {step} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, adds to the file and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--against", type=Path, help="a checkout of older sources, measured too")
    parser.add_argument("--only-against", action="store_true", help="measure the older sources alone")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    if args.against is not None:
        results["before"] = {"rows": args.rows, "steps": measure_tree(args.against.resolve(), args.rows)}
    if not args.only_against:
        results["now"] = {"rows": args.rows, "steps": measure_tree(ROOT, args.rows)}
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
