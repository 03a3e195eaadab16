"""A Trainer's rows, dealt out to data-parallel groups rather than processes."""

from __future__ import annotations

from typing import Any

from accelerate.data_loader import BatchSamplerShard
from transformers import Trainer, TrainingArguments

from align.core.errors import UserError
from align.data.orders import Order
from align.models.structure import find_causal_lm
from align.models.text_part import text_config
from align.training.even_groups import Arrangement
from align.training.redrawn import EpochIndices, RedrawnRows
from align.training.row_costs import costs_of, tokens_of
from align.training.sampling import EpochSampler, MarkedRows


def check_strategy(arguments: TrainingArguments) -> None:
    """Refuses the library's own way to order rows, which this trainer would never read.

    Raises:
        UserError: names the argument and what to give in its place.
    """
    if arguments.train_sampling_strategy != "random":
        raise UserError(
            f"args.train_sampling_strategy={arguments.train_sampling_strategy} has no effect here: leave it out, and "
            "give the trainer an order, order=align.data.orders.Buckets() or Shuffled(balance='work')."
        )


class DealtRows(Trainer):
    """A Trainer whose processes of one group, `degree` of them, read the same rows; see sampling.py."""

    degree: int
    order: Order | None
    attention: str

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler | EpochIndices:
        """Every row once an epoch, in an order that follows from seed and epoch."""
        dataset = train_dataset or self.train_dataset
        sampler = self._sampler(
            dataset, self._train_batch_size, seed=self.args.seed, arrangement=self._arrangement(dataset)
        )
        return EpochIndices(sampler) if isinstance(self.train_dataset, RedrawnRows) else sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> EpochSampler:
        """Every row once, in file order."""
        return self._sampler(eval_dataset, self.args.eval_batch_size, seed=None)

    def _sampler(
        self, dataset: Any, batch_size: int, *, seed: int | None, arrangement: Arrangement | None = None
    ) -> EpochSampler:
        # Full batches for every group: with several processes accelerate would fill the last one with rows of the
        # epoch's beginning, also where they all form one group. Nor may dropping the last one leave rows unmeasured.
        alone = self.args.world_size == 1 and not (seed is None and self.args.dataloader_drop_last)
        multiple = 1 if alone else self.args.world_size // self.degree * batch_size
        return EpochSampler(len(dataset), multiple=multiple, seed=seed, arrangement=arrangement)

    def _arrangement(self, dataset: Any) -> Arrangement | None:
        """The order of the training rows, which `MarkedRows` holds; None shuffles them."""
        if self.order is None:
            return None
        self.order.check()
        rows = dataset.rows if isinstance(dataset, MarkedRows) else dataset
        rows = rows.rows if isinstance(rows, RedrawnRows) else rows
        tokens = tokens_of(rows)
        policy: Any = self.model
        hidden = text_config(find_causal_lm(policy).config).hidden_size
        return Arrangement(
            self.order,
            tokens,
            costs_of(rows, self.order.balance, attention=self.attention, hidden=hidden),
            batch=self._train_batch_size,
            groups=self.args.world_size // self.degree,
            accumulation=self.args.gradient_accumulation_steps,
        )

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's loader over marked rows, dealt out to data-parallel groups rather than processes."""
        marked = MarkedRows(dataset)
        loader = super()._get_dataloader(marked, *args, **kwargs)
        shard = loader.batch_sampler
        if isinstance(shard, BatchSamplerShard):
            shard.num_processes = self.args.world_size // self.degree
            shard.process_index = self.args.process_index // self.degree
            marked.sampler = shard.batch_sampler.sampler
        return loader
