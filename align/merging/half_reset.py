"""Half of a trained model's matrices set back to the model that it started from (HFT's half reset)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from align.adapters.halves import SCOPES, trained_half
from align.core.config import check_choice
from align.core.errors import UserError
from align.merging.rule import Shapes, TensorRule, fit_count, need_base

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class HalfReset:
    """`combine=half_reset`: what HFT would have trained stays as it is, the other half is the base model's again.

    Attributes:
        scope: of what half is taken: category | layer | model, as in `adapter=half`.
    """

    scope: str = "category"
    source: ClassVar[str] = "arXiv 2404.18466"

    def check(self) -> None:
        """Raises UserError for an unknown scope."""
        check_choice("combine.scope", self.scope, SCOPES)

    def fit(self, count: int, *, base: bool) -> None:
        """One model and its base."""
        fit_count(count, least=1, most=1, rule="half_reset")
        need_base(base, rule="half_reset")

    def linear(self, count: int) -> None:
        """Some tensors have weight 1, the others 0."""

    def over(self, shapes: Shapes, seed: int) -> TensorRule:
        """See `Rule.over`.

        Raises:
            UserError: no tensor lies in a numbered layer.
        """
        try:
            kept = trained_half(shapes, scope=self.scope, seed=seed)
        except ValueError as error:
            raise UserError(f"combine=half_reset: {error}.") from error

        def merged(name: str, models: Sequence[Tensor], base: Tensor | None) -> Tensor:
            assert base is not None
            return models[0] if name in kept else base

        return merged
