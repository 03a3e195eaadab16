"""PEFT's tuners: those that the shared prefix computes exactly, and why the others are refused.

A tuner stands in `TUNERS` because tests/adapters/test_tuners.py holds it against padded rows: loss and gradients,
adapter off, checkpointing, tiles, merging, saving and loading.
"""

from __future__ import annotations

from dataclasses import dataclass

from align.core.errors import UserError


@dataclass(frozen=True)
class Tuner:
    """What is known of one of PEFT's tuners.

    Attributes:
        four_bits: whether PEFT has a layer of it for four-bit weights.
        replaces: whether it trains copies of modules in full.
        hooked: whether it changes gradients by hooks of its parameters, which FSDP2 exchanges for parameters without.
    """

    four_bits: bool = False
    replaces: bool = False
    hooked: bool = False


TUNERS: dict[str, Tuner] = {
    "BOFT": Tuner(),
    "C3A": Tuner(),
    "DEFT": Tuner(),
    "DELORA": Tuner(),
    "FOURIERFT": Tuner(),
    "FROD": Tuner(),
    "GLORA": Tuner(),
    "GRALORA": Tuner(),
    "HIRA": Tuner(four_bits=True),
    "HRA": Tuner(),
    "IA3": Tuner(four_bits=True),
    "LN_TUNING": Tuner(replaces=True),
    "LOHA": Tuner(),
    "LOKR": Tuner(),
    "LORA": Tuner(four_bits=True),
    "MISS": Tuner(),
    "OFT": Tuner(),
    "OSF": Tuner(hooked=True),
    "PEANUT": Tuner(),
    "PSOFT": Tuner(),
    "RANDLORA": Tuner(four_bits=True),
    "ROAD": Tuner(four_bits=True),
    "SHIRA": Tuner(),
    "SUPERTUNING": Tuner(),
    "TINYLORA": Tuner(),
    "UNILORA": Tuner(),
    "VBLORA": Tuner(),
    "VERA": Tuner(),
    "WAVEFT": Tuner(),
}

_VIRTUAL = (
    "puts virtual tokens before rows, which packed rows have no place for: set adapter=soft_prompt instead"
)
_INNER = "calls the model's inside past the place where answers are scored"
REFUSED: dict[str, str] = {
    "ADALORA": _INNER,
    "ADAPTION_PROMPT": _INNER,
    "ADAMSS": "needs scikit-learn and has not been held against padded rows",
    "BEFT": "trains biases, which cannot be merged where a layer has none",
    "CARTRIDGE": _VIRTUAL,
    "CPT": _VIRTUAL,
    "LILY": "averages over all tokens of all rows in its router, so that answers would see each other",
    "MULTITASK_PROMPT_TUNING": _VIRTUAL,
    "POLY": "asks for the number of a task with every row",
    "PREFIX_TUNING": _VIRTUAL,
    "PROMPT_TUNING": _VIRTUAL,
    "PVERA": "draws noise in every forward, so that layers that are computed again compute something else",
    "P_TUNING": _VIRTUAL,
    "SHADOW": "runs a side model whose attention does not know packed rows",
    "TRAINABLE_TOKENS": "trains rows of the embedding alone: set adapter=lora adapter.train_tokens=… for them",
    "XLORA": "chooses among adapters that have to be trained before",
}


def check_tuner(name: str) -> Tuner:
    """What is known of a tuner.

    Raises:
        UserError: it is refused, with the reason, or not known.
    """
    if name in REFUSED:
        raise UserError(f"adapter.type={name} is refused: it {REFUSED[name]}.")
    if name not in TUNERS:
        raise UserError(f"adapter.type={name} is not known: use {', '.join(TUNERS)}.")
    return TUNERS[name]
