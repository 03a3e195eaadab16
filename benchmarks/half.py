"""Half of the weights against all of them: seconds of a DPO step, and what weights, gradients and optimizer take.

python -m benchmarks.half                     # SmolLM2-135M, in turns in one process; writes results/half.json

All parameters train beside a frozen reference, a model of its own; with `adapter=half` the reference is the adapter
switched off. Same rows, AdamW, fp32.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from align.adapters.half import Half
from align.core.files import write_json
from align.data.examples import Answer, TokenizedExample
from align.longseq import ATTENTION, SharedPrefixBatch, pack, pair_logps
from align.longseq.checkpointing import apply_checkpointing
from align.models.loading import load_causal_lm
from align.models.settings import ModelSettings
from align.reference.sources import AdapterOff, Frozen, Reference
from losses import dpo_loss

RESULTS = Path(__file__).parent / "results" / "half.json"
CHUNK = 1024  # tokens whose logits exist at once


@dataclass
class Contestant:
    """A policy with its reference and optimizer."""

    policy: nn.Module
    reference: Reference
    optimizer: torch.optim.Optimizer
    models: tuple[nn.Module, ...]

    def step(self, batch: SharedPrefixBatch) -> tuple[float, float]:
        """Seconds of one step, and its loss."""
        start = time.perf_counter()
        expected = self.reference(self.policy, batch)
        loss = dpo_loss(pair_logps(self.policy, batch, chunk_size=CHUNK), expected, beta=0.1).loss.mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start, loss.item()

    def bytes(self) -> dict[str, int]:
        """Of weights (the reference's among them), of gradients, and of the optimizer's state."""
        weights = {id(p): p for model in self.models for p in model.parameters()}
        trained = [p for p in self.policy.parameters() if p.requires_grad]
        state = [t for each in self.optimizer.state.values() for t in each.values() if torch.is_tensor(t)]
        return {
            "weights": sum(p.nbytes for p in weights.values()),
            "gradients": sum(p.nbytes for p in trained),
            "optimizer": sum(t.nbytes for t in state),
        }


def forward(model: nn.Module, batch: SharedPrefixBatch) -> Any:
    """Of a reference."""
    return pair_logps(model, batch, chunk_size=CHUNK)


def full(base: Any) -> Contestant:
    """All parameters, beside a frozen copy."""
    frozen = copy.deepcopy(base).eval().requires_grad_(False)
    return _contestant(base, Frozen(lambda: frozen, forward), (base, frozen))


def half(base: Any) -> Contestant:
    """A half by category; embedding and head of this model are one weight, which stays."""
    policy = Half(seed=1).add(base)
    return _contestant(policy, AdapterOff(policy, forward), (policy,))


def _contestant(policy: Any, reference: Reference, models: tuple[nn.Module, ...]) -> Contestant:
    policy.train()
    apply_checkpointing(policy, "full")
    trained = [p for p in policy.parameters() if p.requires_grad]
    return Contestant(policy, reference, torch.optim.AdamW(trained, lr=1e-5), models)


def rows(prompt: int, answer: int, vocabulary: int) -> SharedPrefixBatch:
    """One prompt with a chosen and a rejected answer."""
    rng = np.random.default_rng(0)
    answers = tuple(
        Answer(rng.integers(0, vocabulary, answer), np.ones(answer, dtype=bool)) for _ in range(2)
    )
    return pack([TokenizedExample("half:1", rng.integers(0, vocabulary, prompt), np.arange(prompt), answers)])


CONTESTANTS: dict[str, Callable[[Any], Contestant]] = {"full": full, "half": half}


def compare(*, prompt: int, answer: int, rounds: int) -> dict[str, Any]:
    """Medians in turns, and the ratios of half to full."""
    settings = ModelSettings(dtype="float32")
    made = {name: make(load_causal_lm(settings, attention=ATTENTION)) for name, make in CONTESTANTS.items()}
    batch = rows(prompt, answer, 40_000)
    seconds: dict[str, list[float]] = {name: [] for name in made}
    losses: dict[str, float] = {}
    for number in range(rounds + 1):
        for name, contestant in made.items():
            took, loss = contestant.step(batch)
            if number:  # the first is to warm up
                seconds[name].append(took)
            else:
                losses[name] = loss
    cells = {
        name: {
            "seconds": statistics.median(seconds[name]),
            "first_loss": losses[name],
            "trained": sum(p.numel() for p in contestant.policy.parameters() if p.requires_grad),
            **contestant.bytes(),
        }
        for name, contestant in made.items()
    }
    keys = ("seconds", "trained", "weights", "gradients", "optimizer")
    ratios = {key: cells["half"][key] / cells["full"][key] for key in keys}
    return {"prompt": prompt, "answer": answer, "rounds": rounds, "cells": cells, "ratios": ratios}


def main() -> None:
    """Runs it, prints the ratios and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--answer", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = compare(prompt=arguments.prompt, answer=arguments.answer, rounds=arguments.rounds)
    write_json(arguments.results, found | {"threads": arguments.threads})
    print(json.dumps(found["ratios"], indent=2))


if __name__ == "__main__":
    main()
