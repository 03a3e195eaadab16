"""The one door into the long-sequence forward: `pair_logps(model, batch) -> PairLogps`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.longseq.attention import is_ours
from align.longseq.balance import Routing
from align.longseq.calls import ModelCall, calls_of
from align.longseq.collectives import all_reduce_sum
from align.longseq.head_probe import check_last_hidden_state
from align.longseq.last_norm import scoring_tokens
from align.longseq.logps import Scores, target_logps, target_logps_and_collisions, token_logps
from align.longseq.masked import masked_totals
from align.longseq.own_rows import own_row_tokens, own_totals
from align.longseq.parallel import SequenceParallel, same_rows
from align.longseq.settings import DEFAULT_CHUNK
from align.longseq.shared_prefix import SharedPrefixBatch, empty_row
from align.longseq.states import called_for, prepare_states
from align.longseq.sums import named_sums, sums_of_row, table_of
from align.longseq.support import check_every_layer_called
from align.longseq.tail import TailWatch
from align.models.settings import LIBRARY, MASKED
from align.models.structure import find_causal_lm, reading_of
from align.models.text_part import text_decoder
from losses.types import PairLogps


def pair_logps(
    model: nn.Module,
    batch: SharedPrefixBatch,
    *,
    parallel: SequenceParallel | None = None,
    nll_scope: str = "none",
    chunk_size: int = DEFAULT_CHUNK,
    collision: bool = False,
    routing: Routing | None = None,
) -> PairLogps:
    """Summed log-probs of every answer in the batch, one shared prompt each.

    Equal to a padded row for each answer through the library's own attention: same sums, same gradients.

    Args:
        model: a causal language model, bare or inside PEFT, DDP, FSDP or DeepSpeed. Loaded with one of
            `attention.ATTENTIONS` it reads the packed rows; with an attention of the library's a row for each answer
            (own_rows.py), or packed rows by a mask (masked.py) where `set_reading` has said so, both slower. Its mode
            (`training`) only decides about dropout and checkpointing.
        batch: B prompts with at most A = 1 + M answers each, packed in rows.
        parallel: this process's place in the group that shares every row; None runs whole rows here. All
            ranks of the group get the same result, and gradients whose mean over the world is the true one.
        nll_scope: `none`; `chosen` gives the mean negative log-prob over the chosen answer's tokens;
            `sequence` over prompt and chosen branch (LongPO).
        chunk_size: tokens whose vocabulary logits exist at once.
        collision: also sum log Σ_v p_v² over each answer's tokens (`PairLogps.collision`).
        routing: takes in what the routers of a mixture of experts decide; its `loss` is there afterwards.

    Returns:
        PairLogps of `[B]` and `[B, M]`, in the order of the prompts.

    Raises:
        UserError: the ranks of the group came with different rows, or a layer of the model has attention of
            its own.
    """
    lm = find_causal_lm(model)
    read = _way(lm).totals
    totals = read(
        model,
        lm,
        batch,
        parallel=parallel,
        nll_scope=nll_scope,
        chunk_size=chunk_size,
        scores=target_logps_and_collisions if collision else target_logps,
        routing=routing,
    )
    table, context = table_of(totals, batch.rows[0].lengths.shape[1])
    sums = table[:, 0]
    lengths = torch.cat([row.lengths for row in batch.rows])
    return PairLogps(
        chosen=sums[:, 0],
        rejected=sums[:, 1:],
        chosen_length=lengths[:, 0],
        rejected_length=lengths[:, 1:],
        nll=_NLL[nll_scope](sums, lengths, context, batch),
        **named_sums(table, batch, collision=collision),
    )


def tokens_read(model: nn.Module, batch: SharedPrefixBatch) -> int:
    """Tokens that the model reads of a batch: packed rows, or each answer behind its prompt."""
    return _way(find_causal_lm(model)).tokens(batch)


@dataclass(frozen=True)
class _Way:
    """How a batch is read.

    Attributes:
        totals: `[B, K·A + 1]` sums over the answers' tokens and, last, over the context tokens that the NLL adds.
        tokens: that the model reads.
    """

    totals: Callable[..., Tensor]
    tokens: Callable[[SharedPrefixBatch], int]


def _way(lm: PreTrainedModel) -> _Way:
    """As the model's attention is ours or the library's, and then as `set_reading` has said."""
    return _SHARED if is_ours(lm) else _OF_LIBRARY[reading_of(lm)]


def _shared_totals(
    model: nn.Module,
    lm: PreTrainedModel,
    batch: SharedPrefixBatch,
    *,
    parallel: SequenceParallel | None,
    nll_scope: str,
    chunk_size: int,
    scores: Scores,
    routing: Routing | None,
) -> Tensor:
    """Packed rows through our attention, whole or sharded."""
    prepare_states(lm)
    calls = calls_of(
        model,
        batch.rows,
        empty=empty_row(batch),
        parallel=parallel,
        same=same_rows(batch, parallel, nll_scope=nll_scope),
        nll_scope=nll_scope,
        chunk_size=chunk_size,
    )
    keywords = [{}] * len(calls) if routing is None else routing.keywords(batch, parallel, len(calls))
    totals = torch.cat([_row_logps(model, lm, *each, scores) for each in zip(calls, keywords, strict=True)])
    if parallel is not None:
        totals = all_reduce_sum(totals, parallel.group)
    return totals if routing is None else routing.close(totals)


_SHARED = _Way(_shared_totals, attrgetter("num_tokens"))
_OF_LIBRARY = {
    LIBRARY: _Way(own_totals, own_row_tokens),
    MASKED: _Way(masked_totals, attrgetter("num_tokens")),
}


def _row_logps(
    model: nn.Module, lm: PreTrainedModel, call: ModelCall, keywords: Mapping[str, Any], scores: Scores
) -> Tensor:
    """`[b, K·A + 1]` sums over the answers' tokens and, last, over the context tokens that the NLL adds."""
    row = call.row

    def score(hidden: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        return token_logps(head, scored.of(hidden), call.target, slices=call.head_calls, scores=scores)

    with scoring_tokens(lm, call.predictor) as scored, _scoring(lm, score), called_for(call.layout):
        output = model(
            input_ids=row.input_ids,
            position_ids=row.position_ids,
            layout=call.layout,
            use_cache=False,
            # No position goes through the head here: `score` takes the logits' place, a slice at a time.
            logits_to_keep=torch.empty(0, dtype=torch.long, device=row.input_ids.device),
            **keywords,
        )
    check_every_layer_called(lm, call.layout.callers)
    return sums_of_row(row, output.logits)


@contextmanager
def _scoring(
    lm: PreTrainedModel, score: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]
) -> Iterator[None]:
    """Within the block the model returns `score(last hidden states, head)` as its `logits`.

    `head` is the output embedding with the steps that the model puts before and behind it (tail.py), which its own
    forward shows on no position at all. Two temporary forward hooks do it, so the head runs inside the wrapped
    module's own forward, where FSDP and ZeRO-3 hold its weights gathered, and the result leaves through the
    wrapper's output, where they attach their backward hooks. `prepend` puts ours before a wrapper's hook on the
    same module. The head computes in the precision of the forward, around which accelerate puts autocast, and behind
    which the second hook runs.
    """
    hidden: list[Tensor] = []
    precisions: list[AbstractContextManager[Any]] = []
    watch = TailWatch(lm)

    def after_decoder(module: nn.Module, args: Any, output: Any) -> None:
        check_last_hidden_state(lm, output)
        hidden.append(output.last_hidden_state)
        precisions.append(_same_autocast(output.last_hidden_state.device.type))
        watch.begin(output.last_hidden_state)

    def after_model(module: nn.Module, args: Any, output: Any) -> Any:
        head = watch.end(output.logits).of(lm.get_output_embeddings())
        with precisions.pop():
            # Adding nothing of the head's own output keeps its parameters in the graph when nothing is scored.
            output.logits = score(hidden.pop(), head) + output.logits[..., :0].sum()
        return output

    handles = [
        text_decoder(lm).register_forward_hook(after_decoder),
        lm.register_forward_hook(after_model, prepend=True),
    ]
    try:
        yield
    finally:
        watch.stop()
        for handle in handles:
            handle.remove()


def _same_autocast(device: str) -> AbstractContextManager[Any]:
    """Autocast as it is now, to be entered later."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(
        device, dtype=torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device)
    )


def _no_nll(sums: Tensor, lengths: Tensor, context: Tensor, batch: SharedPrefixBatch) -> None:
    return None


def _chosen_nll(sums: Tensor, lengths: Tensor, context: Tensor, batch: SharedPrefixBatch) -> Tensor:
    return -sums[:, 0] / lengths[:, 0]


def _sequence_nll(sums: Tensor, lengths: Tensor, context: Tensor, batch: SharedPrefixBatch) -> Tensor:
    context_length = torch.cat([row.context_length for row in batch.rows])
    return -(sums[:, 0] + context) / (lengths[:, 0] + context_length)


_NLL: dict[str, Callable[..., Tensor | None]] = {
    "none": _no_nll,
    "chosen": _chosen_nll,
    "sequence": _sequence_nll,
}
