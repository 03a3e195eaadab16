"""The dense gradient of a weight that does not train, where an adapter trains beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.hooks import RemovableHandle


def watch_weight(
    layer: nn.Module, take: Callable[[Tensor], None], *, when: Callable[[], bool]
) -> RemovableHandle:
    """Has `take` called with a linear layer's weight gradient `[out, in]`, for each of its calls in a backward pass.

    The gradient is that of the weight as the layer uses it, what an adapter adds included: (∂L/∂output)ᵀ · input, one
    product more than the backward pass makes by itself. A layer called on three tiles of a row gives three parts of
    the row's gradient.

    Autograd keeps the layer's input, as it does for the layer itself, so that checkpointing brings it back instead of
    keeping it; of a layer that is computed again the first computation alone has a backward pass, so that none is
    counted twice.

    Args:
        layer: a linear layer, or an adapter's layer around one; its first argument is the input `[…, in]`.
        take: gets the gradient in the precision of the output's.
        when: asked at each call; has to answer alike in a step's forward and in what is computed again.
    """

    def tap(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if not (output.requires_grad and when()):
            return output
        watched: Tensor = _Tap.apply(output, args[0].detach(), take)
        return watched

    return layer.register_forward_hook(tap)


class _Tap(Function):
    """A layer's output as it is; on the way back the weight's gradient is taken out."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, inputs: Tensor, take: Callable[[Tensor], None]) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.take = take
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (inputs,) = ctx.saved_tensors
        ctx.take(gradient.flatten(0, -2).T @ inputs.flatten(0, -2).to(gradient.dtype))
        return gradient, None, None
