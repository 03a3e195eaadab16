"""Sequence parallelism: n consecutive processes share every row, each with about 1/n of its tokens.

A world of N processes with degree n holds N/n groups: 8 processes at degree 4 are the groups 0 … 3 and 4 … 7.
The ranks of a group read the same rows, groups read different ones. Wrappers (DDP, FSDP, ZeRO) are not told: to them
the whole world is data-parallel, and `collectives.all_reduce_sum` makes their mean over the world the true gradient.

`ulysses` swaps some tokens of all heads for all tokens of some heads, and back; `gather` brings all tokens' keys and
values to every rank. Every rank runs the same collectives in the same order, forward and backward, whatever it owns:
one without tokens or heads sends and receives nothing but takes part.

Nothing here depends on `module.training`: evaluation and references run sharded like training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from align.core.errors import UserError
from align.core.readable import counted
from align.distributed.agreement import SameRows, check_agreement
from align.longseq.attention import PreparedLayout, prepare
from align.longseq.gather import Gather
from align.longseq.sharding import Shards, balanced_shards, even_shards, shard_row
from align.longseq.shared_prefix import Layout, SharedPrefixBatch, SharedPrefixRow
from align.longseq.ulysses import Ulysses, share_heads


@dataclass(frozen=True)
class SequenceParallel:
    """This process's place in its sequence-parallel group.

    Attributes:
        group: the processes that share a row.
        degree: n, how many they are.
        rank: this process's rank among them.
        kind: the exchange's name, `ulysses` or `gather`, as in the key `parallel.kind`.
        shards: which rank owns which tokens of a row that lies on the CPU, at this degree.
        prepare: the layout whose exchange reaches the other ranks' tokens, for a row that is cut up so.
    """

    group: dist.ProcessGroup
    degree: int
    rank: int
    kind: str
    shards: Callable[[SharedPrefixRow, int], Shards]
    prepare: Callable[[Layout, Shards, SequenceParallel, torch.device], PreparedLayout]


def make_groups(world_size: int, degree: int) -> tuple[tuple[int, ...], ...]:
    """The ranks of each sequence-parallel group: consecutive, so that a group lies on one machine if it can.

    Rank r is in group `r // degree`, which is also its data-parallel rank among `world_size // degree`.

    Raises:
        UserError: the degree is below 1 or does not divide the world.
    """
    if degree < 1 or world_size % degree:
        fitting = ", ".join(str(n) for n in range(1, world_size + 1) if world_size % n == 0)
        raise UserError(
            f"parallel.degree={degree} does not divide the {counted(world_size, 'process')} of this run: "
            f"use one of {fitting}, or start a multiple of {max(degree, 1)} processes."
        )
    return tuple(tuple(range(start, start + degree)) for start in range(0, world_size, degree))


def start_parallel(kind: str, degree: int) -> SequenceParallel | None:
    """Forms the groups; every process of the world has to call it.

    Args:
        kind: `none`, or the exchange: `ulysses` or `gather` (`auto` is decided by `choose_exchange` before).
        degree: processes that share a row.

    Returns:
        None for `none` and for degree 1, where nothing is shared.

    Raises:
        UserError: unknown kind, a degree that does not fit, or ranks that were started with different ones.
    """
    if kind not in ("none", *_KINDS):
        raise UserError(f"parallel.kind={kind} is not known: use none, {', '.join(_KINDS)} or auto.")
    if kind == "none" and degree != 1:
        raise UserError(f"parallel.degree={degree} needs an exchange: set parallel=auto, ulysses or gather.")
    started = dist.is_available() and dist.is_initialized()
    groups = make_groups(dist.get_world_size() if started else 1, degree)
    if not started or degree == 1:
        return None
    check_agreement(f"parallel.kind={kind}, parallel.degree={degree}", dist.group.WORLD, what="settings")
    rank = dist.get_rank()
    # new_group is collective: every process makes every group and keeps its own.
    made = [dist.new_group(list(ranks)) for ranks in groups]
    return SequenceParallel(made[rank // degree], degree, rank % degree, kind, *_KINDS[kind])


# ---- which exchange

# Floating-point operations of attention in the time that one element takes to another GPU: 300e12 FLOP/s in
# bf16 over 150e9 bytes/s within a machine (2 bytes an element). A model of the choice, not of any one machine.
_OPERATIONS_PER_ELEMENT = 4000


def choose_exchange(*, heads: int, kv_heads: int, degree: int, length: int) -> tuple[str, str]:
    """What `parallel=auto` takes: the exchange with the smaller estimated cost of one layer on its slowest rank.

    Per head dimension, for T tokens on n ranks with H query and K KV heads:

    - ulysses: `2·T²·h` operations, h = ⌈H/n⌉ the most heads on a rank, and `T/n · (2·H + 2·K')` elements sent
      (K' ≥ K counts the KV heads copied to more than one rank);
    - gather: `2·T²·H/n` operations, balanced, and `T · 2·K` elements received.

    So gather wins for few KV heads, small degrees, and heads that the degree does not divide once rows are
    long; ulysses wins for large degrees over enough heads.

    Args:
        heads: H, query heads of the model.
        kv_heads: K, key-value heads.
        degree: n ≥ 2.
        length: T, tokens of a typical row.

    Returns:
        `ulysses` or `gather`, and the reason as a sentence.
    """
    shares = share_heads(heads, kv_heads, degree)
    most = max(share.query[1] - share.query[0] for share in shares)
    copies = sum(share.kv[1] - share.kv[0] for share in shares)
    sent = {"ulysses": length / degree * (2 * heads + 2 * copies), "gather": length * 2.0 * kv_heads}
    work = {"ulysses": 2.0 * length**2 * most, "gather": 2.0 * length**2 * heads / degree}
    cost = {name: work[name] + _OPERATIONS_PER_ELEMENT * sent[name] for name in sent}
    exchange = min(cost, key=cost.__getitem__)
    other = "gather" if exchange == "ulysses" else "ulysses"
    reason = (
        f"parallel={exchange}, because for {heads} query and {kv_heads} KV heads on {degree} ranks and rows of "
        f"{length} tokens it is estimated at {cost[exchange] / cost[other]:.2f} × the cost of {other}: it moves "
        f"{sent[exchange] / sent[other]:.2f} × as much, and {other}'s slowest rank has "
        f"{work[other] / work[exchange]:.2f} × its attention work."
    )
    return exchange, reason


# ---- a row's shard


def place_row(
    row: SharedPrefixRow, parallel: SequenceParallel | None
) -> tuple[SharedPrefixRow, PreparedLayout]:
    """What this process reads of a row, and how its attention reaches the rest.

    A shard is cut out on the CPU, from the row that the device's was moved from, and moved in one copy.
    """
    if parallel is None:
        return row, replace(prepare(row.layout), positions=row.position_ids)
    device = row.input_ids.device
    shards = parallel.shards(row.host, parallel.degree)
    own = shard_row(row.host, shards[parallel.rank]).to(device)
    layout = parallel.prepare(row.layout, shards, parallel, device)
    return own, replace(layout, positions=own.position_ids)


def _even(row: SharedPrefixRow, degree: int) -> Shards:
    """Equally many scored and other tokens."""
    return even_shards(row.layout.length, row.predictor, degree)


def _balanced(row: SharedPrefixRow, degree: int) -> Shards:
    """Two slices of every prompt and answer."""
    return balanced_shards(row.layout, degree)


def _prepare_ulysses(
    layout: Layout, shards: Shards, parallel: SequenceParallel, device: torch.device
) -> PreparedLayout:
    """Attention runs over the whole row."""
    return prepare(layout, exchange=Ulysses(parallel.group, parallel.rank, shards))


def _prepare_gather(
    layout: Layout, shards: Shards, parallel: SequenceParallel, device: torch.device
) -> PreparedLayout:
    """Attention runs for the own queries."""
    exchange = Gather.over(parallel.group, parallel.rank, shards, device)
    return prepare(layout, queries=shards[parallel.rank], exchange=exchange)


_KINDS = {"ulysses": (_even, _prepare_ulysses), "gather": (_balanced, _prepare_gather)}


def same_rows(
    batch: SharedPrefixBatch, parallel: SequenceParallel | None, *, nll_scope: str
) -> SameRows | None:
    """What the ranks of a group have to have in common; with different rows they would train on nonsense.

    Args:
        batch: this process's rows.
        parallel: its group; None shares nothing.
        nll_scope: what else they need in common, beside the exchange.
    """
    if parallel is None:
        return None
    settings = f"{parallel.kind} {nll_scope} {batch.digest}".encode()
    digest = hashlib.blake2b(settings, digest_size=8).digest()
    return SameRows(parallel.group, int.from_bytes(digest, "big", signed=True))
