"""Group `model` as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from align.core.config import check_choice
from align.core.errors import UserError

EMBEDDED = "embedded"  # `model.path` of the model that a PyPI package brings
DTYPES = ("auto", "float32", "bfloat16")  # of `model.dtype`
LIBRARY = "library"  # `model.attention` that reads a row for each answer, through transformers' own attention
MASKED = "masked"  # `model.attention` that reads packed rows through it, by a mask of a row's tokens times themselves
OF_LIBRARY = (LIBRARY, MASKED)
LIGER = "liger"
KERNELS = ("none", LIGER)  # of `model.kernels`
ROUTERS = ("auto", "train", "freeze")  # of `model.moe.router`
# `model.moe.experts` → the name that transformers knows the computation by; None leaves the choice to it.
EXPERTS = {"auto": None, "eager": "eager", "grouped": "grouped_mm", "batched": "batched_mm"}


@dataclass(frozen=True)
class LoraSettings:
    """Group key `model.lora`, another name of `adapter=lora`; see hydra_conf/model/default.yaml."""

    r: int = 0
    alpha: int = 16
    dropout: float = 0.0
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    modules_to_save: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RopeSettings:
    """Group key `model.rope`; see hydra_conf/model/default.yaml.

    Attributes:
        table: what gives the frequencies (align/rope_tables/table.py).
    """

    theta: float | None = None
    type: str | None = None
    table: Any = None
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    length: int | None = None
    max_position_embeddings: int | None = None


@dataclass(frozen=True)
class MoeSettings:
    """Group key `model.moe`; see hydra_conf/model/default.yaml."""

    balance: float = 0.0
    router: str = "auto"
    experts: str = "auto"

    def check(self) -> None:
        """Refuses a negative coefficient and words that are not known."""
        if not 0.0 <= self.balance < float("inf"):
            raise UserError(
                f"model.moe.balance={self.balance} is no coefficient: give a number from 0 (off) on, such as 0.001."
            )
        check_choice("model.moe.router", self.router, ROUTERS)
        check_choice("model.moe.experts", self.experts, EXPERTS)


def no_balance(attention: str) -> str:
    """The refusal of a load-balancing loss with the library's attention."""
    return (
        f"model.moe.balance counts what routers decide where layers run by our attention, which "
        f"model.attention={attention} does without: set model.moe.balance=0."
    )


@dataclass(frozen=True)
class ModelSettings:
    """Group `model`; see hydra_conf/model/default.yaml.

    Attributes:
        adapter: what the group `adapter` describes (align/adapters/adapter.py); None: all parameters train.
        layer_patterns: what the group `attention` describes (`patterns.layers.Chosen`); None: as the checkpoint has it.
        query_scale: what queries are multiplied by (align/query_scale/scale.py); None: as the checkpoint has it.
    """

    path: str = EMBEDDED
    revision: str | None = None
    dtype: str = "auto"
    attention: str = "auto"
    kernels: str = "none"
    trust_remote_code: bool = False
    quantization: str = "none"
    lora: LoraSettings = field(default_factory=LoraSettings)
    adapter: Any = None
    rope: RopeSettings = field(default_factory=RopeSettings)
    query_scale: Any = None
    moe: MoeSettings = field(default_factory=MoeSettings)
    extra_tokens: list[str] = field(default_factory=list)
    layer_patterns: Any = None
