"""Minimum Tuning's filter in miniature: are few answers of the right length worth more than many of any length?

    python -m benchmarks.minimum_tuning --work FOLDER   # minutes on two cores; writes results/minimum_tuning.json

The folder keeps what is finished, so that a killed run goes on.

What is compared was written down here before the first run. A model of 0.12M parameters (part `write` of
`make miniature`) knows short answers alone. 600 rows ask for 10 to 120 words; their answers have that length times a
factor drawn log-uniformly from [0.05, 1], 4 words at least, so that about a ninth meets its length with S_l ≥ 80.
Three arms train from the same base for the same steps (`experiment=miniature/write_sft`, 150 steps of 16 rows):

- all: the 600 rows;
- selected: those that `select=length_score` keeps;
- random: as many of the 600, drawn at random.

Each is asked 200 held-out instructions (`suite=longwrite`) with two seeds. The claim, "selected rows raise S_l above
all rows", is shown where the mean over both seeds of the paired difference selected − all has a 95 % interval above 0
and each seed's own mean is above 0; selected − random tells the filter from the number of rows.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align.core.files import write_atomically
from align.evaluation.intervals import Interval, mean_interval
from align.generation.generators import derive_seed
from benchmarks.miniature import write
from benchmarks.miniature.files import read_lines, write_lines
from benchmarks.miniature.run import machine

RESULTS = Path(__file__).parent / "results" / "minimum_tuning.json"
SEEDS = (1, 2)
ARMS = ("all", "selected", "random")
STEPS, LEAST_FACTOR, LEAST_WORDS = 150, 0.05, 4
DIFFERENCES = (("selected", "all"), ("selected", "random"), ("all", "base"), ("selected", "base"))


def main() -> None:
    """Runs both seeds, or what an earlier start in the same folder has not finished of them, and writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    seeds = {str(seed): measure(arguments.work / str(seed), seed) for seed in SEEDS}
    found = {"seeds": seeds, "machine": machine()}
    write_atomically(arguments.output, json.dumps(found, indent=1) + "\n")
    for first, second in DIFFERENCES:
        print(f"{first} − {second}: {difference(seeds, first, second)}")


def measure(folder: Path, seed: int) -> dict[str, Any]:
    """Arm → its rows and the S_l of each held-out instruction, of one seed."""
    folder.mkdir(parents=True, exist_ok=True)
    base, asked = folder / "base", folder / "asked.jsonl"
    if not base.is_dir():
        run("benchmarks.miniature.tiny", "write", str(seed), str(base))
    write_lines(asked, write.instructions("held_out"))
    rows = {"all": list(noisy_rows(seed))}
    write_lines(folder / "all.jsonl", rows["all"])
    if not (folder / "selection" / "train.jsonl").is_file():
        run(
            *("align.synthesize", "pipeline=rows", f"pipeline.path={folder / 'all.jsonl'}"),
            *("select=length_score", f"model.path={base}", f"output={folder / 'selection'}"),
        )
    rows["selected"] = read_lines(folder / "selection" / "train.jsonl")
    rng = random.Random(derive_seed(seed, "minimum", "random"))
    rows["random"] = rng.sample(rows["all"], len(rows["selected"]))
    found = {"base": {"rows": 0, "length_score": ask(base, asked, folder / "base-asked")}}
    for arm in ARMS:
        write_lines(folder / f"{arm}.jsonl", rows[arm])
        if not (folder / arm / "results.json").is_file():
            run(
                *("align.train", "experiment=miniature/write_sft", f"model.path={base}", f"seed={seed}"),
                *(f"data.path={folder / arm}.jsonl", f"trainer.max_steps={STEPS}", "trainer.save_steps=1000"),
                f"output={folder / arm}",
            )
        scores = ask(folder / arm / "model", asked, folder / f"{arm}-asked")
        found[arm] = {"rows": len(rows[arm]), "length_score": scores}
    return found


def noisy_rows(seed: int) -> Iterator[dict[str, Any]]:
    """Instructions with answers whose length is off by the factor of the protocol."""
    rng = random.Random(derive_seed(seed, "minimum", "rows"))
    for _ in range(write.SFT_ROWS):
        topic, required = rng.choice(write.train_pairs())
        words = max(LEAST_WORDS, round(required * LEAST_FACTOR ** rng.random()))
        answer = " ".join(write.text(rng, topic, words=words))
        yield {
            "messages": [
                {"role": "user", "content": write.instruction(topic, required)},
                {"role": "assistant", "content": answer},
            ]
        }


def ask(model: Path, asked: Path, output: Path) -> list[float]:
    """S_l of each held-out instruction, 0 … 100, in their order."""
    if not (output / "samples.jsonl").is_file():
        run(
            *("align.evaluate", "suite=longwrite", f"suite.path={asked}", "suite.max_new_tokens=300"),
            *("generator.batch_tokens=65536", "generator.batch_size=50"),
            *(f"model.path={model}", "model.dtype=float32", f"output={output}"),
        )
    return [round(record["length_score"], 4) for record in read_lines(output / "samples.jsonl")]


def run(*words: str) -> None:
    """A module as a process of its own; its first words are its name."""
    print(" ".join(words[:2]), flush=True)
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr}")


def difference(seeds: Mapping[str, Mapping[str, Any]], first: str, second: str) -> Interval:
    """The mean over seeds and questions of `first − second`, a question being one sample whatever its seeds."""
    return mean_interval(np.mean(list(by_seed(seeds, first, second).values()), axis=0).tolist())


def by_seed(seeds: Mapping[str, Mapping[str, Any]], first: str, second: str) -> Mapping[str, Sequence[float]]:
    """Seed → the difference of each question."""
    return {
        seed: np.subtract(arms[first]["length_score"], arms[second]["length_score"]).tolist()
        for seed, arms in seeds.items()
    }


def shown(seeds: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the protocol's claim is shown."""
    interval = difference(seeds, "selected", "all")
    means = [float(np.mean(values)) for values in by_seed(seeds, "selected", "all").values()]
    return interval.low is not None and interval.low > 0 and min(means) > 0


if __name__ == "__main__":
    main()
