"""Bytes per process of what one micro-batch needs: what layers keep for the backward pass, and the peaks beside it.

`checkpoints` are activation checkpoints here, what checkpointed layers keep, and not the saved states of a run. A layer
of hidden size 4,096 keeps 4,096 · 2 bytes a token in bf16: 134 MB for 16,384 tokens, 4.3 GB for 32 layers.

Derived from what autograd saves in a Llama-like layer and from what is alive when a gradient is computed; checked
against torch's own count of live memory (tests/planning/test_planning.py). Per token of the process (t of T tokens at
degree n), in numbers, with widths H (stream), I (MLP), Q = heads·D and K = kv_heads·D:

- **kept by a checkpointed layer**: its input H; with `keep_attention` also attention's output Q and log-sum-exp.
  Without checkpointing all that is saved: I·(3 + 1 where down_proj trains) + what the next line lists.
- **saved by a layer beside its input**: q, k, v after RoPE: Q + 2K; attention's output Q; the second residual H;
  where the layer's weights train, both norms' normalised input and output, 4H; with LoRA on attention, the first norm's
  output H (its input to A), and with LoRA on the MLP the second's. In bf16 each norm adds its fp32 input, 2H·4 bytes.
- **MLP's backward**: that, and 6I: gate, up and silu(gate) saved, and the gradients of the product, of silu and of up;
  and the gradient of the layer's output H.
- **attention's backward**: that without the MLP's part, the gradients of output Q, of q, k, v, and copies that the
  exchange sends.
- **tiled** (`mlp_chunk` = c): over all tokens q, k, v, attention's output and its gradient, the gradients of the
  layer's output and input (in attention's backward of the input twice, since it comes in two parts); the two lines
  above for c tokens only.
- **head**: see head.py.
- **reference**: a forward without a graph, which is not tiled: 3I + 3H + 2Q + 2K.

A layer unlike Llama's (experts, latent attention, a mixer that keeps a state, more norms) is counted instead
(counting.py), one of each kind, and the largest of their peaks is taken as the phase *layer*.

Exchanges add a second copy of attention's output Q (before and after it; gone when attention's backward begins), and:

- *ulysses*: K' in K's place, the KV heads of the rank with the most, times n (a head that two ranks read is copied).
  Messages are there twice, sent and received: 3Q with the output's gradient before the kernel's backward pass, and
  3Q + 4K' + 2K after it, when the kernel's q, k, v and output are gone;
- *gather*: K' = n·K in K's place: keys and values of the whole row; after the kernel's backward pass Q + 4K' + 2K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from align.longseq.ulysses import share_heads
from align.planning.architecture import Architecture
from align.planning.counted import counted_forward, counted_layers
from align.planning.head import head_bytes
from align.planning.job import Job, Levers, Rows, Strategy
from align.planning.workspace import casts, kernel_workspace


@dataclass(frozen=True)
class Activations:
    """Bytes per process.

    Attributes:
        checkpoints: kept by all layers from the forward to the backward pass.
        last_checkpoint: of the last layer that goes backward, when the others' are gone.
        offloaded: what waits on host or disk instead.
        mlp, attention, head, reference: the transient peaks of these phases; they do not meet.
        kernel: a GPU's peak of attention's backward pass, with what its kernel takes.
        layer: the peak of a layer that was counted as a whole, in the place of the first two.
    """

    checkpoints: float
    last_checkpoint: float
    offloaded: float
    mlp: float
    attention: float
    head: float
    reference: float
    layer: float = 0.0
    kernel: float = 0.0


@dataclass(frozen=True)
class _Widths:
    """Bytes per token of the tensors that a layer makes. H = 4,096 in bf16 are 8,192.

    Attributes:
        stream: H, in the residual stream's type.
        inner: I, the MLP's width, in the products' type, like the next three.
        query: Q, of queries or of attention's output.
        keys: of the keys (or the values) that this rank holds while it attends, counted for each of its own tokens.
        normed: H, a norm's output.
        norm_copy: H, of the fp32 copy that a norm makes of its input; 0 where that is fp32 already.
        casts, mlp_casts: fp32 copies of the inputs of adapted layers of attention and MLP (workspace.py).
    """

    stream: float
    inner: float
    query: float
    keys: float
    normed: float
    norm_copy: float
    casts: float
    mlp_casts: float


def activations(model: Architecture, job: Job, strategy: Strategy) -> Activations:
    """What one micro-batch needs; with `policy_short` the graph of the short context stays alive beside it."""
    long = _of_rows(model, job, strategy, job.rows, scored=job.rows.head_at_once(job.nll_scope))
    if not job.policy_short:
        return long
    short = _of_rows(model, job, strategy, job.rows.short(), scored=job.rows.short().head_at_once("none"))
    return Activations(
        checkpoints=long.checkpoints + short.checkpoints,
        last_checkpoint=long.last_checkpoint,
        offloaded=long.offloaded + short.offloaded,
        mlp=max(long.mlp, short.mlp),
        attention=max(long.attention, short.attention),
        head=max(long.head, short.head),
        reference=long.reference,
        layer=max(long.layer, short.layer),
        kernel=max(long.kernel, short.kernel),
    )


def own_tokens(tokens: int, degree: int) -> int:
    """t: tokens of the largest shard, and the one that nobody sees: of 1,000 on 3 ranks 334 + 1."""
    return tokens if degree == 1 else math.ceil(tokens / degree) + 1


def _of_rows(model: Architecture, job: Job, strategy: Strategy, rows: Rows, *, scored: int) -> Activations:
    levers, precision = strategy.levers, job.precision.under(strategy.wrapper)
    tokens, once = (own_tokens(count, strategy.degree) for count in (rows.tokens, rows.at_once))
    width = _widths(model, job, strategy)
    if model.counter is None:
        each, layers, peaks = _by_formulas(model, width, strategy, once)
        kernel = peaks.pop("kernel")
    else:
        each, layers, peak = counted_layers(model, precision, strategy, once)
        # What the exchange adds is as in a Llama-like layer.
        alone = replace(strategy, exchange="none", degree=1)
        plain = _by_formulas(model, _widths(model, job, alone), alone, once)[2]
        more = max(_by_formulas(model, width, strategy, once)[2].values()) - max(plain.values())
        kernel = peak + max(0.0, more)
        peaks = {"mlp": 0.0, "attention": 0.0, "layer": kernel}
    offloaded = 0.0
    if levers.offload != "none":
        # In the backward pass: the layer's own input and those that are fetched meanwhile.
        offloaded = max(0, model.layers - 1 - levers.prefetch) * width.stream
        layers -= offloaded
    # Booleans of every row, and what a kernel adds to scores: kept by each layer that is not checkpointed.
    added = model.layers * rows.rows if levers.checkpointing == "none" else 1
    mask = rows.mask * (rows.rows + added * precision.products)
    return Activations(
        checkpoints=layers * tokens + mask,
        # Of rows that are read one after the other the first goes backward while the others' are still kept.
        last_checkpoint=each * once + layers * (tokens - once),
        offloaded=offloaded * tokens,
        **peaks,
        head=head_bytes(
            model,
            precision,
            logits_chunk=levers.logits_chunk,
            tokens=once,
            scored=math.ceil(_on_rank(scored, once, strategy)),
            # Padded rows, a copy of the prompt for each answer, are other toolkits'.
            in_slices=model.norm_with_head and rows.shared and rows.copies == 1,
        ),
        reference=_reference(model, job, strategy, width),
        kernel=kernel + (kernel_workspace(model, precision, strategy, once) if rows.shared else 0.0),
    )


def _by_formulas(
    model: Architecture, width: _Widths, strategy: Strategy, tokens: int
) -> tuple[float, float, dict[str, float]]:
    """Bytes per token that one layer keeps and all keep, and the bytes of a layer's two peaks."""
    levers = strategy.levers
    saved = _saved(model, width, strategy.degree)
    kept_output = width.query + model.heads * 4
    kept = {"full": width.stream, "keep_attention": width.stream + kept_output}
    unchecked = width.stream + saved + width.inner * (3 + (not model.lora or model.lora_mlp))
    each = kept.get(levers.checkpointing, unchecked)
    # What is kept is not made again, and without checkpointing nothing is.
    again = {"full": saved, "keep_attention": saved - width.query, "none": 0.0}[levers.checkpointing]
    mlp, attention, kernel = _layer_peaks(model, width, strategy, levers, tokens, again)
    return each, model.layers * each, {"mlp": mlp, "attention": attention, "kernel": kernel}


