"""What attention needs to know of a row, made once a forward: who sees whom, and how keys and values come here."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor, nn

from align.longseq.parts import Own, Part, flatten, parts_of
from align.longseq.shared_prefix import Layout, PackedPrompt, Span
from align.patterns.by_head import ByHead, Run
from align.patterns.pattern import FULL, Pattern


class Attend(Protocol):
    """Attention of queries that are here to keys that are here."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, heads: tuple[int, int] | None = None
    ) -> Tensor:
        """`[1, h, Q, D]`, `[1, k, T, D]` twice → `[1, h, Q, D]`, h a multiple of k.

        Of the layer's query heads these are `heads[0] … heads[1] − 1`; None where they are all of them.
        """
        ...


# Brings the keys and values that some queries need to them: `(query, key, value, attend) -> output`, all of
# this process's own tokens; see gather.py and ulysses.py.
Exchange = Callable[[Tensor, Tensor, Tensor, Attend], Tensor]


def local(query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
    """The exchange of one process: everything is here already."""
    return attend(query, key, value)


# Runs a mixer that keeps a state: `(mixer, run, hidden, keywords) ->` what `run(hidden, keywords)` returns, which runs
# it over prompts and answers apart; `hidden` `[1, T, H]` are all tokens of the row, or a tile (tiling.py).
Mix = Callable[[nn.Module, Callable[[Tensor, dict[str, Any]], Any], Tensor, dict[str, Any]], Any]


def mix_here(
    mixer: nn.Module,
    run: Callable[[Tensor, dict[str, Any]], Any],
    hidden: Tensor,
    keywords: dict[str, Any],
) -> Any:
    """The way of a layer that is called over the whole row at once."""
    return run(hidden, keywords)


@dataclass(frozen=True)
class Piece:
    """Consecutive queries within one prompt or answer.

    Of an answer of 4 tokens behind a prompt of 10, all queries are `queries=(10, 14), keys=14`: the last one sees all
    14 keys, the first one 11.

    Attributes:
        queries: their span in the tensor of queries that are attended from here.
        keys: how many of the branch's keys the last of them sees; each query before sees one fewer.
    """

    queries: Span
    keys: int


@dataclass(frozen=True)
class Branch:
    """A prompt, or a prompt with one of its answers: spans of the row's keys and the pieces that attend them.

    The second answer behind a prompt of 10 and an answer of 4 tokens has the keys `((0, 10), (14, 17))`.
    """

    keys: tuple[Span, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class PreparedLayout:
    """What attention needs to know of the row: made once a forward, used by every layer.

    Attributes:
        row: where the whole row's prompts and answers lie.
        own: ascending, disjoint spans of the row, whose queries are attended from here.
        branches: of the queries that are attended from here, in their order, for `attend_plain`; the same for
            every pattern.
        longest_sequence: the most tokens that one answer sees, in the whole row.
        exchange: how keys and values come here; `local` for one process.
        most_tokens: that any process reads in this forward, where all have to call its modules equally often;
            None is this one's own.
        callers: the modules that asked for attention or ran by spans, so that a model that goes its own way is found.
        mix: how mixers that keep a state come to all of the row's tokens.
        most_spans: prompts and answers in the row of the process with the most, where all have to call mixers equally
            often; None is this one's own.
        positions: `[1, T]` of the tokens whose queries come here, for models that scale these by them; a tile's in a
            tile (tiling.py).
        calls: what `parts` has made so far.
    """

    row: Layout
    own: tuple[Span, ...]
    branches: tuple[Branch, ...]
    longest_sequence: int
    exchange: Exchange = local
    most_tokens: int | None = None
    callers: set[nn.Module] = field(default_factory=set, compare=False)
    mix: Mix = mix_here
    most_spans: int | None = None
    positions: Tensor | None = field(default=None, compare=False, repr=False)
    calls: dict[Hashable, list[int]] = field(default_factory=dict, compare=False, repr=False)

    def parts(self, pattern: Pattern | ByHead = FULL, heads: Span = (0, 1)) -> list[int]:
        """What the own queries attend in a layer of this pattern, as calls without masks, flattened, for `attend`.

        Made when a layer first asks for it; the layers after it share it.

        Args:
            pattern: of all heads, or of each run of heads.
            heads: which of the layer's query heads are here.
        """
        if not isinstance(pattern, ByHead):
            return self._made(pattern, lambda: parts_of(self.row.prompts, self.own, pattern))
        return self._made((pattern, heads), lambda: self._by_head(pattern.runs(heads)))

    def _made(self, key: Hashable, make: Callable[[], Iterable[Part]]) -> list[int]:
        if key not in self.calls:
            self.calls[key] = flatten(make())
        return self.calls[key]

    def _by_head(self, runs: Sequence[Run]) -> Iterator[Part]:
        """The calls of each run of heads."""
        for run in runs:
            for part in parts_of(self.row.prompts, self.own, run.pattern):
                yield replace(part, heads=(run.query, run.kv))


def prepare(
    layout: Layout, *, queries: tuple[Span, ...] | None = None, exchange: Exchange = local
) -> PreparedLayout:
    """The layout as the attention function takes it.

    Args:
        layout: of the whole row.
        queries: ascending, disjoint spans of the row whose queries are attended from here; None is all.
        exchange: how keys and values come here.
    """
    own = ((0, layout.length),) if queries is None else queries
    held, branches = Own(own), []
    for keys, span in _spans(layout.prompts):
        before = sum(stop - start for start, stop in keys) - (span[1] - span[0])
        pieces = tuple(Piece(place, before + stop - span[0]) for (start, stop), place in held.within(span))
        if pieces:
            branches.append(Branch(keys, pieces))
    return PreparedLayout(layout, own, tuple(branches), layout.longest_sequence, exchange)


def _spans(prompts: tuple[PackedPrompt, ...]) -> Iterator[tuple[tuple[Span, ...], Span]]:
    """Of each prompt and each answer, in row order: the keys that its last query sees, and its own span.

    A prompt (0, 10) with one answer (10, 14): `((0, 10),), (0, 10)` and `((0, 10), (10, 14)), (10, 14)`.
    """
    for packed in prompts:
        yield (packed.prompt,), packed.prompt
        for answer in packed.answers:
            yield (packed.prompt, answer), answer
