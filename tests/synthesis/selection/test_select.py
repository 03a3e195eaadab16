"""Selection: simple rankings, GATEAU's numbers by hand, and its readings against a model run in full."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from align.core.errors import UserError
from align.data.examples import Answer, TokenizedExample
from align.rope_tables.giraffe import Giraffe
from align.synthesis.selection import context_use
from align.synthesis.selection.context_use import answer_nll, segment_attention, segment_nlls, segments
from align.synthesis.selection.gateau import Gateau
from align.synthesis.selection.gateau_numbers import are_numbers, guidance_scores, misalignment
from align.synthesis.selection.select import ByLength, ByMargin, Score, kept_places, select_rows
from tests.synthesis.scripted import WORDS, save_model, word_tokenizer, workspace
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def context_rows(count=6):
    return [
        {
            "id": f"r{i}",
            "context": [" ".join(WORDS[i : i + 9]), " ".join(WORDS[i + 20 : i + 30 + i])],
            "question": " ".join(WORDS[i : i + 3]),
            "chosen": " ".join(WORDS[i + 5 : i + 9]),
            "rejected": WORDS[50 + i],
        }
        for i in range(count)
    ]


# ---- simple rankings


def test_places_by_rank_with_a_share_or_a_number():
    """Of five rows one has no score; 0.4 is a share of all five; equal scores keep the earlier row first."""
    scores = [Score(value, "") for value in (1.0, 3.0, None, 3.0, 2.0)]
    assert kept_places(scores, None) == {1: 1, 3: 2, 4: 3, 0: 4}
    assert kept_places(scores, 0.4) == {1: 1, 3: 2}
    assert kept_places(scores, 3) == {1: 1, 3: 2, 4: 3}
    assert kept_places(scores, 0.01) == {1: 1}
    assert kept_places(scores, 1) == {1: 1}
    assert kept_places(scores, 2) == {1: 1, 3: 2}
    assert kept_places(scores, 1.0) == {1: 1, 3: 2, 4: 3, 0: 4}


def test_length_keeps_rows_within_bounds_and_says_why(model, tmp_path):
    source = write(tmp_path / "rows.jsonl", context_rows())
    here = workspace(tmp_path, model)
    lengths = [int(score.value) for score in ByLength(of="prompt").scores(source, here)]
    assert [b - a for a, b in pairwise(lengths)] == [1] * 5  # a word more each
    selector = ByLength(of="prompt", least=lengths[1], most=lengths[4], keep=2)
    selector.check()
    assert select_rows(selector, source, tmp_path / "train.jsonl", here) == (2, 4)
    kept = read(tmp_path / "train.jsonl")
    assert [row["id"] for row in kept] == ["r3", "r4"]  # the longest two within bounds, in file order
    assert kept[1]["selection"]["rank"] == 1 and kept[1]["selection"]["by"].startswith("length(")
    assert kept[1]["selection"]["why"] == (
        f"prompt of {lengths[4]} tokens, within {lengths[1]} … {lengths[4]}; rank 1 of 6"
    )
    scores = read(tmp_path / "selection.jsonl")
    assert [entry["kept"] for entry in scores] == [False, False, False, True, True, False]
    assert "outside" in scores[0]["why"] and scores[0]["score"] is None


def test_margin_reads_the_column_or_names_the_row(model, tmp_path):
    rows = [row | {"margin": margin} for row, margin in zip(context_rows(3), (5.0, 20.0, 1), strict=True)]
    source = write(tmp_path / "rows.jsonl", rows)
    here = workspace(tmp_path, model)
    assert select_rows(ByMargin(least=2.0), source, tmp_path / "train.jsonl", here) == (2, 1)
    assert [row["id"] for row in read(tmp_path / "train.jsonl")] == ["r0", "r1"]
    with pytest.raises(UserError, match=r"bare\.jsonl:1: select=margin needs a column margin"):
        ByMargin().scores(write(tmp_path / "bare.jsonl", context_rows(1)), here)


@pytest.mark.parametrize(
    ("selector", "sentence"),
    [
        (ByLength(of="answer"), r"select\.of=answer"),
        (ByLength(least=5, most=4), r"select\.least=5 and select\.most=4"),
        (ByLength(keep=0), r"select\.keep=0"),
        (ByMargin(keep=2.5), r"select\.keep=2\.5"),
        (ByMargin(least=math.nan), r"select\.least=nan"),
        (Gateau(), r"select\.short_model is not set"),
        (Gateau("a", "b", alpha=2), r"select\.alpha=2"),
        (
            Gateau("a", "b", short_rope={"kind": "yarn"}),
            r"select\.short_rope takes the keys of model\.rope, not kind",
        ),
        (
            Gateau("a", "b", short_rope={"type": "table", "table": {"length": 2048}}),
            r"select\.short_rope\.table needs a `_target_`, as model\.rope\.table has",
        ),
        (
            Gateau("a", "b", long_rope={"type": "table", "table": Giraffe(length=0)}),
            r"length=0 is no number of tokens",
        ),
    ],
)
def test_bad_values_are_named(selector, sentence):
    with pytest.raises(UserError, match=sentence):
        selector.check()


# ---- GATEAU


def test_guidance_by_hand():
    """PPL_short (2, 4, 6) → (0, ½, 1), PPL_long (1, 3, 2) → (0, 1, ½): differences (0, −½, ½), then softmax."""
    raised = [1.0, math.exp(-0.5), math.exp(0.5)]
    expected = [value / sum(raised) for value in raised]
    found = guidance_scores(np.array([2.0, 4.0, 6.0]), np.array([1.0, 3.0, 2.0]))
    assert found == pytest.approx(expected, abs=1e-12)
    assert guidance_scores(np.array([3.0, 3.0]), np.array([1.0, 1.0])) == pytest.approx([0.5, 0.5])


def test_misalignment_by_hand():
    """Attention where perplexity is low is no misalignment; (¾, ¼) against (¼, ¾) is 1 − 6/10."""
    aligned = [0.3, 0.1]
    assert misalignment(aligned, [0.0, math.log(3)]) == pytest.approx(0.0, abs=1e-12)
    assert misalignment(aligned, [math.log(3), 0.0]) == pytest.approx(0.4)
    assert misalignment([0.0, 0.0], [1.0, 2.0]) == 1.0


def example(prompt=23, context=(3, 17), answer=5):
    rng = np.random.default_rng(0)
    return TokenizedExample(
        source="r:1",
        prompt_ids=rng.integers(8, 120, prompt),
        position_ids=np.arange(prompt),
        answers=(Answer(rng.integers(8, 120, answer), np.array([True] * (answer - 1) + [False])),),
        chunk_spans=((context[0], 9), (10, context[1])),
    )


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_attention_by_segments_equals_that_of_the_whole_row(kind, monkeypatch):
    """Answer tokens in blocks behind a cache against one eager forward of prompt and answer."""
    monkeypatch.setattr(
        "align.synthesis.selection.context_use.ATTENTION_BYTES", 4 * 2 * 4 * 28 * 2
    )  # two tokens a block
    network, row = tiny_model(kind), example()
    spans = segments(row, 4)
    assert spans == [(3, 7), (7, 11), (11, 15), (15, 17)]
    found = segment_attention(network, row, segment_tokens=4)
    assert network.config._attn_implementation == "sdpa"
    whole = tiny_model(kind)
    whole.set_attn_implementation("eager")
    ids = torch.tensor(np.concatenate([row.prompt_ids, row.answers[0].input_ids])[None])
    with torch.inference_mode():
        layers = torch.stack(whole(ids, output_attentions=True).attentions)[:, 0].double()  # [L, H, n, n]
    expected = [layers[:, :, 23:, slice(*span)].mean().item() for span in spans]
    assert found == pytest.approx(expected, rel=1e-5)


def test_perplexities_of_the_row_and_of_single_segments():
    """Each against a plain forward of exactly these tokens; the unscored last token does not count."""
    network, row = tiny_model(), example()
    answer = row.answers[0].input_ids

    def plain(prompt):
        ids = torch.tensor(np.concatenate([prompt, answer])[None])
        with torch.inference_mode():
            logs = network(ids).logits[0].log_softmax(-1)
        picked = [logs[len(prompt) - 1 + k, token].item() for k, token in enumerate(answer)]
        return -sum(picked[:4]) / 4

    assert answer_nll(network, row) == pytest.approx(plain(row.prompt_ids), rel=1e-5)
    found = segment_nlls(network, row, segment_tokens=4, batch=2)
    ids = row.prompt_ids
    expected = [plain(np.concatenate([ids[:3], ids[a:b], ids[17:]])) for a, b in segments(row, 4)]
    assert found == pytest.approx(expected, rel=1e-5)


def test_gateau_ranks_rows_and_goes_on_where_it_was_killed(model, tmp_path, monkeypatch):
    """α = 1 ranks by guidance alone, α = 0 by misalignment alone; finished rows are not read again."""
    other = tmp_path / "short"
    save_model(other)
    tiny_model(seed=3).save_pretrained(other)
    source = write(tmp_path / "rows.jsonl", context_rows())
    here = workspace(tmp_path, model)

    def ranked(alpha):
        selector = Gateau(str(other), str(model), alpha=alpha, segment_tokens=4, keep=3)
        selector.check()
        return selector.scores(source, here)

    by_guidance, by_misalignment = ranked(1.0), ranked(0.0)
    monkeypatch.setattr("align.models.loading.load_causal_lm", lambda *_, **__: pytest.fail("read again"))
    both = ranked(0.8)
    assert len({round(score.value, 12) for score in both}) == 6
    for one, two, score in zip(by_guidance, by_misalignment, both, strict=True):
        assert one.value == pytest.approx(one.details["guidance"])
        assert score.value == pytest.approx(0.8 * one.value + 0.2 * two.value)
    order = np.argsort([score.value for score in by_misalignment])
    assert (order == np.argsort([score.details["misalignment"] for score in by_misalignment])).all()
    kept, left = select_rows(
        Gateau(str(other), str(model), alpha=0.8, segment_tokens=4, keep=3),
        source,
        tmp_path / "train.jsonl",
        here,
    )
    assert (kept, left) == (3, 3)
    assert all("perplexity" in row["selection"]["why"] for row in read(tmp_path / "train.jsonl"))


def homologues(folder, **overrides):
    """A short and a long model of one family on disk."""
    long, short = save_model(folder / "long"), save_model(folder / "short")
    tiny_model(seed=3, **overrides).save_pretrained(short)
    return short, long


def test_gateau_reads_rows_in_the_tokens_of_its_own_models(model, tmp_path):
    """`model.path` has other tokens, and ids that the two models have no embedding for."""
    short, long = homologues(tmp_path)
    source = write(tmp_path / "rows.jsonl", context_rows(3))
    own = dataclasses.replace(workspace(tmp_path / "own", model), tokenizer=word_tokenizer())
    elsewhere = dataclasses.replace(workspace(tmp_path / "else", model), tokenizer=tiny_tokenizer())
    selector = Gateau(str(short), str(long), segment_tokens=4)
    assert selector.scores(source, own) == selector.scores(source, elsewhere)


def test_gateau_refuses_two_tokenizers_before_weights_load(model, tmp_path, monkeypatch):
    monkeypatch.setattr("align.models.loading.load_causal_lm", lambda *_, **__: pytest.fail("loaded"))
    short, long = homologues(tmp_path, vocab_size=40)
    source = write(tmp_path / "rows.jsonl", context_rows(6))
    here = workspace(tmp_path, model)
    selector = Gateau(str(short), str(long))
    with pytest.raises(UserError, match=r"rows\.jsonl:\d: .*the model's embedding has 40 rows"):
        selector.scores(source, here)
    with_padding = word_tokenizer()
    with_padding.add_special_tokens({"additional_special_tokens": ["<|more|>"]})
    with_padding.save_pretrained(short)  # one that the rows do not use
    tiny_model(seed=3).save_pretrained(short)
    with pytest.raises(pytest.fail.Exception, match="loaded"):
        selector.scores(source, here)
    marked = write(tmp_path / "marked.jsonl", [{"prompt": "<|more|> " * 2000, "chosen": "barbar"}])
    with pytest.raises(UserError, match=r"marked\.jsonl:1: it holds '<\|more\|>', a token that only"):
        Gateau(str(long), str(short)).scores(marked, here)
    tiny_tokenizer().save_pretrained(short)
    with pytest.raises(UserError, match=r"have different tokenizers \(\d+ tokens differ, '\.' among"):
        selector.scores(source, here)
    with pytest.raises(UserError, match=r"select\.short_model=.*none is no model folder"):
        Gateau(str(tmp_path / "none"), str(long)).check()


def test_a_row_without_a_number_has_no_rank_and_changes_no_other(tmp_path, model, monkeypatch):
    """One NaN made every score NaN, and one perplexity of NaN took the short model out of all of them."""
    short, long = homologues(tmp_path)
    rows = context_rows(5)
    source = write(tmp_path / "rows.jsonl", rows)
    fewer = write(tmp_path / "fewer.jsonl", [rows[i] for i in (0, 3, 4)])
    selector = Gateau(str(short), str(long), segment_tokens=4, keep=2)
    whole = selector.scores(fewer, workspace(tmp_path / "fewer", model))
    real_nll, real_attention = context_use.answer_nll, context_use.segment_attention

    def is_row(example, place):
        return example.source.endswith(f"rows.jsonl:{place + 1}")

    monkeypatch.setattr(context_use, "answer_nll", lambda m, e: math.nan if is_row(e, 1) else real_nll(m, e))
    monkeypatch.setattr(
        context_use,
        "segment_attention",
        lambda m, e, **k: [math.nan] * 3 if is_row(e, 2) else real_attention(m, e, **k),
    )
    here = workspace(tmp_path / "all", model)
    found = selector.scores(source, here)
    assert [found[i] for i in (0, 3, 4)] == whole
    assert found[1].value is None and found[2].value is None and "no number" in found[1].why
    assert set(kept_places(found, 2)) <= {0, 3, 4}
    assert "2 of 5 rows got no number" in here.console.file.getvalue()
    monkeypatch.setattr(context_use, "answer_nll", lambda *_: math.inf)
    with pytest.raises(UserError, match="gave no number for any row"):
        selector.scores(fewer, workspace(tmp_path / "none", model))


def test_what_is_a_number():
    whole = {"nll": 700.0, "attention": [0.1], "segment_nll": [800.0]}
    assert are_numbers({"nll": 1.0}, whole)
    assert not are_numbers({"nll": 710.0}, whole)  # e^710 is beyond all numbers
    assert not are_numbers({"nll": 1.0}, whole | {"segment_nll": [math.inf]})


def test_gateau_wants_a_context(tmp_path, model):
    source = write(tmp_path / "rows.jsonl", [{"prompt": WORDS[0], "chosen": WORDS[1], "rejected": WORDS[2]}])
    # A bare prompt shorter than data.keep_tail is all question.
    with pytest.raises(UserError, match=r"rows\.jsonl:1: select=gateau needs rows with a context"):
        Gateau(str(model), str(model)).scores(source, workspace(tmp_path, model))
