"""Group `model` as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field

EMBEDDED = "embedded"  # `model.path` of the model that a PyPI package brings
DTYPES = ("auto", "float32", "bfloat16")  # of `model.dtype`
LIBRARY = "library"  # `model.attention` that reads a row for each answer, through transformers' own attention


@dataclass(frozen=True)
class LoraSettings:
    """Group key `model.lora`; see hydra_conf/model/default.yaml."""

    r: int = 0
    alpha: int = 16
    dropout: float = 0.0
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    modules_to_save: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RopeSettings:
    """Group key `model.rope`; see hydra_conf/model/default.yaml."""

    theta: float | None = None
    type: str | None = None
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
class ModelSettings:
    """Group `model`; see hydra_conf/model/default.yaml."""

    path: str = EMBEDDED
    revision: str | None = None
    dtype: str = "auto"
    attention: str = "sdpa"
    trust_remote_code: bool = False
    quantization: str = "none"
    lora: LoraSettings = field(default_factory=LoraSettings)
    rope: RopeSettings = field(default_factory=RopeSettings)
