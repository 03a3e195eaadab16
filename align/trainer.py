"""`PreferenceTrainer`: transformers' Trainer with one `compute_loss`, for every method."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, rotate_checkpoints

from align import checkpoints
from align.data.distribution import EpochSampler, MarkedCollator, MarkedRows
from align.longseq.forward import DEFAULT_CHUNK, pair_logps
from align.longseq.parallel import SequenceParallel
from align.longseq.shared_prefix import SharedPrefixBatch
from align.memory import peak_memory
from align.methods import Method
from align.metrics import METRICS, MeanMeter, means, prompt_metrics
from align.reference import Reference, sum_turns
from align.wrappers import WrapperCheck
from losses.types import PairLogps


class PreferenceTrainer(Trainer):
    """Trains on `{"batch": SharedPrefixBatch, …}` micro-batches with any `Method`.

    The loss of a step is the mean over the prompts of the global step, however they are spread over rows,
    micro-batches, accumulation and processes. Metrics carry TRL's names.
    """

    # compute_loss divides by the prompts of the whole step, so nothing is left to scale.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        method: Method,
        reference: Reference | None = None,
        parallel: SequenceParallel | None = None,
        logits_chunk: int = DEFAULT_CHUNK,
        **kwargs: Any,
    ) -> None:
        """As `Trainer`, and:

        Args:
            model: the policy, loaded with attention `align_sdpa`.
            args: the Trainer's arguments.
            method: the loss and what it needs.
            reference: gives reference log-probs; None for methods without one.
            parallel: this process's place in its sequence-parallel group; None without.
            logits_chunk: tokens whose vocabulary logits exist at once.
            kwargs: the rest of Trainer's own.
        """
        self.method = method
        self.reference = reference
        self.parallel = parallel
        self.degree = 1 if parallel is None else parallel.degree
        self.logits_chunk = logits_chunk
        self._meter = MeanMeter()
        self._evaluation_only = False
        self._new_tokens = 0
        self._reference_seen = (0, 0)
        self._logged_at = time.perf_counter()
        # Old checkpoints go only once the new one is sealed, so the count is kept from the base class.
        self._checkpoint_limit, args.save_total_limit = args.save_total_limit, None
        super().__init__(model=model, args=args, **kwargs)
        self.data_collator = MarkedCollator(self.data_collator)
        self.add_callback(WrapperCheck(self))
        self._parameters = sum(parameter.numel() for parameter in model.parameters())

    # ---- loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Sum of the prompts' losses over the number of prompts in the global step.

        Args:
            model: the policy as the Trainer wrapped it.
            inputs: `batch`, `real` `[B]` (False for placeholders, which count nowhere), and `short`, `owner`
                where the method needs the short context.
            return_outputs: also return `[B, len(METRICS)]` metrics.
            num_items_in_batch: prompts in the global step; None counts this batch alone.
        """
        losses, metrics = self.prompt_losses(model, inputs)
        real = inputs["real"]
        prompts = real.sum() if num_items_in_batch is None else num_items_in_batch
        loss = torch.where(real, losses, 0.0).sum() / prompts
        self._meter.add(metrics[real])
        self._new_tokens += sum(compress(inputs["batch"].prompt_tokens, real.tolist()))
        # A wrapper averages gradients over processes; the divisor above already counts every group's prompts.
        loss = loss * (self.args.world_size // self.degree)
        return (loss, metrics) if return_outputs else loss

    def prompt_losses(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """`[B]` losses with their graph, and `[B, len(METRICS)]` metrics."""
        batch: SharedPrefixBatch = inputs["batch"]
        needs = self.method.needs
        forward = partial(pair_logps, model, parallel=self.parallel, chunk_size=self.logits_chunk)
        policy = forward(batch, nll_scope=needs.nll_scope)
        if needs.policy_short:
            turns = forward(inputs["short"])
            policy = replace(policy, short=sum_turns(turns, inputs["owner"], len(batch)))
        output = self.method.loss(policy, self.reference_logps(model, inputs))
        return output.loss, prompt_metrics(policy, output)

    def reference_logps(self, model: nn.Module, inputs: dict[str, Any]) -> PairLogps | None:
        """Reference log-probs of what the method needs: the rows, their short contexts (turns summed), or both."""
        needs = self.method.needs
        if needs.reference == "none" or self.reference is None:
            return None
        short = None
        if needs.reference == "short" or needs.policy_short:
            turns = self.reference(model, inputs["short"])
            short = sum_turns(turns, inputs["owner"], len(inputs["batch"]))
        if needs.reference == "short":
            return short
        return replace(self.reference(model, inputs["batch"]), short=short)

    def read_reference(self, dataset: Any) -> Iterator[int]:
        """Has the reference read this process's share of `dataset`; yields each batch's number of prompts."""
        model = self._prepared_model()
        for inputs in self.get_test_dataloader(dataset):
            inputs = self._prepare_inputs(inputs)
            self.reference_logps(model, inputs)
            yield int(inputs["real"].sum())

    # ---- rows

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        """Every row once an epoch, in an order that follows from seed and epoch."""
        return self._sampler(train_dataset or self.train_dataset, self._train_batch_size, seed=self.args.seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> EpochSampler:
        """Every row once, in file order."""
        return self._sampler(eval_dataset, self.args.eval_batch_size, seed=None)

    def _sampler(self, dataset: Any, batch_size: int, *, seed: int | None) -> EpochSampler:
        # Full batches for every group: with several processes accelerate would fill the last one with rows of
        # the epoch's beginning, also where they all form one group.
        groups = self.args.world_size // self.degree
        multiple = 1 if self.args.world_size == 1 else groups * batch_size
        return EpochSampler(len(dataset), multiple=multiple, seed=seed)

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's loader over marked rows, dealt out to data-parallel groups rather than processes."""
        loader = super()._get_dataloader(MarkedRows(dataset), *args, **kwargs)
        shard = loader.batch_sampler
        if isinstance(shard, BatchSamplerShard):
            shard.num_processes = self.args.world_size // self.degree
            shard.process_index = self.args.process_index // self.degree
        return loader

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Prompts in the global step, over accumulation and groups."""
        prompts = sum(int(inputs["real"].sum()) for inputs in batch_samples)
        return torch.tensor(self.sum_over_groups([prompts])[0], device=device)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """6 · parameters · tokens, the usual estimate of a training step without attention."""
        return 6 * self._parameters * inputs["batch"].num_tokens

    # ---- evaluation

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Means of `METRICS` over the held-out prompts, each counted once."""
        model = self._prepared_model()
        model.eval()
        self.callback_handler.eval_dataloader = dataloader
        rows = []
        for inputs in dataloader:
            with torch.no_grad(), self.compute_loss_context_manager():
                inputs = self._prepare_inputs(inputs)
                _, metrics = self.prompt_losses(model, inputs)
            rows.append(self._gather_rows(metrics, inputs["real"]))
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        table = torch.cat(rows) if rows else torch.zeros(0, len(METRICS))
        meter = MeanMeter()
        meter.add(table)
        sums = meter.pop()
        named = {} if sums is None else means(sums)
        return EvalLoopOutput(
            predictions=table.cpu().numpy(),
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in named.items()},
            num_samples=len(table),
        )

    def _gather_rows(self, metrics: Tensor, real: Tensor) -> Tensor:
        """The real prompts' `[n, len(METRICS)]` of all groups; the ranks of a group hold the same."""
        counted = real if self.args.process_index % self.degree == 0 else torch.zeros_like(real)
        if self.args.world_size > 1:
            metrics, counted = self.accelerator.gather((metrics, counted))
        return metrics[counted]

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

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`."""
        if self._evaluation_only:
            raise RuntimeError(
                "a sharded policy that was evaluated first cannot train: use eval_on_start=True"
            )
        return super().train(*args, **kwargs)

    # ---- logs and checkpoints

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the training metrics since the last log to a training log."""
        if "loss" in logs:
            logs.update(self._training_metrics())
        super().log({**logs, **self._reference_costs()}, start_time)

    def _training_metrics(self) -> dict[str, float]:
        now = time.perf_counter()
        elapsed, self._logged_at = now - self._logged_at, now
        tokens = self.sum_over_groups([self._new_tokens])[0]
        self._new_tokens = 0
        sums = self._meter.pop()
        if self.args.world_size > 1:
            sums = None if sums is None else self.accelerator.reduce(sums, reduction="sum")
        named = {} if sums is None else means(sums)
        counted = (entry["num_tokens"] for entry in reversed(self.state.log_history) if "num_tokens" in entry)
        named.pop("loss", None)  # the Trainer's own loss stays under that name
        return {
            **named,
            # The history survives a checkpoint, so a resumed run goes on counting.
            "num_tokens": tokens + next(counted, 0.0),
            "tokens_per_second": tokens / max(elapsed, 1e-9),
            "memory/peak_gb": peak_memory() / 1e9,
        }

    def _reference_costs(self) -> dict[str, float]:
        """What the reference has read and what came from its cache, evaluation included, since the run began."""
        # Before training the state is one that training will replace: what it would hold is counted later.
        if self.reference is None or self.state.max_steps <= 0:
            return {}
        usage = self.reference.usage
        counts = [usage.tokens - self._reference_seen[0], usage.cached - self._reference_seen[1]]
        self._reference_seen = (usage.tokens, usage.cached)
        names = ("reference/tokens", "reference/cached")
        last = next((entry for entry in reversed(self.state.log_history) if names[0] in entry), {})
        return {
            name: last.get(name, 0.0) + count
            for name, count in zip(names, self.sum_over_groups(counts), strict=True)
        }

    def sum_over_groups(self, counts: Sequence[int]) -> list[float]:
        """Each count summed over the data-parallel groups; the ranks of a group hold the same."""
        sums = torch.tensor(counts, dtype=torch.float64, device=self.args.device)
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums, reduction="sum") / self.degree
        return sums.tolist()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Saves, seals, and only then lets go of older checkpoints."""
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial))
            checkpoints.seal(folder / f"{checkpoints.PREFIX}{self.state.global_step}")
            rotate_checkpoints(
                output_dir=str(folder),
                save_total_limit=self._checkpoint_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
