"""What one layer of each kind keeps and needs, counted by running it on tensors that have shapes and no values.

The formulas of activations.py are those of a Llama-like layer. Any other layer (experts, latent attention, a mixer that
keeps a state, norms behind the blocks) is run here: a model with the user's widths and one layer of every kind is built
on the meta device, where it takes no memory, each layer goes forward and backward as in training, and what is alive is
added up operation by operation. Weights and their gradients are left out: they are counted elsewhere.

Of a layer of hidden size 4,096 in bf16 that is checkpointed, 8,192 bytes a token are kept: its input.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig
from transformers.modeling_utils import set_zero3_state

from align.adapters.adapter import Adapter, add_adapter
from align.adapters.layers import own_parameters
from align.data.examples import Answer, TokenizedExample
from align.longseq.attention import ATTENTION, attend
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.mixers import mixer_rule
from align.longseq.parallel import place_row
from align.longseq.prepared import Attend
from align.longseq.shared_prefix import pack
from align.longseq.small_model import default_dtype
from align.longseq.states import prepare_states
from align.longseq.support import check_supported
from align.models.loading import library_class
from align.models.small import one_of_each
from align.models.structure import decoder_layers, find_causal_lm
from align.models.text_part import set_attention, text_decoder
from align.planning.live import Called, Live

# Tokens of a row that fills chunks of 64, 128 and 256 but for some; their number is prime, so that no weight has as
# many elements as a tensor of all tokens.
ROW = (1785, 62)
# The same for mixers that go token by token, which take long.
SHORT_ROW = (447, 62)
TILES = (2, 8)
_KERNEL = "cpu"
_TYPES = {4: torch.float32, 2: torch.bfloat16}

# What tells layers of a kind: the class, and every weight's name and shape; adapters are left out.
Kind = tuple[str, tuple[tuple[str, tuple[int, ...]], ...]]


def kind_of(layer: nn.Module) -> Kind:
    """The kind of a decoder layer."""
    weights = [(name, tuple(p.shape)) for name, p in own_parameters(layer)]
    return type(layer).__name__, tuple(weights)


@dataclass(frozen=True)
class LayerBytes:
    """Bytes per token of one layer.

    Attributes:
        kept: from its forward to its backward pass; the layer's input is among it.
        transient: more, at the peak of its backward pass and of the forward that is made again for it.
        tile: the same of each token of a tile, with `memory.mlp_chunk`.
    """

    kept: float
    transient: float
    tile: float = 0.0


@dataclass(frozen=True)
class Heads:
    """What a layer hands to attention: query heads, key-value heads, and the width of keys and of padded values."""

    heads: int
    kv_heads: int
    width: int


class LayerCounter:
    """Counts the layers of one architecture, each kind once, when it is first asked.

    Args:
        config: the model's.
        adapter: what trains of it; None: all.

    Raises:
        Exception: whatever the class ends in where it cannot be built or run without values.
    """

    def __init__(self, config: PreTrainedConfig, adapter: Adapter | None) -> None:
        self.config, self.adapter = config, adapter
        self._runs: dict[tuple[int, bool], _Run] = {}
        self._found: dict[tuple[int, bool, int], dict[Kind, LayerBytes]] = {}
        self._tiles: dict[int, dict[Kind, LayerBytes]] = {}
        self._forward: dict[int, float] = {}

    @cached_property
    def heads(self) -> dict[Kind, Heads | None]:
        """What each kind of layer hands to attention; None where it has none."""
        run = self._run(2, checkpointed=True)
        return {kind_of(layer): run.heads.get(number) for number, layer in enumerate(run.layers)}

    def layers(self, size: int, mode: str, *, tiled: bool = False) -> dict[Kind, LayerBytes]:
        """Each kind's bytes in a mode of checkpointing.

        Args:
            size: bytes of a weight: 4 or 2.
            mode: `memory.checkpointing`.
            tiled: whether `memory.mlp_chunk` is set.
        """
        if mode == "none":
            return self._of(size, False, 1)
        found = self._tiled(size) if tiled else self._of(size, True, 1)
        if mode == "full":
            return found
        return {kind: _with_attention_kept(each, self.heads[kind], size) for kind, each in found.items()}

    def _tiled(self, size: int) -> dict[Kind, LayerBytes]:
        """In tiles; as without them where layers are not handed the row's layout (Mamba) or cut tokens otherwise."""
        if size not in self._tiles:
            try:
                few, many = (self._of(size, True, tiles) for tiles in TILES)
                self._tiles[size] = {kind: _split(few[kind], many[kind]) for kind in few}
            except (KeyError, RuntimeError):
                self._tiles[size] = self._of(size, True, 1)
        return self._tiles[size]

    def forward(self, size: int) -> float:
        """Bytes per token of the largest layer's forward without a graph, its input among them."""
        if size not in self._forward:
            run = self._run(size, checkpointed=False)
            self._forward[size] = max(run.forward(number) for number in range(len(run.layers)))
        return self._forward[size]

    def _run(self, size: int, *, checkpointed: bool) -> _Run:
        key = (size, checkpointed)
        if key not in self._runs:
            self._runs[key] = _Run(self.config, self.adapter, size)
        return self._runs[key]

    def _of(self, size: int, checkpointed: bool, tiles: int) -> dict[Kind, LayerBytes]:
        key = (size, checkpointed, tiles)
        if key not in self._found:
            run = self._run(size, checkpointed=checkpointed)
            if checkpointed:
                chunk = None if tiles == 1 else -(-run.tokens // tiles)
                apply_checkpointing(run.model, "full", mlp_chunk=chunk)
            kinds: dict[Kind, int] = {}
            for number, layer in enumerate(run.layers):
                kinds.setdefault(kind_of(layer), number)
            self._found[key] = {kind: run.backward(number) for kind, number in kinds.items()}
        return self._found[key]


def _with_attention_kept(full: LayerBytes, heads: Heads | None, size: int) -> LayerBytes:
    """With `keep_attention`: attention's output and log-sum-exp are kept, and not made again."""
    output = 0.0 if heads is None else heads.heads * (heads.width * size + 4)
    return replace(full, kept=full.kept + output, transient=full.transient - output)


def _split(few: LayerBytes, many: LayerBytes) -> LayerBytes:
    """Of the peaks with 2 and with 8 tiles, a·T + b·T/2 and a·T + b·T/8, what goes with the row and with the tile."""
    a, b = TILES
    tile = max(0.0, (few.transient - many.transient) / (1 / a - 1 / b))
    return replace(many, transient=many.transient - tile / b, tile=tile)


class _Run:
    """A model with one layer of every kind on the meta device, after one forward that shows how layers are called.

    Attributes:
        layers: in their order.
        tokens: of the row.
        heads: of the layers that attend, by number.
    """

    def __init__(self, config: PreTrainedConfig, adapter: Adapter | None, size: int) -> None:
        build: Any = library_class(config)
        with default_dtype(_TYPES[size]), torch.device("meta"), set_zero3_state():
            model = build(copy.deepcopy(one_of_each(config)))
            self.model = add_adapter(model.to(_TYPES[size]), adapter and adapter.without_values()).train()
        lm = find_causal_lm(self.model)
        check_supported(lm)  # else the library warns of a class that it cannot switch, and goes on
        set_attention(lm, ATTENTION)
        prepare_states(lm)
        self.layers = list(decoder_layers(lm))
        self.heads: dict[int, Heads] = {}
        self._calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._now = -1
        hooks = [
            layer.register_forward_pre_hook(self._note(number), with_kwargs=True)
            for number, layer in enumerate(self.layers)
        ]
        rules = [mixer_rule(type(module)) for module in lm.modules()]
        lengths = SHORT_ROW if any(rule is not None and rule.cost for rule in rules) else ROW
        self.tokens = sum(lengths)
        row, layout = place_row(_row(*lengths), None)
        self.layout = replace(layout, exchange=self._exchange)
        with torch.no_grad(), Called():
            text_decoder(lm)(
                input_ids=row.input_ids.to("meta"),
                position_ids=row.position_ids.to("meta"),
                layout=self.layout,
                use_cache=False,
            )
        for hook in hooks:
            hook.remove()

    def _note(self, number: int) -> Callable[..., None]:
        def note(layer: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            self._calls[number], self._now = (args, keywords), number

        return note

    def _exchange(self, query: Tensor, key: Tensor, value: Tensor, attend_here: Attend) -> Tensor:
        """In the place of attention's: the operator that training calls on a CPU or GPU, and not the plain way."""
        self.heads[self._now] = Heads(query.shape[1], key.shape[1], query.shape[3])
        return attend(query, key, value, layout=self.layout, kernel=_KERNEL)

    def _prepared(self, number: int) -> tuple[Callable[[], Tensor], Tensor, Live]:
        """The layer with its arguments, its input, and what counts, which has seen all that was there before."""
        layer, (args, keywords) = self.layers[number], self._calls[number]
        given = args[0] if args else keywords["hidden_states"]
        hidden = given.detach().requires_grad_()
        args, keywords = (
            ((hidden, *args[1:]), keywords) if args else (args, keywords | {"hidden_states": hidden})
        )
        weights = list(layer.parameters())
        live = Live({weight.numel() for weight in weights})
        for tensor in (*weights, *layer.buffers(), *tree_leaves((args, keywords))):
            if isinstance(tensor, Tensor):
                live.know(tensor)

        def call() -> Tensor:
            output = layer(*args, **keywords)
            found: Tensor = output[0] if isinstance(output, tuple) else output
            return found

        return call, hidden, live

    def forward(self, number: int) -> float:
        """Bytes per token at the peak of the layer's forward without a graph."""
        call, hidden, live = self._prepared(number)
        with torch.no_grad(), live:
            call()
        return (live.peak + hidden.nbytes) / self.tokens

    def backward(self, number: int) -> LayerBytes:
        """Of the layer's forward and backward pass."""
        call, _, live = self._prepared(number)
        with _gradients_dropped(self.layers[number]), live:
            output = call()
            # In the place of the input, which was there before, stands the output, the next layer's input.
            kept = live.now
            gradient = torch.empty_like(output)
            live.peak = live.now
            output.backward(gradient)
        return LayerBytes(kept / self.tokens, (live.peak - kept) / self.tokens)


@contextmanager
def _gradients_dropped(layer: nn.Module) -> Iterator[None]:
    """Within it a weight's gradient is let go as soon as it is there."""

    def drop(weight: Tensor) -> None:
        weight.grad = None

    hooks = [p.register_post_accumulate_grad_hook(drop) for p in layer.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _row(prompt: int, length: int) -> Any:
    """One prompt with one answer."""
    answer = Answer(np.zeros(length, dtype=np.int64), np.ones(length, dtype=bool))
    example = TokenizedExample("count:1", np.zeros(prompt, dtype=np.int64), np.arange(prompt), (answer,))
    return pack([example]).rows[0]
