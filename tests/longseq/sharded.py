"""One case of the gradient table: a sharded step in this process's group against one process's padded rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from align.data.examples import TokenizedExample, with_soft_prompt
from align.longseq import ATTENTION, SharedPrefixBatch, pack, pair_logps
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.parallel import SequenceParallel
from align.longseq.small_model import draw_adapter
from losses import logo_loss
from losses.types import PairLogps
from tests.longseq.plain import (
    gradients,
    make_example,
    plain_pair_logps,
    randomise_lora_b,
    relative_error,
)
from tests.tiny import VOCABULARY_SIZE, tiny_model

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


@dataclass(frozen=True)
class Case:
    """A model, rows and settings. `rows` is `(prompt, answers)` for each prompt, in tokens."""

    heads: tuple[int, int] = (4, 2)
    rows: Sequence[tuple[int, Sequence[int]]] = ((21, (7, 3, 5)), (9, (2, 8, 1)))
    lora: bool = False
    adapter: Any = None  # of the group `adapter`
    checkpointing: str = "none"
    mlp_chunk: int | None = None
    offload: str = "none"
    tokens_per_row: int | None = None
    jump: int = 0
    step: int = 1
    nll_scope: str = "none"
    model: dict[str, Any] = field(default_factory=dict)
    plain: str = "sdpa"  # the library's attention of padded rows
    dtype: torch.dtype = torch.float32

    def apply_memory(self, model: nn.Module) -> None:
        """The memory levers of the case."""
        apply_checkpointing(model, self.checkpointing, mlp_chunk=self.mlp_chunk, offload=self.offload)

    def examples(self) -> list[TokenizedExample]:
        """The same rows on every rank, behind the adapter's soft prompt where it has one."""
        rng = np.random.default_rng(0)
        soft = np.arange(self.adapter.soft_tokens if self.adapter is not None else 0) + VOCABULARY_SIZE
        return [
            with_soft_prompt(
                make_example(rng, prompt=prompt, answers=answers, jump=self.jump, step=self.step), soft
            )
            for prompt, answers in self.rows
        ]

    def batch(self, data_rank: int = 0, data_size: int = 1) -> SharedPrefixBatch:
        """The rows of one of `data_size` data-parallel groups."""
        return pack(self.examples()[data_rank::data_size], tokens_per_row=self.tokens_per_row)

    def build(self, attention: str) -> nn.Module:
        """The same weights whatever the attention; training mode."""
        heads, kv_heads = self.heads
        settings = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 8}
        settings |= {"hidden_size": 8 * heads, "intermediate_size": 48} | self.model
        kind = settings.pop("kind", "llama")
        model: Any = tiny_model(kind, **settings)
        model.set_attn_implementation(attention)
        if self.lora:
            torch.manual_seed(1)
            model = get_peft_model(model, LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM"))
            randomise_lora_b(model)
        if self.adapter is not None:
            torch.manual_seed(1)
            model = self.adapter.add(model)
            draw_adapter(model)
        return model.to(self.dtype).train()


def loss_of(logps: PairLogps) -> Tensor:
    """LOGO's mean over the prompts (its SFT part alone where nothing is rejected), and the NLL if there is one."""
    total = logo_loss(logps, beta=2.5, gamma=0.25, sft_weight=0.1).loss.mean()
    return total if logps.nll is None else total + logps.nll.mean()


def plain_logps(model: nn.Module, case: Case) -> PairLogps:
    """Padded rows, with the NLL that the case asks for."""
    logps = plain_pair_logps(model, case.examples())
    nll = {"none": None, "chosen": -logps.chosen / logps.chosen_length, "sequence": logps.nll}[case.nll_scope]
    return PairLogps(**{**vars(logps), "nll": nll})


def plain_step(case: Case) -> tuple[float, dict[str, Tensor], nn.Module]:
    """Loss and gradients of padded rows through the library's own attention, in this process alone."""
    model = case.build(case.plain)
    loss = loss_of(plain_logps(model, case))
    return loss.item(), gradients(model, loss), model


def sharded_step(case: Case, parallel: SequenceParallel | None) -> tuple[float, dict[str, Tensor]]:
    """Loss and the world's mean gradient, as any averaging wrapper makes it."""
    model = case.build(ATTENTION)
    case.apply_memory(model)
    logps = pair_logps(model, case.batch(), parallel=parallel, nll_scope=case.nll_scope, chunk_size=8)
    loss = loss_of(logps)
    return loss.item(), mean_over_world(gradients(model, loss))


def mean_over_world(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sum over all processes, divided by their number."""
    for value in values.values():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return values


def errors(
    loss: float, actual: dict[str, Tensor], expected_loss: float, expected: dict[str, Tensor]
) -> dict[str, float]:
    """Relative error of the loss and of every parameter's gradient."""
    assert actual.keys() == expected.keys()
    named = {name: relative_error(actual[name], expected[name]) for name in expected}
    return {"loss": abs(loss - expected_loss) / abs(expected_loss), **named}


def case_errors(case: Case, parallel: SequenceParallel | None) -> dict[str, float]:
    """As `errors`, computed by the world's first process; the others return nothing."""
    loss, actual = sharded_step(case, parallel)
    if dist.get_rank() != 0:
        return {}
    expected_loss, expected, _ = plain_step(case)
    return errors(loss, actual, expected_loss, expected)


def evaluation_error(case: Case, parallel: SequenceParallel | None) -> float:
    """Largest relative error of a log-prob in evaluation mode without gradients, on every rank."""
    batch = case.batch()
    with torch.no_grad():
        actual = pair_logps(case.build(ATTENTION).eval(), batch, parallel=parallel)
        expected = plain_logps(case.build(case.plain).eval(), case)
    return max(
        ((value - wanted).norm() / wanted.norm()).item()
        for value, wanted in ((actual.chosen, expected.chosen), (actual.rejected, expected.rejected))
    )
