"""The implementations of one training step that are compared: forward and backward on the same row.

Each makes a function without arguments that is one step (its gradients are let go of behind it), from the same random
weights: the shared prefix with this toolkit's trainer, without and with fused kernels; padded rows, one an answer,
through the library's forward; TRL's DPOTrainer as it comes, and with what its documentation calls fastest, as far as
that is installed.
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainingArguments

from align.adapters.adapter import add_adapter
from align.adapters.lora import Lora
from align.data.examples import TokenizedExample
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.flash_fit import check_flash
from align.longseq.settings import ATTENTIONS, CUDNN
from align.models.kernels import fuse
from align.reference.sources import AdapterOff, Frozen, Reference
from align.training.methods import Method, named_method
from align.training.trainer import PreferenceTrainer
from benchmarks.gpu.shapes import SHAPES, build, example
from losses import PairLogps

RANK = 16  # of LoRA, on q, k, v and o
NOISE = 0.02  # see `disturb`
Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Task:
    """What is trained on what.

    Attributes:
        shape: key of SHAPES.
        parameters: `lora` or `full`.
        method: `dpo` or `logo`.
        prompt: tokens.
        answers: tokens of each, the chosen one first.
        device: torch's.
        layers: of the model; None is the shape's.
        levers: what `apply_checkpointing` takes, of the shared prefix.
        dtype: of weights and products.
        kernels: as `model.kernels`.
    """

    shape: str
    parameters: str
    method: str
    prompt: int
    answers: tuple[int, ...]
    device: torch.device
    layers: int | None = None
    levers: dict[str, Any] = field(default_factory=lambda: {"mode": "keep_attention"})
    dtype: torch.dtype = torch.bfloat16
    kernels: str = "none"
    attention: str = ATTENTION

    def model(self, attention: str) -> Any:
        """The starting model."""
        config = SHAPES[self.shape].config(self.layers)
        made = build(config, dtype=self.dtype, attention=attention, device=self.device)
        if self.kernels == "liger":
            fuse(made)
        return made

    def policy(self, attention: str) -> Any:
        """The starting model, with an adapter where that trains, a little disturbed."""
        model = self.model(attention)
        policy: Any = add_adapter(model, self.lora()) if self.parameters == "lora" else model
        disturb(policy)
        return policy

    def lora(self) -> Lora:
        """The adapter."""
        return Lora(r=RANK, alpha=RANK)

    def example(self) -> TokenizedExample:
        """The row."""
        return example(self.prompt, self.answers, vocabulary=SHAPES[self.shape].vocabulary)

    def loss(self) -> Method:
        """As `method=` configures it."""
        return named_method(self.method)


def disturb(policy: nn.Module) -> None:
    """Moves what trains away from the starting model, for all contestants alike: equal losses then prove something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if weight.requires_grad and "lora_" in name:  # whatever an adapter was initialised with
                weight.normal_(std=NOISE)
            elif weight.requires_grad:
                weight.add_(torch.randn_like(weight) * weight.std() if weight.ndim > 1 else 0, alpha=NOISE)


def arguments(task: Task, kind: Callable[..., Any] = TrainingArguments, **settings: Any) -> Any:
    """Arguments of a trainer whose folder stays empty, since nothing is saved."""
    return kind(
        output_dir=tempfile.mkdtemp(prefix="gpu-"),
        per_device_train_batch_size=1,
        report_to=[],
        use_cpu=task.device.type == "cpu",
        disable_tqdm=True,
        save_strategy="no",
        remove_unused_columns=False,
        **settings,
    )


def shared_trainer(task: Task, **settings: Any) -> PreferenceTrainer:
    """This toolkit's trainer; `settings` are arguments' and `train_dataset`."""
    policy = task.policy(task.attention)
    levers = dict(task.levers)
    apply_checkpointing(policy, levers.pop("mode"), **levers)
    method = task.loss()
    dataset = settings.pop("train_dataset", None)
    return PreferenceTrainer(
        policy,
        arguments(task, **settings),
        method=method,
        reference=_reference(task, policy, task.attention) if method.needs.reference != "none" else None,
        data_collator=lambda examples: {"batch": pack(examples)},
        train_dataset=dataset,
    )


def loaded(trainer: PreferenceTrainer) -> dict[str, Any]:
    """The first micro-batch as the trainer's own loader brings it: on the device."""
    inputs: dict[str, Any] = next(iter(trainer.get_train_dataloader()))
    return inputs


def _reference(task: Task, policy: Any, attention: str) -> Reference:
    if task.parameters == "lora":
        return AdapterOff(policy, pair_logps)
    return Frozen(lambda: task.model(attention).eval().requires_grad_(False), pair_logps)


def shared(task: Task) -> Step:
    """This toolkit's trainer: one shared prompt."""
    trainer = shared_trainer(task, train_dataset=[task.example()])
    policy: Any = trainer.model
    inputs = loaded(trainer)

    def step() -> Tensor:
        return _gone(policy, trainer.training_step(policy, dict(inputs)))

    return step


def shared_liger(task: Task) -> Step:
    """The same with fused norms, MLPs and rotary embeddings."""
    return shared(replace(task, kernels="liger"))


