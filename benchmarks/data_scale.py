"""What many short rows cost before training: a first start with one process and two, a cached one, `align inspect`.

python -m benchmarks.data_scale                        # a million rows; writes results/data_scale.json
python -m benchmarks.data_scale --tokenise 5000        # 5,000 are tokenised, the cache of the million is copies of them
python -m benchmarks.data_scale --rows 100000 --against FOLDER     # the same also for the sources in FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa

from align.data.build import cache_key
from align.data.renaming import Renaming
from align.data.row_builder import Demands
from align.data.settings import DataSettings, PositionSettings
from align.data.sources import open_sources
from align.data.vocabulary import vocabulary_of
from align.models.embedded import embedded_model
from align.models.loading import load_config, load_tokenizer, native_window
from align.models.settings import ModelSettings

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "data_scale.json"
WORKER = Path(__file__).with_name("data_scale_worker.py")
WORDS = (ROOT / "benchmarks" / "README.md").read_text().split()
# Name of a step → the command, and whether it starts with an empty cache. In this order.
STEPS = {
    "first start, num_proc=2": ("train", ["data.num_proc=2"], True),
    "first start, num_proc=1": ("train", ["data.num_proc=1"], True),
    "cached start": ("train", ["data.num_proc=1"], False),
    "inspect, cached": ("inspect", ["rows=0"], False),
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


def measure_tree(tree: Path, rows: int, tokenise: int | None) -> dict[str, dict[str, float]]:
    """Every step on one tree of sources.

    Args:
        tree: the checkout.
        rows: of the file.
        tokenise: first starts read a file of so many; a cached start and `align inspect` then find a cache of `rows`
            rows that are copies of those, each with a prompt of its own. None tokenises all.
    """
    found, lines = {}, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for step, (command, overrides, empty) in STEPS.items():
            count = (tokenise or rows) if empty else rows
            if empty:
                shutil.rmtree(folder / "cache", ignore_errors=True)
            if count != lines:
                write_rows(folder / "rows.jsonl", count)
                lines = count
                if not empty:
                    fill_cache(folder, tokenise or rows, rows)
            found[step] = {"rows": count, **measure(tree, command, overrides, folder)}
            print(f"{tree.name}: {step}: {found[step]}", flush=True)
    return found


def fill_cache(folder: Path, made: int, rows: int) -> None:
    """The cache of `rows.jsonl`, made of the rows that a first start has tokenised of the file's beginning."""
    built = next((folder / "cache" / "data" / "generator").glob("*/*/"))
    target = built.parent.with_name(f"default-fingerprint={key_of(folder / 'rows.jsonl')}") / built.name
    target.mkdir(parents=True)
    info = json.loads((built / "dataset_info.json").read_text())
    info["splits"]["train"]["num_examples"] = rows
    (target / "dataset_info.json").write_text(json.dumps(info))
    (file,) = built.glob("*.arrow")
    table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
    place = table.schema.get_field_index("prompt_hash")
    with pa.ipc.new_stream(pa.OSFile(str(target / file.name), "wb"), table.schema) as writer:
        for copy in range(rows // made):
            names = pa.array([f"{copy}-{name}" for name in table["prompt_hash"].to_pylist()])
            own = table.set_column(place, table.schema.field(place), pa.chunked_array([names]))
            writer.write_table(own, max_chunksize=1000)


def key_of(path: Path) -> str:
    """The cache's key of a file under `align train` with its default settings."""
    renaming = Renaming.of(None)
    model = ModelSettings(path=str(embedded_model()))
    settings = DataSettings(path=str(path), max_length=native_window(model))
    demands = Demands(rejected=True, vocabulary=vocabulary_of(load_config(model)))
    return cache_key(
        open_sources(str(path), wanted=renaming.wanted()).train,
        settings,
        load_tokenizer(model.path),
        positions=PositionSettings(),
        seed=42,
        demands=demands,
        renaming=renaming,
    )


def table(results: dict[str, dict]) -> str:
    """The steps as Markdown."""
    lines = ["| sources | step | rows | processor s | wall s | peak GB |", "|---|---|---|---|---|---|"]
    for name, result in results.items():
        for step, found in result.items():
            figures = f"{found['processor_s']:.1f} | {found['wall_s']:.1f} | {found['peak_gb']:.2f}"
            lines.append(f"| {name} | {step} | {found['rows']:,} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, adds to the file and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--tokenise", type=int, help="rows that are tokenised, a divisor of --rows; default all"
    )
    parser.add_argument("--against", type=Path, help="a checkout of older sources, measured too")
    parser.add_argument("--only-against", action="store_true", help="measure the older sources alone")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    if args.against is not None:
        results["before"] = measure_tree(args.against.resolve(), args.rows, None)
    if not args.only_against:
        results["now"] = measure_tree(ROOT, args.rows, args.tokenise)
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
