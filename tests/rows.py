"""A file of random rows in the words of `tests.tiny.tiny_tokenizer`, with everything that any method asks for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def words(rng: np.random.Generator, count: int) -> str:
    return " ".join(f"w{i}" for i in rng.integers(8, 128, count))


def make_rows(path: Path, count: int = 12, **extra) -> Path:
    rng = np.random.default_rng(0)
    rows = [
        {
            "context": [words(rng, 20), words(rng, 15), words(rng, 25)],
            "question": words(rng, 5),
            "chosen": words(rng, 6),
            "rejected": [words(rng, 5), words(rng, 7)],
            "short_prompt": words(rng, 15),
        }
        | extra
        for _ in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
