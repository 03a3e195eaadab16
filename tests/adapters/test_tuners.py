"""Each of PEFT's tuners that is allowed gives the padded rows' loss and gradients, is undone, merged and stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest

from align.adapters.library import Library
from align.adapters.lora import Lora
from align.adapters.tuners import REFUSED, TUNERS
from align.core.errors import UserError
from tests.adapters.contract import held_to_an_initialisation, held_to_the_contract
from tests.tiny import tiny_tokenizer

# What a tuner needs to go on a model of width 64, or else would train next to nothing.
OPTIONS: dict[str, dict[str, Any]] = {
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 16},
    "FOURIERFT": {"n_frequency": 50},
    "HRA": {"r": 4},
    "IA3": {"feedforward_modules": ["down_proj"]},
    "OFT": {"oft_block_size": 16},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 4},
    "UNILORA": {},
    "VBLORA": {"num_vectors": 8, "vector_length": 16, "topk": 2},
    "VERA": {"r": 8},
    "WAVEFT": {"n_frequency": 50},
}
TARGETS: dict[str, list[str]] = {
    "IA3": ["k_proj", "v_proj", "down_proj"],
    "LN_TUNING": ["all-norms"],
}


def adapter(name: str) -> Library:
    return Library(name, TARGETS.get(name, ["q_proj", "v_proj", "down_proj"]), options=OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", TUNERS)
def test_a_tuner_is_exact(name: str, tmp_path: Path) -> None:
    held_to_the_contract(adapter(name), tmp_path)


@pytest.mark.parametrize("name", sorted({kind.value for kind in peft.PeftType} - TUNERS.keys()))
def test_every_other_tuner_of_the_library_is_refused_with_its_reason(name: str) -> None:
    assert name in REFUSED
    with pytest.raises(UserError, match=f"adapter.type={name} is refused: it "):
        Library(name).check()


def test_trained_tokens_are_named_by_their_texts() -> None:
    tokenizer = tiny_tokenizer()
    named = Lora(r=4, train_tokens=["w9", 12]).with_tokenizer(tokenizer)
    assert named.train_tokens == [tokenizer.convert_tokens_to_ids("w9"), 12]
    with pytest.raises(UserError, match="names 'nowhere', which is no token of the model"):
        Lora(r=4, train_tokens=["nowhere"]).with_tokenizer(tokenizer)
    for token in ("", True, 1.5, -1):
        with pytest.raises(UserError, match="give tokens as texts or by their ids"):
            Lora(r=4, train_tokens=[token]).check()


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "pissa", "olora"])
def test_initialisations_start_as_the_model_and_are_stored(init: str, tmp_path: Path) -> None:
    """To rounding the starting model; moved, stored and loaded on a fresh one, and merged, the same."""
    held_to_an_initialisation(Lora(r=4, init=init), tmp_path)


def test_loftq_asks_for_its_package_before_a_model_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("align.adapters.lora.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"adapter\.init=loftq needs the package bitsandbytes"):
        Lora(r=4, init="loftq").check()
