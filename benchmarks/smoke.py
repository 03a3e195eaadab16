"""Every method and every adapter by one override on the embedded model: does its own loss fall on held-out rows?

    python benchmarks/smoke.py                          # all, a minute or two each on two cores
    python benchmarks/smoke.py --only method=dpo adapter=half

The rows need no model: a context of sections of Python's language reference, a question that asks for the first
sentence of one of them, that sentence as the chosen answer, another section's as the rejected one, and the section
alone as the short prompt. Each is the real `align train experiment=smoke method=NAME`, or `method=dpo adapter=NAME`, in
a process of its own. Exit code 1 where one did not improve, or ended in an error, which does not keep the others.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from rich.console import Console
from rich.table import Table

import hydra_conf
from align.core.files import write_json
from align.runs.quoting import override

HERE = Path(__file__).parent
CONF = Path(hydra_conf.__file__).parent
METHODS = [f"method={path.stem}" for path in sorted((CONF / "method").glob("*.yaml"))]
# `library` names no adapter by itself, and with `none` all parameters train, as with the methods.
ADAPTERS = [
    f"adapter={path.stem}"
    for path in sorted((CONF / "adapter").glob("*.yaml"))
    if path.stem not in ("library", "none")
]
ADAPTED = ("method=dpo", "trainer.learning_rate=1e-3")  # an adapter's numbers are few, and take larger steps
# What trains copies of the weights themselves takes the steps that the weights take; factors take larger ones.
# Rotations that are made anew in every forward, by products of many small matrices, are put on fewer modules.
_SLOW = ("adapter.target_modules=[v_proj]", "memory.checkpointing=none")
OWN: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("adapter=half", "adapter=region", "adapter=osf"), ("trainer.learning_rate=1e-5",)),
    **dict.fromkeys(("adapter=ia3", "adapter=vera"), ("trainer.learning_rate=1e-2",)),
    **dict.fromkeys(("adapter=pissa", "adapter=oft"), ("trainer.learning_rate=1e-4",)),
    "method=dpop": ("trainer.learning_rate=3e-6",),  # a lost nat of the chosen answer costs fifty
    **dict.fromkeys(("adapter=boft", "adapter=hra"), _SLOW),
}
# Whose loss is no measure of what it lowers, so that its margin is: WPO's pairs weigh by how likely the policy
# would give them, which training raises.
BY_MARGIN = ("method=wpo",)
SECTION_CHARACTERS = (150, 360)  # a section is a paragraph of the reference of about this size
SENTENCE_CHARACTERS = (40, 160)
SECTIONS = 2  # of a row's context: the gold one and another
# What methods read of a row beside its texts (`needs.columns`).
NUMBERS = {"aligned_logp": -1.0, "reward": [1.0, 0.0], "margin": 0.5, "weight": 1.0}
HELD_OUT = 12
TRAINED = 32


def main() -> None:
    """Writes the rows, trains each, prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[*METHODS, *ADAPTERS], choices=[*METHODS, *ADAPTERS])
    parser.add_argument("--output", type=Path, default=HERE.parent / "outputs" / "smoke")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "smoke.json")
    arguments = parser.parse_args()
    write_rows(arguments.output)
    known = json.loads(arguments.results.read_text())["cells"] if arguments.results.is_file() else {}
    ended: list[str] = []
    for name in arguments.only:
        try:
            known[name] = run(name, arguments.output, threads=arguments.threads)
        except subprocess.CalledProcessError:  # it has said why
            ended.append(name)
            continue
        known[name]["threads"] = arguments.threads
        arguments.results.parent.mkdir(exist_ok=True)
        write_json(arguments.results, {"cells": known})
    measured = [name for name in arguments.only if name not in ended]
    Console(width=130).print(table({name: known[name] for name in measured}))
    failed = [name for name in measured if not improved(name, known[name])]
    said = {"not improved on held-out rows": failed, "ended in an error": ended}
    if failed or ended:
        sys.exit("; ".join(f"smoke: {what}: {', '.join(names)}" for what, names in said.items() if names))


def write_rows(folder: Path) -> None:
    """`train.jsonl` and `held_out.jsonl`: the same rows every time; the two share no section."""
    rows = list(make_rows())[: TRAINED + HELD_OUT]
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("held_out", rows[:HELD_OUT]), ("train", rows[HELD_OUT:])):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in part))


