"""From the last hidden states to logits: the output embedding, and what a model puts before and behind it.

Cohere multiplies its logits by a factor, Granite divides them, Gemma caps them by `c · tanh(x / c)`, MiniCPM scales the
hidden states. These steps stand in the code of each model's forward, behind its decoder. They are noted there, while
the forward runs, and done again for the hidden states that are scored: numbers of the model's configuration that enter
a few known operations, so that nothing of a family has to be known here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from align.longseq.settings import cannot_share
from align.models.text_part import text_decoder

# Operations that pick, copy or convert numbers and leave their values alone, by the names that torch gives them.
_HARMLESS = frozenset(
    [
        "slice",
        "select",
        "index",
        "view",
        "_unsafe_view",
        "reshape",
        "unsqueeze",
        "squeeze",
        "alias",
        "expand",
        "detach",
        "clone",
        "_to_copy",
        "to",  # as `torch.inference_mode` shows it
        "type_as",
        "contiguous",
        "lift_fresh",
        "transpose",
        "t",
        "permute",
        "device",
        "view_as",
    ]
)
# Operations that are done again: each takes the hidden states or logits and plain numbers.
_STEPS = frozenset(["mul", "div", "add", "sub", "tanh", "mul_", "div_", "add_", "sub_", "tanh_"])


@dataclass(frozen=True)
class Step:
    """One operation on hidden states or logits with numbers: `logits / 8` is `Step(div, (), (8,))`."""

    operation: Callable[..., Tensor]
    before: tuple[Any, ...] = ()
    after: tuple[Any, ...] = ()

    def __call__(self, states: Tensor) -> Tensor:
        """The same operation on other states."""
        return self.operation(*self.before, states, *self.after)


@dataclass(frozen=True)
class Tail:
    """What a model does between its last hidden states and its logits: steps, the output embedding, steps."""

    before: tuple[Step, ...] = ()
    after: tuple[Step, ...] = ()

    def of(self, head: nn.Module) -> Callable[[Tensor], Tensor]:
        """The function from hidden states `[n, H]` to logits `[n, V]`; steps behind the head in fp32 or more."""

        def logits(hidden: Tensor) -> Tensor:
            for step in self.before:
                hidden = step(hidden)
            found: Tensor = head(hidden)
            if self.after:
                found = found.to(torch.promote_types(found.dtype, torch.float32))
            for step in self.after:
                found = step(found)
            return found

        return logits


class TailWatch(TorchDispatchMode):
    """Notes the steps of a model's own forward between its decoder and its logits, from `begin` to `end`.

    Args:
        model: the causal language model whose forward runs meanwhile.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self._model = model
        self._stack = ExitStack()
        self._flow: dict[
            int, Tensor
        ] = {}  # what has come of the hidden states, kept so that no id is used twice
        self._before: list[Step] = []
        self._after: list[Step] = []
        self._unknown: list[str] = []
        self._vocabulary: int | None = None  # once the head has been called
        self._in_head = False

    def begin(self, hidden: Tensor) -> None:
        """From now on; `hidden` are the decoder's last hidden states."""
        head = self._model.get_output_embeddings()
        self._flow = {id(hidden): hidden}
        for handle in (
            head.register_forward_pre_hook(self._enter_head, prepend=True),
            head.register_forward_hook(self._leave_head),
        ):
            self._stack.callback(handle.remove)
        self._stack.enter_context(self)

    def stop(self) -> None:
        """Watches no longer, whatever has happened."""
        self._stack.close()

    def end(self, logits: Tensor) -> Tail:
        """Watches no longer, and tells how the model came from the hidden states to its `logits`.

        Raises:
            UserError: the model does there what is not done here.
        """
        self.stop()
        if id(logits) not in self._flow:
            self._unknown.append("of an unknown kind")
        elif logits.shape[-1] != self._vocabulary:
            self._unknown.append("a cut of the vocabulary")
        if self._unknown:
            raise cannot_share(
                f"{type(self._model).__name__} does more between its last hidden states and its logits than its output "
                f"embedding and simple steps ({', '.join(dict.fromkeys(self._unknown))}), which the shared-prefix "
                "forward does not compute"
            )
        return Tail(tuple(self._before), tuple(self._after))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation, and notes it where it changes what flows to the logits."""
        result = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if self._in_head or not any(id(one) in self._flow for one in tensors):
            return result
        name = func.overloadpacket.__name__
        if name in _STEPS and len(tensors) == 1 and not kwargs:
            place = next(i for i, one in enumerate(args) if one is tensors[0])
            steps = self._before if self._vocabulary is None else self._after
            steps.append(Step(func, tuple(args[:place]), tuple(args[place + 1 :])))
        elif name not in _HARMLESS:
            self._unknown.append(name)
        self._flows(result)
        return result

    def _flows(self, result: Any) -> None:
        for one in tree_leaves(result):
            if isinstance(one, Tensor):
                self._flow[id(one)] = one

    def _enter_head(self, *unused: Any) -> None:
        self._in_head = True

    def _leave_head(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self._in_head, self._vocabulary = False, output.shape[-1]
        self._flow[id(output)] = output


def tail_of(model: PreTrainedModel) -> Tail:
    """The tail of a model with the library's own attention that no wrapper has scattered, by a forward of one token."""
    watch = TailWatch(model)

    def after_decoder(module: nn.Module, args: Any, output: Any) -> None:
        watch.begin(output.last_hidden_state)

    handle = text_decoder(model).register_forward_hook(after_decoder)
    try:
        with torch.no_grad():
            token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
            return watch.end(model(input_ids=token, use_cache=False).logits)
    finally:
        watch.stop()
        handle.remove()
