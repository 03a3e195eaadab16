"""The base model of setting `find`: the miniature's, which says that its window is what it was trained on.

python -m benchmarks.windows_protocol.base SEED FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.miniature import tiny
from benchmarks.windows_protocol.arms import SETTINGS


def main() -> None:
    """Trains the model and saves it with its tokenizer; the folder appears when it is whole."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seed", type=int)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    steps, batch, learning_rate = tiny.TRAINING["find"]
    policy = tiny.train("find", arguments.seed, steps=steps, batch=batch, learning_rate=learning_rate)
    policy.config.max_position_embeddings = SETTINGS["find"].window
    tiny.save(policy, arguments.folder)


if __name__ == "__main__":
    main()