def _on_rank(scored: int, tokens: int, strategy: Strategy) -> float:
    """The most scored tokens on a rank: both layouts spread them (align/longseq/sharding.py)."""
    return min(scored / strategy.degree, tokens)


def _widths(model: Architecture, job: Job, strategy: Strategy) -> _Widths:
    precision = job.precision.under(strategy.wrapper)
    products = precision.products
    cast, mlp_cast = casts(model, job)
    keys = model.kv_width
    if strategy.ulysses > 1:
        shares = share_heads(model.heads, model.kv_heads, strategy.ulysses)
        keys = max(share.kv[1] - share.kv[0] for share in shares) * model.head_dim * strategy.ulysses
    keys *= strategy.gather
    return _Widths(
        stream=model.hidden * precision.stream,
        inner=model.intermediate * products,
        query=model.query_width * products,
        keys=keys * products,
        normed=model.hidden * products,
        norm_copy=model.hidden * precision.norm_copy,
        casts=cast,
        mlp_casts=mlp_cast,
    )


def _saved(model: Architecture, width: _Widths, degree: int) -> float:
    """Bytes per token that a layer's forward saves beside its input and the MLP's part."""
    attention = width.query * (2 if degree == 1 else 3) + 2 * width.keys
    if not model.lora:
        norms = 2 * (width.stream + width.normed)
    else:
        norms = width.normed * (2 if model.lora_mlp else 1)
    return attention + width.stream + norms + 2 * width.norm_copy + width.casts + width.mlp_casts


