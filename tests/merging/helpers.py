"""Tiny models and adapters to merge, and the command."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from align import cli
from tests.tiny import tiny_model, tiny_tokenizer

IDS = torch.arange(8, 40)[None]


def save_model(folder: Path, kind: str = "llama", *, seed: int = 0, dtype=torch.float32, **overrides) -> Path:
    """A model folder with its tokenizer."""
    model = tiny_model(kind, seed=seed, **({"initializer_range": 0.1} | overrides)).to(dtype)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_adapter(base: Path, folder: Path, *, seed: int, **settings) -> Path:
    """A LoRA folder over `base` with both factors drawn at random."""
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(**({"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | settings))
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    adapted.save_pretrained(folder)
    return folder


def deltas(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """ΔW of every module that an adapter changes, in float64."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).double()
    return {
        name: module.get_delta_weight("default")
        for name, module in model.base_model.model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def logits(folder: Path | PreTrainedModel) -> torch.Tensor:
    model = folder if isinstance(folder, torch.nn.Module) else AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model(input_ids=IDS).logits


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()


def run(monkeypatch, capfd, *words: str) -> tuple[int, str, str]:
    """`align merge` in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["align", "merge", *map(str, words)])
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    return code, *capfd.readouterr()
