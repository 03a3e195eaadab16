"""Who owns what, without processes: partitions, balance, scored triples, head shares, and the attention of shards."""

from __future__ import annotations

import ast
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import align.longseq
from align.core.errors import UserError
from align.longseq import Layout, PackedPrompt, pack
from align.longseq.attention import attend, attend_plain, prepare
from align.longseq.parallel import choose_exchange, make_groups, start_parallel
from align.longseq.sharding import (
    _slice_sizes,
    balanced_shards,
    count_tokens,
    even_shards,
    shard_row,
    token_index,
)
from align.longseq.ulysses import share_heads
from tests.longseq.plain import make_example

CPU = torch.device("cpu")
ROWS = st.lists(
    st.tuples(st.integers(1, 60), st.lists(st.integers(1, 40), min_size=0, max_size=4)),
    min_size=1,
    max_size=4,
)
DEGREES = st.integers(1, 9)


def layout_of(rows: list[tuple[int, list[int]]]) -> Layout:
    """Prompts with their answers, one after the other."""
    prompts, offset = [], 0
    for prompt, answers in rows:
        bounds = np.cumsum([offset, prompt, *answers]).tolist()
        spans = list(pairwise(bounds))
        prompts.append(PackedPrompt(spans[0], tuple(spans[1:])))
        offset = bounds[-1]
    return Layout(tuple(prompts))


def keys_seen(layout: Layout) -> list[list[int]]:
    """For each token the row indices that it attends, straight from the definition."""
    seen = []
    for packed in layout.prompts:
        prompt = list(range(*packed.prompt))
        seen += [prompt[: i + 1] for i in range(len(prompt))]
        for start, stop in packed.answers:
            seen += [prompt + list(range(start, i + 1)) for i in range(start, stop)]
    return seen


def scored_tokens(layout: Layout) -> torch.Tensor:
    """The tokens that predict an answer's: its own but the last, and the prompt's last, which repeats."""
    predictors = [
        token
        for packed in layout.prompts
        for start, stop in packed.answers
        for token in (packed.prompt[1] - 1, *range(start, stop - 1))
    ]
    return torch.tensor(predictors, dtype=torch.long)


@given(ROWS, DEGREES)
def test_every_token_has_one_owner_and_owners_are_even(rows, degree):
    layout = layout_of(rows)
    for shards in (
        balanced_shards(layout, degree),
        even_shards(layout.length, scored_tokens(layout), degree),
    ):
        assert len(shards) == degree
        owned = [token_index(spans, CPU) for spans in shards]
        assert sorted(torch.cat(owned).tolist()) == list(range(layout.length))
        assert all(own.tolist() == sorted(own.tolist()) for own in owned)
        counts = [count_tokens(spans) for spans in shards]
        assert counts == [len(own) for own in owned]
        assert max(counts) - min(counts) <= 1


@given(st.lists(st.booleans(), min_size=1, max_size=60), DEGREES)
def test_even_shards_share_the_scored_tokens(scores, degree):
    """Whatever is scored (turns of a conversation lie within an answer), both counts are even to within one."""
    predictor = torch.tensor(scores).nonzero().flatten()
    shards = even_shards(len(scores), predictor.repeat(2), degree)
    owned = [token_index(spans, CPU).tolist() for spans in shards]
    assert sorted(token for own in owned for token in own) == list(range(len(scores)))
    assert all(own == sorted(own) for own in owned)
    for counts in ([len(own) for own in owned], [sum(scores[i] for i in own) for own in owned]):
        assert max(counts) - min(counts) <= 1


def test_even_shards_of_one_prompt():
    """10 tokens of prompt, the last scored, and two answers of 3, of which 2 are: 5 scored of 16, on 2 ranks."""
    layout = layout_of([(10, [3, 3])])
    assert scored_tokens(layout).unique().tolist() == [9, 10, 11, 13, 14]
    assert even_shards(16, scored_tokens(layout), 2) == (((0, 6), (9, 11)), ((6, 9), (11, 16)))


@given(ROWS, DEGREES)
def test_balanced_shards_share_the_causal_work(rows, degree):
    """Work is the number of keys that a rank's queries see; the docstring's bound is 3·(P + L) a span."""
    layout = layout_of(rows)
    seen = [len(keys) for keys in keys_seen(layout)]
    work = [
        sum(seen[i] for i in token_index(spans, CPU).tolist()) for spans in balanced_shards(layout, degree)
    ]
    bound = sum(3 * prompt + sum(3 * (prompt + answer) for answer in answers) for prompt, answers in rows)
    assert max(abs(own - sum(work) / degree) for own in work) < bound