def shared_cudnn(task: Task) -> Step:
    """The same with cuDNN's attention for the prompt, which torch's own function takes for the rivals on an H100."""
    if task.device.type == "cuda":
        check_flash(CUDNN, dtype=task.dtype)
    return shared(replace(task, attention=ATTENTIONS[CUDNN]))


def shared_cudnn_liger(task: Task) -> Step:
    """With both."""
    return shared_cudnn(replace(task, kernels="liger"))


def padded(task: Task) -> Step:
    """Rows padded to one length through the library's forward, sdpa, checkpointing; logits of the answers alone."""
    policy, method = task.policy("sdpa"), task.loss()
    policy.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    needed = method.needs.reference != "none"
    frozen = task.model("sdpa").eval() if needed and task.parameters == "full" else None
    row = task.example()

    def step() -> Tensor:
        reference = None
        if needed:
            with torch.no_grad(), _reference_of(policy, frozen) as model:
                reference = _padded_logps(model, row)
        loss = method.loss(_padded_logps(policy, row), reference).loss.mean()
        loss.backward()
        return _gone(policy, loss.detach())

    return step


@contextmanager
def _reference_of(policy: Any, frozen: nn.Module | None) -> Iterator[Any]:
    """Within it the model that is the reference: the frozen one, or the policy without its adapter."""
    if frozen is not None:
        yield frozen
        return
    with policy.disable_adapter():
        yield policy


def _padded_logps(model: Any, row: TokenizedExample) -> PairLogps:
    device, prompt = next(model.parameters()).device, len(row.prompt_ids)
    sequences = [torch.as_tensor(np.concatenate([row.prompt_ids, one.input_ids])) for one in row.answers]
    ids = pad_sequence(sequences, batch_first=True).to(device)
    mask = pad_sequence([torch.ones_like(one) for one in sequences], batch_first=True)
    given = {} if bool(mask.all()) else {"attention_mask": mask.to(device)}
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = base.model(input_ids=ids, use_cache=False, **given).last_hidden_state
    sums = []
    for place, answer in enumerate(row.answers):
        stop = prompt + len(answer.input_ids)
        logps = base.lm_head(hidden[place, prompt - 1 : stop - 1]).float().log_softmax(-1)
        sums.append(logps.gather(-1, ids[place, prompt:stop, None]).sum())
    found = torch.stack(sums)[None]
    lengths = torch.tensor([[len(answer.input_ids) for answer in row.answers]], device=device)
    return PairLogps(found[:, 0], found[:, 1:], lengths[:, 0], lengths[:, 1:])


def trl(task: Task) -> Step:
    """TRL's DPOTrainer with its defaults (sdpa, checkpointing, fused head); only its length limit is lifted."""
    return _trl(task, "sdpa", {})


def trl_fastest(task: Task) -> Step:
    """TRL's with Liger's kernels for layers, and flash-attn where it is installed; TRL 1.16 ignores `padding_free`."""
    if importlib.util.find_spec("liger_kernel") is None:
        raise RuntimeError("liger-kernel is not installed")
    flash = importlib.util.find_spec("flash_attn") is not None
    return _trl(task, "flash_attention_2" if flash else "sdpa", {"use_liger_kernel": True})


def _trl(task: Task, attention: str, settings: dict[str, Any]) -> Step:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers.integrations.liger import apply_liger_kernel
    from trl import DPOConfig, DPOTrainer

    from tests.tiny import tiny_tokenizer

    lora, model = task.lora(), task.model(attention)
    adapter = LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=list(lora.target_modules))
    trainer = DPOTrainer(
        model=model,
        ref_model=None if task.parameters == "lora" else copy.deepcopy(model),
        args=arguments(task, DPOConfig, max_length=None, bf16=task.dtype == torch.bfloat16, **settings),
        train_dataset=Dataset.from_list([{"prompt": "w9", "chosen": "w10", "rejected": "w11"}]),
        processing_class=tiny_tokenizer(),
        peft_config=adapter if task.parameters == "lora" else None,
    )
    policy: Any = trainer.model
    disturb(policy)
    if trainer.args.use_liger_kernel:  # what `Trainer.train` does before its first step, and the next two too
        apply_liger_kernel(policy, trainer.args.liger_kernel_config)
    policy.activation_checkpointing_enable(
        activation_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs
    )
    trainer.current_gradient_accumulation_steps = 1
    row = task.example()
    chosen, rejected = (answer.input_ids.tolist() for answer in row.answers)
    batch = {"prompt_ids": row.prompt_ids.tolist(), "chosen_ids": chosen, "rejected_ids": rejected}
    inputs = trainer.data_collator([batch])

    def step() -> Tensor:
        return _gone(policy, trainer.training_step(policy, dict(inputs)))

    return step


def _gone(policy: nn.Module, loss: Tensor) -> Tensor:
    policy.zero_grad(set_to_none=True)
    return loss


CONTESTANTS: dict[str, Callable[[Task], Step]] = {
    "shared": shared,
    "shared_liger": shared_liger,
    "shared_cudnn": shared_cudnn,
    "shared_cudnn_liger": shared_cudnn_liger,
    "padded": padded,
    "trl": trl,
    "trl_fastest": trl_fastest,
}