def make_rows() -> Iterator[dict[str, Any]]:
    """Rows of `SECTIONS` sections each, a row for each of them as the gold one."""
    pool = list(sections())
    for start in range(0, len(pool) - SECTIONS + 1, SECTIONS):
        part = pool[start : start + SECTIONS]
        for name, gold, sentence in part:
            yield {
                "context": [f'Section "{title}"\n{text}' for title, text, _ in part],
                "question": f'Quote the first sentence of the section "{name}".',
                "short_prompt": f'Section "{name}"\n{gold}',
                "chosen": sentence,
                "rejected": [answer for title, _, answer in part if title != name],
                **NUMBERS,
            }


def sections() -> Iterator[tuple[str, str, str]]:
    """(topic, paragraph, its first sentence): the first paragraph of prose of each topic that fits."""
    for name in sorted(topics):
        for block in re.split(r"\n\s*\n", topics[name]):
            text = " ".join(block.split())
            sentence, stop, _ = text.partition(". ")
            fits = SECTION_CHARACTERS[0] <= len(text) <= SECTION_CHARACTERS[1] and text.endswith(".")
            quotable = SENTENCE_CHARACTERS[0] <= len(sentence) <= SENTENCE_CHARACTERS[1]
            if fits and stop and quotable and text[0].isupper() and "::" not in text:
                yield name, text, f"{sentence}."
                break


def run(name: str, folder: Path, *, threads: int) -> dict[str, float]:
    """Trains with one override; what its results.json says, and the seconds from start to end."""
    output = folder / name.replace("=", "_")
    command = [
        *(sys.executable, "-m", "align.train", "experiment=smoke", name, "resume=never"),
        *(ADAPTED if name.startswith("adapter=") else ()),
        *OWN.get(name, ()),
        override("data.path", folder / "train.jsonl"),
        override("data.eval_path", folder / "held_out.jsonl"),
        override("output", output),
    ]
    shutil.rmtree(output, ignore_errors=True)
    start, processor = time.perf_counter(), _children_seconds()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    seconds, processor = time.perf_counter() - start, _children_seconds() - processor
    results = json.loads((output / "results.json").read_text())
    return {
        "loss_before": results["before"]["eval_loss"],
        "loss_after": results["after"]["eval_loss"],
        "margin_before": results["before"].get("eval_rewards/margins", 0.0),
        "margin_after": results["after"].get("eval_rewards/margins", 0.0),
        "accuracy_before": results["before"]["eval_rewards/accuracies"],
        "accuracy_after": results["after"]["eval_rewards/accuracies"],
        "tokens": results["training"]["num_tokens"],
        "reference_tokens": results["training"].get("reference/tokens", 0.0),
        "peak_gb": results["training"]["memory/peak_gb"],
        "seconds": seconds,
        "processor_seconds": processor,
    }


def _children_seconds() -> float:
    """Processor time of the processes that have ended: what a run costs, whatever else the machine does."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def improved(name: str, found: dict[str, float]) -> bool:
    """Whether its own loss fell on the held-out rows, or the margin grew."""
    if name in BY_MARGIN:
        return found["margin_after"] > found["margin_before"]
    return found["loss_after"] < found["loss_before"]


def table(found: dict[str, dict[str, float]]) -> Table:
    """One line an override."""
    columns: Sequence[str] = (
        "held-out loss",
        "after",
        "accuracy",
        "after",
        "tokens",
        "reference",
        "GB",
        "seconds",
        "CPU s",
    )
    result = Table(title=f"{HELD_OUT} held-out rows, {TRAINED} trained on", title_justify="left")
    result.add_column("override")
    for column in (*columns, "improved"):
        result.add_column(column, justify="right", no_wrap=True)
    for name, values in found.items():
        result.add_row(
            name,
            f"{values['loss_before']:.4f}",
            f"{values['loss_after']:.4f}",
            f"{values['accuracy_before']:.0%}",
            f"{values['accuracy_after']:.0%}",
            f"{values['tokens']:.0f}",
            f"{values['reference_tokens']:.0f}",
            f"{values['peak_gb']:.2f}",
            f"{values['seconds']:.0f}",
            f"{values['processor_seconds']:.0f}",
            "yes" if improved(name, values) else "NO",
        )
    return result


if __name__ == "__main__":
    main()
