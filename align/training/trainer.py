"""`PreferenceTrainer`: transformers' Trainer with one `compute_loss`, for every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from align.data.orders import Order
from align.distributed.host import sum_numbers
from align.distributed.wrappers import WrapperCheck, check_hooks
from align.longseq.forward import pair_logps, tokens_read
from align.longseq.parallel import SequenceParallel
from align.longseq.settings import MemorySettings
from align.patterns.layers import evaluating_patterns
from align.reference.sources import Reference, sum_turns
from align.runs.console import quiet_call
from align.runs.saving import SealedCheckpoints
from align.training.argument_words import keys_as_arguments
from align.training.balance import StepBalance
from align.training.dealing import DealtRows, check_strategy
from align.training.divergence import FiniteLosses, check_gradient_norm
from align.training.held_out import measure
from align.training.log import TrainingLog
from align.training.loss_states import LossStates
from align.training.methods import Method
from align.training.metrics import prompt_metrics
from align.training.preparation import prepare
from align.training.sampling import DigestingCollator, MarkedCollator
from align.training.scoring import policy_logps
from align.training.weighting import marks_on, prompt_weights, real_tokens
from align.training.whole_step import Scored, read_before, step_losses
from losses.types import PairLogps

DEFAULT_MEMORY = MemorySettings()


class PreferenceTrainer(DealtRows, SealedCheckpoints):
    """Trains on `{"batch": SharedPrefixBatch, …}` micro-batches with any `Method`.

    The loss of a step is the mean over the prompts of the global step (over tokens, where the method's
    `needs.weighting` says so), however they are spread over rows, micro-batches, accumulation and processes.
    Metrics carry TRL's names. It is a `Trainer`, whose arguments it takes too.

    Args:
        model: a causal language model, inside PEFT or not, or the path of one; gets the shared prefix's attention.
        args: the Trainer's arguments.
        method: the loss and what it needs: `align.method("dpo")`, or a name alone.
        train_dataset, eval_dataset: rows in any layout of `data.path` (list or `datasets.Dataset`), or tokenised.
        processing_class: the tokenizer; None is that of a model given by its path.
        data_collator: None packs each micro-batch into one row; with another, rows are taken as they are.
        reference: gives reference log-probs. None: the starting model, where the method needs one.
        parallel: this process's place in its sequence-parallel group; None without.
        logits_chunk: tokens whose vocabulary logits exist at once; None is that of `memory`.
        memory: what is kept for the backward pass of a model whose attention is not the shared prefix's yet.
        attention: as `model.attention`: `auto`, the shared prefix's; `library`, a row for each answer.
        order: of the training rows, of `align.data.orders`; None shuffles them.
        max_length: tokens to which contexts of rows that are not tokenised are cut; None is the model's window.
        balance: coefficient of a mixture of experts' load-balancing loss.
        kwargs: the rest of Trainer's own.

    Raises:
        UserError: a model or a row that cannot be used.
    """

    # compute_loss divides by the weights of the whole step, so nothing is left to scale.
    loss_is_scaled_for_ga = True

    @quiet_call(None)
    def __init__(
        self,
        model: nn.Module | str,
        args: TrainingArguments,
        *,
        method: Method | str,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        data_collator: Any = None,
        reference: Reference | None = None,
        parallel: SequenceParallel | None = None,
        logits_chunk: int | None = None,
        memory: MemorySettings = DEFAULT_MEMORY,
        attention: str = "auto",
        order: Order | None = None,
        max_length: int | None = None,
        balance: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """See the class."""
        with keys_as_arguments():
            parts = prepare(
                model,
                args,
                method,
                rows=(train_dataset, eval_dataset),
                tokenizer=processing_class,
                collator=data_collator,
                reference=reference,
                parallel=parallel,
                memory=memory,
                attention=attention,
                logits_chunk=logits_chunk,
                max_length=max_length,
            )
        check_hooks(parts.model, args)
        self.method, self.reference, self.parallel = parts.method, parts.reference, parallel
        self.degree = parallel.degree if parallel else 1
        self.order, self.attention, self.logits_chunk = order, attention, logits_chunk or memory.logits_chunk
        self._balance = StepBalance(parts.model, balance, needs=parts.method.needs, degree=self.degree)
        self._log, self._finite = TrainingLog(self.sum_over_groups, self._sum_over_processes), FiniteLosses()
        self._evaluation_only = False
        self.step = step_losses(parts.method, self.degree, args.process_index, self._gathered)
        self._take_over(args)
        super().__init__(
            model=parts.model,
            args=args,
            train_dataset=parts.train,
            eval_dataset=parts.held_out,
            processing_class=parts.tokenizer,
            data_collator=parts.collator,
            **kwargs,
        )
        collator = self.data_collator if parallel is None else DigestingCollator(self.data_collator)
        self.data_collator = MarkedCollator(collator)
        self.add_callback(WrapperCheck(self))
        self.kept = LossStates.of(parts.method)
        self._parameters = sum(parameter.numel() for parameter in parts.model.parameters())

    def _take_over(self, args: TrainingArguments) -> None:
        """What the base class is not to do itself."""
        check_strategy(args)
        args.logging_nan_inf_filter = False  # would show the mean of earlier losses in the place of a NaN
        # Old checkpoints go only once the new one is sealed, so the count is kept from the base class.
        self.checkpoint_limit, args.save_total_limit = args.save_total_limit, None

    # ---- loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Weighted sum of the prompts' losses over the weights of the global step (1 each, or their tokens).

        Args:
            model: the policy as the Trainer wrapped it.
            inputs: `batch`, `real` `[B]` (False for placeholders, which count nowhere), and `short`, `owner`
                where the method needs the short context. `real` and `owner` are arrays or tensors of the CPU: on a
                device they would have to be waited for.
            return_outputs: also return `[B, len(METRICS)]` metrics.
            num_items_in_batch: sum of the weights in the global step; None counts this batch alone.
        """
        losses, metrics = self.prompt_losses(model, inputs)
        own = prompt_weights(inputs, self.method.needs.weighting)
        real, weights = marks_on(losses.device, inputs, own)
        self._finite.watch(losses, inputs)
        if self.accelerator.sync_gradients:  # the step's last micro-batch
            self._finite.check(step=self.state.global_step + 1)
        total = int(own.sum()) if num_items_in_batch is None else num_items_in_batch
        loss = (torch.where(real, losses, 0.0) * weights).sum() / total
        self._log.add(metrics, weights, real, real_tokens(inputs))
        # A wrapper averages gradients over processes; the divisor above already counts every group's prompts.
        loss = self._balance.add(loss * (self.args.world_size // self.degree), num_items_in_batch)
        return (loss, metrics) if return_outputs else loss

    def prompt_losses(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """`[B]` losses with their graph, and `[B, len(METRICS)]` metrics."""
        scored = self.scored(model, inputs)
        output = self.step.output(scored)
        return output.loss, prompt_metrics(scored.policy, output)

    def scored(self, model: nn.Module, inputs: dict[str, Any]) -> Scored:
        """A micro-batch's log-probs, the policy's with their graph."""
        forward = partial(pair_logps, model, parallel=self.parallel, chunk_size=self.logits_chunk)
        routing = self._balance.start(inputs)
        policy = policy_logps(forward, inputs, self.method.needs, routing=routing)
        known = self.step.reference() if torch.is_grad_enabled() else None
        reference = self.reference_logps(model, inputs) if known is None else known
        return Scored(policy, reference, inputs["real"].tolist())

    def reference_logps(self, model: nn.Module, inputs: dict[str, Any]) -> PairLogps | None:
        """Reference log-probs of what the method needs: the rows, their short contexts (turns summed), or both."""
        needs = self.method.needs
        if needs.reference == "none" or self.reference is None:
            return None
        short, inputs = None, {**inputs, **inputs.get("bare", {})}  # without the policy's soft prompt
        if needs.reference == "short" or needs.policy_short:
            short = sum_turns(self.reference(model, inputs["short"]), inputs["owner"], len(inputs["batch"]))
        if needs.reference == "short":
            return short
        return replace(self.reference(model, inputs["batch"]), short=short)

    # ---- steps

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        """Sum of the prompts' weights in the global step, over accumulation and groups."""
        self.step.begin(batch_samples, partial(read_before, self))
        weights = [prompt_weights(inputs, self.method.needs.weighting).sum() for inputs in batch_samples]
        return int(self.sum_over_groups([int(sum(weights))])[0])

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The Trainer's, held to be finite."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        check_gradient_norm(norm, step=self.state.global_step + 1, scaled=self.args.fp16)
        return norm

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """6 · parameters · tokens, the usual estimate of a training step without attention."""
        return 6 * self._parameters * tokens_read(self.model_wrapped, inputs["batch"])

    # ---- evaluation

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Means of `METRICS` over the held-out prompts, each counted once; the loss weighted as in training."""
        model = self._prepared_model()
        model.eval()
        self.callback_handler.eval_dataloader = dataloader
        with evaluating_patterns():
            return measure(self, model, dataloader, prefix=metric_key_prefix)

    def _prepared_model(self) -> nn.Module:
        """The policy as training wrapped it; before any training, ready for evaluation.

        A policy that shards its weights has to be prepared even to be read, and accelerate would then not
        wrap it for training any more: `train` refuses that order.
        """
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if self.model_wrapped is self.model and sharded:
            self._evaluation_only = True
            self.model_wrapped = self.accelerator.prepare_model(self.model, evaluation_mode=True)
        return self.model_wrapped

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`."""
        if self._evaluation_only:
            raise RuntimeError(
                "a sharded policy that was evaluated first cannot train: use eval_on_start=True"
            )
        self.load_kept(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    # ---- logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the training metrics since the last log to a training log."""
        if "loss" in logs:
            logs.update(self._log.pop(self.state.log_history) | self._balance.pop())
        # Before training the state is one that training will replace: what it would hold is counted later.
        if self.reference is not None and self.state.max_steps > 0:
            logs = {**logs, **self._log.reference_costs(self.reference, self.state.log_history)}
        super().log(logs, start_time)

    def _gathered(self, table: Tensor) -> Tensor:
        return self.accelerator.gather(table) if self.args.world_size > 1 else table

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, reduction="sum") if self.args.world_size > 1 else values

    def sum_over_groups(self, counts: Sequence[int]) -> list[float]:
        """Each count summed over the data-parallel groups; the ranks of a group hold the same."""
        sums = sum_numbers(counts) if self.args.world_size > 1 else counts
        return [total / self.degree for total in sums]
