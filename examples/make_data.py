"""Preference rows from documents that are in memory; look at them, then train on them for two steps.

    python examples/make_data.py

Less than a minute on two cores. Everything is written below outputs/examples/ of the folder that you start it in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import align

OUTPUT = Path("outputs/examples")
DOCUMENTS = {
    "lighthouse": (
        "The lighthouse on Gull Point was finished in 1811. Its tower is thirty metres high and built of "
        "grey granite that was shipped from Cornwall. For its first sixty years the lamp burned rape oil. A "
        "keeper and two assistants lived below the lamp with their families. They wound the clockwork that "
        "turned the lenses every four hours, and they wrote down each passing ship. In 1936 the lamp became "
        "electric. The last keeper left in 1982, and since then a computer in the harbour office has "
        "watched the light."
    ),
    "bread": (
        "Rye bread keeps longer than wheat bread because rye holds more water. The baker mixes rye flour, "
        "water and a spoonful of old dough and leaves the bowl in a warm place overnight. By morning the "
        "dough smells sour and has small bubbles. Salt and caraway are added next. The loaf is baked for "
        "ninety minutes, first in a very hot oven, then in a cooler one. It should rest for a day before it "
        "is cut, since a fresh loaf sticks to the knife."
    ),
    "tides": (
        "Two tides a day reach the estuary. The moon pulls the water towards it, and the earth turns below "
        "the two bulges that this makes. When sun and moon stand in one line, the tides are at their "
        "highest and are called spring tides. When they stand at a right angle, the tides are lowest and "
        "are called neap tides. In the estuary the water rises by five metres at springs. Fishermen leave "
        "their boats on the mud and wait for it."
    ),
    "bees": (
        "A hive of honey bees has one queen, a few hundred drones and up to fifty thousand workers. A "
        "worker spends her first three weeks inside, where she cleans cells, feeds the young and builds "
        "comb from wax. After that she flies out for nectar and pollen. A bee that has found flowers dances "
        "on the comb: the angle of her dance tells the others the direction, and its length tells them the "
        "distance. In winter the bees form a ball around the queen."
    ),
}


def make_data() -> Any:
    """LOGO's pipeline at a small size: the embedded model asks about a chunk, and answers from right and wrong ones."""
    return align.synthesize(
        "pipeline=logo_demo",
        "pipeline/scorer=bm25",
        "model.path=embedded",
        "pipeline.chunk_tokens=40",
        "pipeline.chunks_per_prompt=4",
        "pipeline.critical_chunks=1",
        "pipeline.max_new_tokens=20",
        "pipeline.max_question_tokens=20",
        f"output={OUTPUT / 'data'}",
        documents=[{"id": name, "text": text} for name, text in DOCUMENTS.items()],
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def train(rows: list[dict[str, Any]]) -> Any:
    """Two steps of SimPO, which needs no reference, on all rows but one."""
    return align.train(
        "method=simpo",
        "model.path=embedded",
        "model.lora.r=8",
        "trainer.learning_rate=5e-4",
        "trainer.gradient_accumulation_steps=2",
        "trainer.max_steps=2",
        "trainer.save_strategy=no",
        "data.eval_size=1",
        f"output={OUTPUT / 'trained_on_data'}",
        data=rows,
    )


def main() -> None:
    """Makes the rows, shows them, trains on them."""
    made = make_data()
    rows = read_rows(made.path)
    for row in rows[:3]:
        print(f"\n{row['question']}\n  chosen:   {row['chosen']}")
        for answer in row["rejected"]:
            print(f"  rejected: {answer}")
    print()
    align.inspect("model.path=embedded", "rows=1", data=rows)
    train(rows)


if __name__ == "__main__":
    main()