def _layer_peaks(
    model: Architecture, width: _Widths, strategy: Strategy, levers: Levers, tokens: int, again: float
) -> tuple[float, float, float]:
    """Bytes at a layer's peaks: when the MLP goes backward, when attention does, and of that while its kernel runs.

    Args:
        model, width, strategy, levers: of the run.
        tokens: of the longest shard.
        again: bytes per token that the recomputed forward makes anew.
    """
    gradients = _attention_gradients(model, width, strategy)
    if levers.mlp_chunk is None or levers.checkpointing == "none":
        mlp, attention = _whole_layer(width, levers, again, gradients)
        return mlp * tokens, attention * tokens, attention * tokens
    return _tiled_layer(width, strategy, levers, tokens, gradients)


def _whole_layer(width: _Widths, levers: Levers, again: float, gradients: float) -> tuple[float, float]:
    """Bytes per token at the two peaks where the layer runs over all tokens at once."""
    checkpointed = levers.checkpointing != "none"
    # Without checkpointing the three inputs are among what the layers keep; only gradients are new.
    inner = width.inner * (6 if checkpointed else 3)
    # With an adapter on it the gradient of gate or up exists in fp32 too.
    mlp = inner + again + width.stream + (2 * width.inner if width.mlp_casts else 0.0)
    attention = again + width.stream + gradients - (width.stream if checkpointed else 0.0)
    return mlp, attention


def _tiled_layer(
    width: _Widths, strategy: Strategy, levers: Levers, tokens: int, gradients: float
) -> tuple[float, float, float]:
    """Bytes at the three peaks with `mlp_chunk`: some numbers exist for all tokens, those of the MLP for one tile.

    With 16,384 tokens and a chunk of 2,048, gate, up and their gradients take an eighth of what they would else.
    """
    tile = min(levers.mlp_chunk or tokens, tokens)
    kept = 0.0 if levers.checkpointing == "full" else width.query
    whole = width.query * (2 if strategy.degree == 1 else 3) + 2 * width.keys - kept
    inner, norms = width.inner * 6, 5 * width.stream + 2 * width.norm_copy + width.casts + width.mlp_casts
    mlp = (whole + 2 * width.stream + width.query) * tokens + (inner + norms) * tile
    # The output's gradient exists as tiles and joined; the input's from the tiles and from the projections' part.
    attention = (whole + 3 * width.stream + width.query + gradients) * tokens
    # While the kernel runs one of the three has not come yet, another is gone, and what it returns is there twice.
    twice = width.query * (1 if strategy.degree == 1 else 2) + 2 * width.keys
    kernel = (whole + width.stream + twice + gradients) * tokens
    return mlp, attention, kernel


def _attention_gradients(model: Architecture, width: _Widths, strategy: Strategy) -> float:
    """Bytes per token beside q, k, v and output, as the kernel has them, where its backward pass needs the most."""
    kernel = 2 * width.query + 2 * width.keys
    if strategy.degree == 1:
        return kernel
    before = 3 * width.query if strategy.ulysses > 1 else 0.0
    own = 2 * model.kv_width * width.query / model.query_width
    after = (width.query if strategy.ulysses > 1 else -width.query) + 2 * width.keys + own
    return max(before, kernel, after) - width.query


def _reference(model: Architecture, job: Job, strategy: Strategy, width: _Widths) -> float:
    """Bytes of a reference's forward, and of the head's logits in it."""
    if job.reference == "none":
        return 0.0
    both = job.policy_short or not job.reference_short
    rows = job.rows if both else job.rows.short()
    tokens = own_tokens(rows.at_once, strategy.degree)
    if model.counter is None:
        layer = 3 * width.inner + 3 * width.stream + 2 * width.query + 2 * width.keys + width.norm_copy
    else:
        layer = counted_forward(model, job.precision.under(strategy.wrapper), strategy.wrapper)
    scored = math.ceil(_on_rank(rows.head_at_once("none"), tokens, strategy))
    at_once = min(scored, strategy.levers.logits_chunk)
    return max(layer * tokens, at_once * model.vocabulary * 12 + 2 * width.stream * tokens)
