"""Whether a model's logits are its output embedding of the decoder's last hidden states, and nothing else.

Only then does the shared-prefix forward score what the model would. BERT's kind has a dense layer, an activation and a
norm between them; others soft-cap or scale what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from align.longseq.settings import cannot_share

# Operations that pick, copy or convert numbers and leave their values alone, by the names that torch gives them.
_HARMLESS = {
    *(
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
    ),
    *(
        "detach",
        "clone",
        "_to_copy",
        "contiguous",
        "lift_fresh",
        "empty",
        "arange",
        "transpose",
        "t",
        "permute",
    ),
    "device",  # asks for it
}
_SCALES = {"mul", "div"}  # harmless with a factor of 1, as Granite has where its logits are not scaled


class HeadWatch(TorchDispatchMode):
    """Within it, notes the operations of a model's forward after its decoder and outside of its output embedding."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.changes: list[str] = []
        self._watching = False
        self._handles: list[Any] = []

    def __enter__(self) -> HeadWatch:
        """Begins to watch at the decoder's end; the head's own operations are not noted."""
        decoder, head = self.model.get_decoder(), self.model.get_output_embeddings()
        self._handles = [
            decoder.register_forward_hook(self._on),
            head.register_forward_pre_hook(self._off),
            head.register_forward_hook(self._on),
            self.model.register_forward_hook(self._off),
        ]
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        """Takes the hooks away."""
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation, and notes it."""
        name = func.overloadpacket.__name__
        neutral = name in _SCALES and len(args) > 1 and not isinstance(args[1], Tensor) and args[1] == 1
        if self._watching and name not in _HARMLESS and not neutral:
            self.changes.append(name)
        return func(*args, **(kwargs or {}))

    def _on(self, *unused: Any) -> None:
        self._watching = True

    def _off(self, *unused: Any) -> None:
        self._watching = False

    def check(self) -> None:
        """Refuses a model of which the forward has changed what comes from the decoder or from the head.

        Raises:
            UserError: names the model's class and the operations.
        """
        if self.changes:
            raise cannot_share(
                f"{type(self.model).__name__} does more between its last hidden states and its logits than its output "
                f"embedding ({', '.join(dict.fromkeys(self.changes))}), which the shared-prefix forward does not "
                "compute"
            )


def check_parts(model: PreTrainedModel) -> None:
    """Refuses a model that does not give its decoder and its output embedding as modules of their own.

    Raises:
        UserError: names the model's class.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    if not isinstance(decoder, nn.Module) or decoder is model or not isinstance(head, nn.Module):
        raise cannot_share(
            f"{type(model).__name__} gives no decoder and output embedding of its own, which the shared-prefix forward "
            "puts itself between"
        )


def check_last_hidden_state(model: PreTrainedModel, output: Any) -> None:
    """Refuses a decoder that does not return its last hidden states under the library's name.

    Raises:
        UserError: names the model's class.
    """
    if not isinstance(output, Mapping) or "last_hidden_state" not in output:
        raise cannot_share(
            f"{type(model).__name__} has a decoder that returns no last_hidden_state, which the shared-prefix forward "
            "scores"
        )
