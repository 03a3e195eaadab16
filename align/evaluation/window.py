"""Prompts of given lengths: what a chat template adds to them, and what has to go where they are too long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from align.core.errors import UserError
from align.generation.generators import Message, Request, Sampling
from align.generation.prompts import encoder_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.generation.stage import Workspace

_PROBE = "x"


class Window:
    """Counts prompts as the generator will, template and all, and cuts them.

    Args:
        workspace: the suite's; a server's prompts are counted by the model's own chat template.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.tokenizer = workspace.tokenizer
        self.encode = encoder_of(workspace.generator, self.tokenizer)

    @cached_property
    def template(self) -> int:
        """Tokens that the chat template puts around one user message, the generation prompt counted."""
        probe = Request("probe", (Message("user", _PROBE),), Sampling(0.0, 1.0, 0, 1), 0)
        bare = self.tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
        return max(0, len(self.encode(probe)) - len(bare))

    def fitted(self, make: Callable[[str], Request], text: str, room: int) -> tuple[Request, bool]:
        """The request of the text, its middle cut out until the whole prompt has at most `room` tokens; whether it was.

        Raises:
            UserError: not even two tokens of the text fit.
        """
        keep = room - self.template
        while keep >= 2:
            kept = cut_middle(text, self.tokenizer, keep)
            request = make(kept)
            over = len(self.encode(request)) - room
            if over <= 0:
                return request, kept != text
            keep -= over  # where the parts meet, other tokens may come out than those that were counted
        raise UserError(f"{make(_PROBE).id}: {room} tokens are too few for its chat template and a text.")


def cut_middle(
    text: str, tokenizer: PreTrainedTokenizerBase, most: int, *, add_special_tokens: bool = False
) -> str:
    """The first and the last half of `most` tokens of a longer text.

    Args:
        text: the prompt.
        tokenizer: a fast one.
        most: tokens, 2 or more.
        add_special_tokens: whether those that the tokenizer puts around a text count; they are not in what is left.
    """
    encoding = tokenizer(
        text,
        add_special_tokens=add_special_tokens,
        split_special_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    offsets: Sequence[tuple[int, int]] = encoding["offset_mapping"]
    if len(offsets) <= most:
        return text
    half = most // 2
    return text[: offsets[half - 1][1]] + text[offsets[len(offsets) - half][0] :]