@pytest.mark.parametrize("degree", [1, 2, 3, 8])
def test_left_over_tokens_go_to_the_rank_with_the_fewest(degree):
    """Against the definition: each goes to the slice whose rank owns the fewest so far, the first one among equals."""
    random = np.random.default_rng(degree)
    for _ in range(100):
        length, counts = int(random.integers(0, 6 * degree)), random.integers(0, 4, degree).tolist()
        base, left = divmod(length, 2 * degree)
        expected, owned, free = [base] * (2 * degree), list(counts), set(range(2 * degree))
        for _ in range(left):
            place = min(free, key=lambda place: (owned[min(place, 2 * degree - 1 - place)], place))
            free.remove(place)
            expected[place] += 1
            owned[min(place, 2 * degree - 1 - place)] += 1
        assert _slice_sizes(length, counts) == expected


def test_balance_of_a_divisible_row_is_exact_and_that_of_consecutive_shards_is_not():
    """P = 64, L = 16, 32 on 4 ranks (2n = 8 divides all): equal work; consecutive, a prompt alone gives 2 − 1/n.

    The last of 4 quarters of a prompt of P tokens sees P²/4·(3/4 + 1/8) = 7/32·P² of P²/2 keys in all,
    7/4 of the mean, up to the diagonal's P/2.
    """
    layout = layout_of([(64, [16, 32])])
    seen = [len(keys) for keys in keys_seen(layout)]
    work = {sum(seen[i] for i in token_index(spans, CPU).tolist()) for spans in balanced_shards(layout, 4)}
    assert len(work) == 1
    last = sum(range(1024 - 256 + 1, 1024 + 1))
    assert even_shards(1024, torch.empty(0, dtype=torch.long), 4)[-1] == ((768, 1024),)
    assert last / (sum(range(1, 1025)) / 4) == pytest.approx(7 / 4, rel=1e-3)


