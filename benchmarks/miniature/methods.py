"""What is compared: the methods of parts `qa` and `find`, the ablations, and what all of them may read."""

from __future__ import annotations

from benchmarks.miniature import find

BUDGET = {"qa": 40_000, "find": 64_000}  # real tokens that the policy reads
LOGO = ("method.loss.beta=2.5", "method.loss.gamma=0.25", "method.loss.sft_weight=0.1")
POSITIONS = {
    "qa": ("positions=logo", "positions.target_length=4096"),
    "find": ("positions=logo", f"positions.target_length={find.BEYOND[-1]}"),
}
# method → its overrides, and which of a row's answers are rejected
METHODS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "sft": (("method=sft",), None),
    "dpo": (("method=dpo",), "long"),
    "simpo": (("method=simpo",), "long"),
    "longpo": (("method=longpo",), "long"),
    "logo": (("method=logo", *LOGO), "irrelevant"),
    "logo_positions": (("method=logo", *LOGO), "irrelevant"),
}
# The same for what looks for the reason of a claim that fails; part → ablation → …
SFT = METHODS["sft"]
SLOW = "trainer.learning_rate=1.0e-4"
ANSWER = (("method=longpo", "method.needs.nll_scope=chosen"), "long")
ABLATIONS: dict[str, dict[str, tuple[tuple[str, ...], str | None]]] = {
    "qa": {"sft_positions": SFT, "longpo_answer": ANSWER},
    "find": {
        "sft_positions": SFT,
        "dpo_slow": (("method=dpo", SLOW), "long"),
        "simpo_slow": (("method=simpo", SLOW), "long"),
        "longpo_slow": (("method=longpo", SLOW), "long"),
        "longpo_answer": ANSWER,
    },
    "write": {
        "dpo_half": (("trainer.num_train_epochs=1",), None),
        "dpo_decay": (("trainer.lr_scheduler_type=linear",), None),
    },
}


def methods_of(part: str) -> dict[str, tuple[tuple[str, ...], str | None]]:
    """What part `qa` or `find` trains, ablations last."""
    return METHODS | ABLATIONS[part]
