"""PEFT's door for tuners of one's own keeps nothing of them on disk: why no bottleneck adapters are offered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from align.longseq.small_model import draw_adapter
from tests.tiny import tiny_model

IDS = torch.arange(8, 40)[None]


class Parallel(LoraLinear):
    """LLM-Adapters' parallel bottleneck (arXiv 2304.01933): W x + U tanh(D x), where LoRA is W x + U D x."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        inner = torch.tanh(self.lora_A["default"](x))
        return self.base_layer(x) + self.scaling["default"] * self.lora_B["default"](inner)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_a_folder_of_a_custom_module_loads_as_lora_without_a_word(tmp_path: Path, recwarn) -> None:
    """Measured with PEFT 0.21.2. Where this fails, PEFT keeps what it was told: bottlenecks can be offered then."""
    config = LoraConfig(r=4, target_modules=["down_proj"], task_type="CAUSAL_LM")
    config._register_custom_module({nn.Linear: Parallel})
    policy = get_peft_model(tiny_model(initializer_range=0.1), config)
    draw_adapter(policy)
    assert any(isinstance(module, Parallel) for module in policy.modules())
    policy.save_pretrained(tmp_path)
    recwarn.clear()
    again = PeftModel.from_pretrained(tiny_model(initializer_range=0.1), tmp_path)
    said = [str(each.message) for each in recwarn if "custom" in str(each.message)]
    assert not said, peft.__version__
    assert not any(isinstance(module, Parallel) for module in again.modules()), peft.__version__
    off = (logits(again) - logits(policy)).norm() / logits(policy).norm()
    assert off > 0.05  # 0.084