@pytest.mark.parametrize("way", [attend_plain, partial(attend, kernel="cpu")], ids=["plain", "merged"])
@given(rows=ROWS, degree=DEGREES, seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_shards_of_queries_attend_what_the_definition_says(way, rows, degree, seed):
    """Each rank's output, put back in row order, equals softmax attention with the mask written out."""
    layout = layout_of(rows)
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, 4, layout.length, 8, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 1, 2, layout.length, 8, generator=generator, dtype=torch.float64)
    mask = torch.zeros(layout.length, layout.length, dtype=torch.bool)
    for i, keys in enumerate(keys_seen(layout)):
        mask[i, keys] = True
    whole_key, whole_value = (states.repeat_interleave(2, dim=1) for states in (key, value))
    scores = (query @ whole_key.transpose(2, 3) / 8**0.5).masked_fill(~mask, -torch.inf)
    expected = scores.softmax(-1) @ whole_value
    output = torch.full_like(expected, torch.nan)
    for spans in balanced_shards(layout, degree):
        own = token_index(spans, CPU)
        run = partial(way, layout=prepare(layout, queries=spans))
        output[:, :, own] = run(query[:, :, own], key, value)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("degree", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("kind", ["balanced", "even"])
def test_scored_triples_go_to_the_owner_of_the_predictor(kind, degree):
    """Over all shards each triple appears once, still pointing at the token that predicts it."""
    rng = np.random.default_rng(0)
    row = pack(
        [make_example(rng, prompt=11, answers=[4, 6]), make_example(rng, prompt=6, answers=[1, 2])]
    ).rows[0]
    even = even_shards(row.layout.length, row.predictor, degree)
    shards = balanced_shards(row.layout, degree) if kind == "balanced" else even
    found, context = [], []
    for spans in shards:
        shard = shard_row(row, spans)
        own = token_index(spans, CPU)
        assert shard.input_ids.shape == shard.position_ids.shape == (1, len(own) + 1)
        assert torch.equal(shard.input_ids[0, :-1], row.input_ids[0, own])
        assert torch.equal(shard.position_ids[0, :-1], row.position_ids[0, own])
        assert shard.position_ids.max() == row.position_ids.max()
        found += zip(own[shard.predictor].tolist(), shard.target.tolist(), shard.answer.tolist(), strict=True)
        context += zip(
            own[shard.context_predictor].tolist(),
            shard.context_target.tolist(),
            shard.context_prompt.tolist(),
            strict=True,
        )
    wanted = zip(row.predictor.tolist(), row.target.tolist(), row.answer.tolist(), strict=True)
    assert sorted(found) == sorted(wanted)
    wanted = zip(
        row.context_predictor.tolist(), row.context_target.tolist(), row.context_prompt.tolist(), strict=True
    )
    assert sorted(context) == sorted(wanted)


@given(st.integers(1, 8), st.integers(1, 8), DEGREES)
def test_heads_are_shared_completely_and_evenly(kv_heads, queries_per_kv, degree):
    heads = kv_heads * queries_per_kv
    shares = share_heads(heads, kv_heads, degree)
    assert [head for share in shares for head in range(*share.query)] == list(range(heads))
    assert max(share.query[1] - share.query[0] for share in shares) == -(-heads // degree)
    for share in shares:
        needed = {head // queries_per_kv for head in range(*share.query)}
        assert set(range(*share.kv)) == needed
        # Within a run every KV head serves equally many query heads: its own ones, in order.
        served = [
            (share.query[0] + a + i, share.kv[0] + c + i // ((b - a) // (d - c)))
            for (a, b), (c, d) in share.runs(queries_per_kv)
            for i in range(b - a)
        ]
        assert served == [(head, head // queries_per_kv) for head in range(*share.query)]


def test_head_shares_of_known_models():
    """9 on 2: 5 and 4 heads, KV head 1 on both; 28 on 8: at most 4; 3 on 4: one rank without any."""
    assert [share.query for share in share_heads(9, 3, 2)] == [(0, 5), (5, 9)]
    assert [share.kv for share in share_heads(9, 3, 2)] == [(0, 2), (1, 3)]
    assert {share.query[1] - share.query[0] for share in share_heads(28, 4, 8)} == {3, 4}
    assert [share.query[1] - share.query[0] for share in share_heads(3, 3, 4)] == [1, 1, 0, 1]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "degree", "ratio"), [(9, 3, 2, 1.11), (28, 4, 8, 1.14), (7, 1, 4, 1.14)]
)
def test_ulysses_is_as_unbalanced_as_its_docstring_says(heads, kv_heads, degree, ratio):
    """Every head has the same causal work, so a rank's work is its number of heads times one head's."""
    layout = layout_of([(64, [16, 32]), (9, [5])])
    of_a_head = sum(len(keys) for keys in keys_seen(layout))
    work = [of_a_head * (share.query[1] - share.query[0]) for share in share_heads(heads, kv_heads, degree)]
    assert max(work) / (sum(work) / degree) == pytest.approx(ratio, abs=0.005)


def test_nothing_here_reads_the_training_mode():
    """accelerate's own sequence parallelism switches itself off in evaluation mode, and is silently wrong then."""
    for path in sorted(Path(align.longseq.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Attribute) and node.attr == "training"), f"{path}:{node.lineno}"


def test_groups_are_consecutive_ranks():
    assert make_groups(6, 2) == ((0, 1), (2, 3), (4, 5))
    assert make_groups(4, 1) == ((0,), (1,), (2,), (3,))


@pytest.mark.parametrize("degree", [0, 3, 8])
def test_a_degree_that_does_not_divide_the_world_is_refused(degree):
    with pytest.raises(
        UserError, match=rf"parallel.degree={degree} does not divide the 4 processes .*1, 2, 4"
    ):
        make_groups(4, degree)


def test_settings_of_one_process():
    assert start_parallel("none", 1) is None
    assert start_parallel("gather", 1) is None
    with pytest.raises(UserError, match=r"parallel\.kind=ring is not known"):
        start_parallel("ring", 2)
    with pytest.raises(UserError, match="needs an exchange"):
        start_parallel("none", 2)
    with pytest.raises(UserError, match="does not divide the 1 process "):
        start_parallel("gather", 2)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "degree", "length", "kind"),
    [
        (32, 8, 2, 32768, "gather"),  # few KV heads, both balanced: 0.4 × the traffic
        (32, 8, 8, 32768, "ulysses"),  # 1.6 × the traffic against heads that divide
        (32, 32, 4, 8192, "ulysses"),  # multi-head attention: 4 times as many KV elements
        (28, 4, 8, 131072, "gather"),  # 4 heads where 3.5 are the mean, and attention is nearly everything
        (9, 3, 16, 65536, "gather"),  # more ranks than heads, and a long row
    ],
)
def test_choice_of_exchange(heads, kv_heads, degree, length, kind):
    """From the docstring's formulas, e.g. 32/8 on 2: gather receives 2·8·T, ulysses sends T/2·(2·32 + 2·8)."""
    chosen, reason = choose_exchange(heads=heads, kv_heads=kv_heads, degree=degree, length=length)
    assert chosen == kind
    assert reason.startswith(
        f"parallel={kind}, because for {heads} query and {kv_heads} KV heads on {degree}"
    )
