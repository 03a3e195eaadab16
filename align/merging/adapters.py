"""LoRA adapters of one base as one adapter, exactly: their factors side by side.

Σ wᵢ sᵢ Bᵢ Aᵢ = [w₁s₁B₁, w₂s₂B₂, …] [A₁; A₂; …], with sᵢ = αᵢ / rᵢ (or αᵢ / √rᵢ). A mean of the A and one of the B,
which PEFT calls `linear`, is another matrix: its product has the mixed terms Bᵢ Aⱼ.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

from align.core.errors import UserError
from align.merging.sources import Source

FILE = "adapter_model.safetensors"
_FACTOR = re.compile(r"^base_model\.model\.(.+)\.lora_(embedding_)?([AB])(\.weight)?$")
# Keys of a LoRA's configuration that change what it computes → what they have to be, for its product to be B A alone.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
}
# Initialisations that take something off the base model's weights, which the saved factors do not tell of.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


def why_not(adapters: Sequence[Source]) -> str | None:
    """Why adapters cannot be joined into one, in words; None where they can. Reads no weights."""
    first = adapters[0]
    for adapter in adapters:
        config = _config(adapter)
        if not isinstance(config, LoraConfig):
            return f"{adapter} is of the type {getattr(config.peft_type, 'value', config.peft_type)}, and no LoRA"
        for key, plain in _PLAIN.items():
            value = getattr(config, key, None)
            if value not in plain:
                return f"{adapter} has {key}={value}, which is no product of two factors"
        start = str(config.init_lora_weights).lower()
        if start.startswith(_CHANGES_BASE):
            return f"{adapter} began from init_lora_weights={start}, which changes the base model's weights"
        odd = {
            key
            for key in ("path", "revision", "rope", "query_scale", "layer_patterns")
            if _base_fact(adapter, key) != _base_fact(first, key)
        }
        if odd:
            return f"{adapter} and {first} have different bases ({', '.join(sorted(odd))})"
    return None


def _config(adapter: Source) -> PeftConfig:
    try:
        return PeftConfig.from_pretrained(str(adapter.policy.weights))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{adapter}: the installed PEFT cannot read its adapter_config.json ({error})."
        ) from error


def _base_fact(adapter: Source, key: str) -> Any:
    value = getattr(adapter.base, key)
    return str(Path(value).resolve()) if key == "path" and Path(value).is_dir() else value


def join(adapters: Sequence[Source], weights: Sequence[float], folder: Path, *, dtype: str) -> int:
    """Writes one adapter whose ΔW is Σ wᵢ ΔWᵢ, and gives its rank: the sum of theirs.

    A module that some of them do not have gets zeros for these, so that one rank and one scale hold everywhere.

    Args:
        adapters: that `why_not` has nothing against.
        weights: one for each.
        folder: is there; gets `adapter_config.json` and the weights.
        dtype: of what is written: `bfloat16`, else float32, since the scales are in the factors.

    Raises:
        UserError: a tensor that is no factor of a LoRA, and differs between them.
    """
    configs = [_config(adapter) for adapter in adapters]
    tensors: dict[str, torch.Tensor] = {}
    factors = [_factors(a, c, w, tensors) for a, c, w in zip(adapters, configs, weights, strict=True)]
    modules = list(dict.fromkeys(name for own in factors for name in own))
    kept = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    ranks = {name: sum(own[name][1].shape[0] for own in factors if name in own) for name in modules}
    rank = max(ranks.values())
    for name in modules:
        those = [own[name] for own in factors if name in own]
        a = _padded(torch.cat([a for _, a, _ in those], dim=0), rank, dim=0)
        b = _padded(torch.cat([b for _, _, b in those], dim=1), rank, dim=1)
        for letter, factor in (("A", a), ("B", b)):
            tensors[those[0][0].format(letter)] = factor.to(kept).contiguous()
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    _joined_config(configs, modules, rank).save_pretrained(str(folder))
    return rank


# module → (name of its factors with `{}` for A or B, A [r, …], w s B […, r])
Factors = dict[str, tuple[str, torch.Tensor, torch.Tensor]]


def _factors(adapter: Source, config: PeftConfig, weight: float, others: dict[str, torch.Tensor]) -> Factors:
    """A LoRA's factors in float32, its scale and weight in B.

    What else its file holds, as PEFT saves the base model's embedding with an adapter on it, is added to `others`.
    """
    given: dict[str, dict[str, tuple[str, torch.Tensor]]] = {}
    for path in sorted(adapter.policy.weights.glob("adapter_model*.safetensors")):
        for name, tensor in load_file(path).items():
            found = _FACTOR.match(name)
            if found is None:
                if not torch.equal(others.setdefault(name, tensor), tensor):
                    raise UserError(
                        f"{adapter}: {name} is no factor of a LoRA, and another adapter has other values of it: set "
                        "form=model, which merges whole models."
                    )
                continue
            pattern = f"{name[: found.start(3)]}{{}}{name[found.end(3) :]}"
            given.setdefault(found[1], {})[found[3]] = (pattern, tensor.to(torch.float32))
    factors: Factors = {}
    for module, pair in given.items():
        if set(pair) != {"A", "B"}:
            raise UserError(
                f"{adapter}: {module} has one factor of its LoRA and not the other: copy it again."
            )
        (name, a), (_, b) = pair["A"], pair["B"]
        factors[module] = (name, a, b * (weight * _scale(config, module, a.shape[0])))
    return factors


def _scale(config: Any, module: str, rank: int) -> float:
    """What PEFT multiplies B A of a module with: α / r, or α / √r of rsLoRA; α may be the module's own."""
    alphas = config.alpha_pattern or {}
    alpha = alphas.get(get_pattern_key(list(alphas), module), config.lora_alpha)
    return float(alpha / (math.sqrt(rank) if config.use_rslora else rank))


def _padded(factor: torch.Tensor, rank: int, *, dim: int) -> torch.Tensor:
    lacking = rank - factor.shape[dim]
    if not lacking:
        return factor
    sizes = list(factor.shape)
    sizes[dim] = lacking
    return torch.cat([factor, factor.new_zeros(sizes)], dim=dim)


def _joined_config(configs: Sequence[Any], modules: Sequence[str], rank: int) -> LoraConfig:
    """The first one's, with a scale of 1 and the modules of all by their whole names."""
    first = configs[0]
    return LoraConfig(
        base_model_name_or_path=first.base_model_name_or_path,
        revision=first.revision,
        task_type=first.task_type,
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(modules),
        fan_in_fan_out=first.fan_in_fan_out,
        inference_mode=True,
    )
