"""Train on rows that are in memory, look at what came back, then do the same with `PreferenceTrainer`.

    python examples/train.py

Less than a minute on two cores. Everything is written below outputs/examples/ of the folder that you start it in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import align

OUTPUT = Path("outputs/examples")
THINGS = ("a brass compass", "a chart of the bay", "a ship's bell", "a sextant", "an oil lamp")
PLACES = ("Bergen", "Cork", "Dover", "Genoa", "Hull", "Lisbon", "Malta", "Oslo", "Riga", "Tunis", "York")
SHRUGS = ("I cannot say where it came from.", "That is not known.", "It could be from anywhere, I suppose.")


def make_rows(count: int = 14) -> list[dict[str, Any]]:
    """Questions about a museum's drawers: three chunks of context, a question about one, an answer and a shrug."""
    rows = []
    for number in range(count):
        held = [
            (THINGS[(number + drawer) % len(THINGS)], PLACES[(3 * number + 4 * drawer) % len(PLACES)])
            for drawer in range(3)
        ]
        asked = number % 3
        rows.append(
            {
                "context": [
                    f"Drawer {drawer + 1} holds {thing}. It came from {place} in {1800 + number + drawer}."
                    for drawer, (thing, place) in enumerate(held)
                ],
                "question": f"Where did the object in drawer {asked + 1} come from?",
                "chosen": f"It came from {held[asked][1]}.",
                "rejected": [SHRUGS[number % len(SHRUGS)]],  # several are legal
            }
        )
    return rows


def train(rows: list[dict[str, Any]]) -> Any:
    """DPO on all rows but four, which measure it: the command `align train`, as a function."""
    return align.train(
        "method=dpo",
        "model.path=embedded",  # SmolLM2-135M from a package; a folder or a Hub id elsewhere
        "model.lora.r=8",
        "trainer.learning_rate=1e-3",
        "trainer.gradient_accumulation_steps=2",  # prompts a step, one at a time
        "trainer.save_strategy=no",
        "data.eval_size=4",
        f"output={OUTPUT / 'train'}",
        data=rows,
    )


def train_as_in_trl(rows: list[dict[str, Any]]) -> Any:
    """The same rows in a trainer that takes what TRL's and transformers' take."""
    from transformers import TrainingArguments

    trainer = align.PreferenceTrainer(
        model="embedded",  # or a model that you have loaded
        args=TrainingArguments(
            str(OUTPUT / "trainer"),
            per_device_train_batch_size=2,
            learning_rate=2e-5,
            max_steps=3,
            logging_steps=1,
            save_strategy="no",
        ),
        method=align.method("simpo"),
        train_dataset=rows[4:],  # a list, or a datasets.Dataset
        eval_dataset=rows[:4],
    )
    trainer.train()
    return trainer


def main() -> None:
    """Both, with what they found."""
    rows = make_rows()
    result = train(rows)
    print(f"\nchosen answers, log-prob before and after: {result.before['eval_logps/chosen']:.1f}", end=" → ")
    print(f"{result.after['eval_logps/chosen']:.1f}; the adapter lies in {result.model}\n")
    trainer = train_as_in_trl(rows)
    print(f"\nheld out, by the trainer: margin {trainer.evaluate()['eval_rewards/margins']:.2f}")


if __name__ == "__main__":
    main()
