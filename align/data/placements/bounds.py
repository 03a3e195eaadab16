"""What placements refuse alike: a target that cannot be stored, and a row that does not fit it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.core.errors import UserError

if TYPE_CHECKING:
    from align.data.positions import PromptParts

MAX_POSITIONS = 2**31 - 1


def check_target(target_length: int) -> None:
    """Refuses a `positions.target_length` that is below 1 or beyond what is stored.

    Raises:
        UserError: see above.
    """
    if target_length < 1:
        raise UserError(f"positions.target_length={target_length} is too small: give a number from 1 on.")
    if target_length > MAX_POSITIONS:
        raise UserError(
            f"positions.target_length={target_length} is too large: positions are stored as 32-bit numbers, "
            f"so that {MAX_POSITIONS} is the most."
        )


def slack_of(parts: PromptParts, target_length: int) -> int:
    """Positions that stay free where a row stands in K of them by unit steps: a row of 1,000 in 8,192 leaves 7,192.

    Args:
        parts: of the row; all its tokens count, its longest answer's too.
        target_length: K.

    Raises:
        UserError: the row has more than K tokens.
    """
    if target_length < parts.length:
        raise UserError(
            f"the prompt and its longest answer have {parts.length} tokens, more than "
            f"positions.target_length={target_length}; raise it or lower data.max_length"
        )
    return target_length - parts.length
