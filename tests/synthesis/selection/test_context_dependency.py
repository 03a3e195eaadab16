"""`select=context_dependency`: its golden values, a model run in full, whose tokens count, and the mark."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from align import synthesize
from align.core.errors import UserError
from align.data.settings import DataSettings
from align.data.sources import open_sources, read_rows
from align.data.tokens import ExampleTokenizer
from align.synthesis.selection import measuring
from align.synthesis.selection.context_dependency import ContextDependency, dependency
from align.synthesis.selection.context_use import answer_attention, on_columns
from align.synthesis.selection.marking import marked
from align.synthesis.selection.select import read_texts, select_rows
from align.synthesis.selection.user_texts import UserTexts, tokenized_turns
from tests.generation.helpers import KilledError
from tests.synthesis.scripted import WORDS, save_model, word_tokenizer, workspace
from tests.synthesis.selection.test_select import context_rows, example
from tests.tiny import save_tiny, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- numbers

# Two heads at two answer tokens, of which the second sees one token more; columns 1 and 2 are the user's.
HEADS = [
    [[0.10, 0.30, 0.25, 0.20, 0.15, 0.0], [0.20, 0.10, 0.15, 0.25, 0.20, 0.10]],
    [[0.40, 0.05, 0.10, 0.25, 0.20, 0.0], [0.05, 0.35, 0.30, 0.10, 0.15, 0.05]],
]


def test_golden_values():
    """Sums 0.55 and 0.25, 0.15 and 0.65: best head a token 0.6, best head of the row 0.4."""
    columns = torch.tensor([False, True, True, False, False, False])
    sums = on_columns(torch.tensor(HEADS, dtype=torch.float64)[None], columns).numpy()
    np.testing.assert_allclose(sums, [[0.55, 0.25], [0.15, 0.65]], atol=1e-12)
    assert dependency(sums, "per_token") == pytest.approx(0.6, abs=1e-12)
    assert dependency(sums, "per_row") == pytest.approx(0.4, abs=1e-12)


def test_what_left_a_sliding_window_is_paid_nothing():
    """A layer that kept the last four of six tokens: column 1 is gone, 2 is the first of what is there."""
    kept = torch.tensor(HEADS, dtype=torch.float64)[None, ..., 2:]
    columns = torch.tensor([False, True, True, False, False, False])
    np.testing.assert_allclose(on_columns(kept, columns).numpy(), [[0.25, 0.15], [0.10, 0.30]], atol=1e-12)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_attention_equals_that_of_the_whole_row(kind, monkeypatch):
    """Answer tokens in blocks behind a cache against one eager forward of prompt and answer."""
    monkeypatch.setattr("align.synthesis.selection.context_use.ATTENTION_BYTES", 4 * 2 * 4 * 28 * 2)
    network, row = tiny_model(kind), example()
    found = answer_attention(network, row, layer=1)
    whole = tiny_model(kind)
    whole.set_attn_implementation("eager")
    ids = torch.tensor(np.concatenate([row.prompt_ids, row.answers[0].input_ids])[None])
    with torch.inference_mode():
        weights = whole(ids, output_attentions=True).attentions[1][0, :, 23:].double()  # [H, 5, 28]
    expected = weights[..., 3:9].sum(-1) + weights[..., 10:17].sum(-1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


def test_attention_in_a_layer_with_a_sliding_window():
    """The same where the cache keeps the last eight tokens alone."""
    network, row = tiny_model("mistral", sliding_window=8), example()
    found = answer_attention(network, row, layer=1)
    whole = tiny_model("mistral", sliding_window=8)
    whole.set_attn_implementation("eager")
    ids = torch.tensor(np.concatenate([row.prompt_ids, row.answers[0].input_ids])[None])
    with torch.inference_mode():
        weights = whole(ids, output_attentions=True).attentions[1][0, :, 23:].double()
    np.testing.assert_allclose(
        found, (weights[..., 3:9].sum(-1) + weights[..., 10:17].sum(-1)).numpy(), atol=1e-6
    )


# ---- whose tokens count


def talk(*turns):
    return {
        "messages": [
            {"role": role, "content": text}
            for request, answer in turns
            for role, text in (("user", request), ("assistant", answer))
        ]
    }


def counted(tmp_path, row):
    """What counts as the user's, in words, of each turn."""
    tokenizer = word_tokenizer()
    (found,) = (text for _, text in read_texts(write(tmp_path / "row.jsonl", [row])))
    turns = tokenized_turns(found, UserTexts(tokenizer, DataSettings(), chunk_tokens=512))
    return [
        " ".join(tokenizer.decode(turn.prompt_ids[slice(*span)]) for span in turn.chunk_spans)
        for turn in turns
    ]


def test_the_users_tokens_are_all_that_they_wrote_and_nothing_of_the_template(tmp_path):
    a, b, c, d, e = WORDS[:5]
    assert counted(tmp_path, talk((f"{a} {b}", c), (d, e))) == [f"{a} {b}", f"{a} {b} {d}"]
    row = {"context": [a, b], "question": c, "chosen": d}
    assert counted(tmp_path, row)[0].split() == [a, b, c]
    prompt = [
        {"role": "system", "content": a},
        {"role": "user", "content": b},
        {"role": "assistant", "content": c},
        {"role": "user", "content": d},
    ]
    assert counted(tmp_path, {"prompt": prompt, "chosen": e}) == [f"{b} {d}"]


def test_turns_apart_are_read_as_the_whole_conversation_is(tmp_path):
    """Prompt and answer of the last turn are the tokens of the whole row."""
    a, b, c, d, e = WORDS[:5]
    tokenizer = word_tokenizer()
    for row in (
        talk((f"{a} {b}", c), (d, e)),
        {"context": [a, b], "questions": [c, d], "chosens": [a, e], "rejecteds": [b, b]},
    ):
        (found,) = (text for _, text in read_texts(write(tmp_path / "row.jsonl", [row])))
        whole = ExampleTokenizer(tokenizer, DataSettings(), chunk_tokens=512)(found)
        last = tokenized_turns(found, UserTexts(tokenizer, DataSettings(), chunk_tokens=512))[-1]
        expected = np.concatenate([whole.prompt_ids, whole.answers[0].input_ids])
        np.testing.assert_array_equal(np.concatenate([last.prompt_ids, last.answers[0].input_ids]), expected)


def test_scores_of_a_conversation_are_those_of_its_turns(model, tmp_path):
    a, b, c, d, e = WORDS[:5]
    rows = [talk((f"{a} {b}", c), (d, e)), talk((f"{a} {b}", c))]
    source = write(tmp_path / "rows.jsonl", rows)
    selector = ContextDependency(str(model), least=None)
    selector.check()
    both, first = selector.scores(source, workspace(tmp_path, model))
    assert both.details["turn_1"] == pytest.approx(first.value, rel=1e-6)
    assert both.value == pytest.approx((both.details["turn_1"] + both.details["turn_2"]) / 2)
    assert "mean of 2 turns" in both.why and 0 < first.value < 1


def test_the_context_alone(model, tmp_path):
    """Attention to the context is a part of that to all that the user wrote; a row without one has no score."""
    rows = [*context_rows(3), {"prompt": WORDS[0], "chosen": WORDS[1]}]
    source = write(tmp_path / "rows.jsonl", rows)
    whole = ContextDependency(str(model), least=None, heads="per_row").scores(
        source, workspace(tmp_path / "user", model)
    )
    part = ContextDependency(str(model), least=None, heads="per_row", tokens="context").scores(
        source, workspace(tmp_path / "context", model)
    )
    assert all(one.value <= two.value + 1e-9 for one, two in zip(part[:3], whole[:3], strict=True))
    assert part[3].value is None and part[3].why == "nothing in it counts as context"
    assert whole[3].value is not None


def test_a_row_beyond_the_window_is_left_out(tmp_path):
    folder = tmp_path / "short"
    save_tiny(folder, max_position_embeddings=64)
    rows = [{"prompt": "w9 " * count, "chosen": "w10 w11"} for count in (20, 80)]
    found = ContextDependency(str(folder), least=None).scores(
        write(tmp_path / "rows.jsonl", rows), workspace(tmp_path, folder)
    )
    assert found[0].value is not None and found[1].value is None
    assert found[1].why == "its 83 tokens exceed the model's window of 64"


# ---- the mark


MARKED = {
    "text": ({"prompt": "Why", "chosen": "So", "rejected": "No"}, {"prompt": "Why [IND]"}),
    "messages": (
        {"prompt": [{"role": "user", "content": "Why"}], "chosen": "So"},
        {"prompt": [{"role": "user", "content": "Why [IND]"}]},
    ),
    "context": (
        {"context": ["c"], "question": "Why", "chosen": "So"},
        {"context": ["c"], "question": "Why [IND]"},
    ),
    "longreward": (
        {"context": "c", "query": "Why", "win_response": "So", "lose_response": "No"},
        {"query": "Why [IND]"},
    ),
    "alpaca": ({"instruction": "Do", "input": "this", "output": "So"}, {"input": "this [IND]"}),
    "sharegpt": (
        {
            "conversations": [{"from": "human", "value": "Why"}],
            "chosen": {"from": "gpt", "value": "So"},
            "rejected": {"from": "gpt", "value": "No"},
        },
        {"conversations": [{"from": "human", "value": "Why [IND]"}]},
    ),
    "parts": (
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Why"}]}], "chosen": "So"},
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Why [IND]"}]}]},
    ),
    "implicit": (
        {
            "chosen": [{"role": "user", "content": "Why"}, {"role": "assistant", "content": "So"}],
            "rejected": [{"role": "user", "content": "Why"}, {"role": "assistant", "content": "No"}],
        },
        {
            "chosen": [{"role": "user", "content": "Why [IND]"}, {"role": "assistant", "content": "So"}],
            "rejected": [{"role": "user", "content": "Why [IND]"}, {"role": "assistant", "content": "No"}],
        },
    ),
}


@pytest.mark.parametrize("name", MARKED)
def test_the_mark_ends_the_users_text_in_every_layout(name):
    row, changed = MARKED[name]
    expected = {**row, **changed}
    assert marked(json.loads(json.dumps(row)), source="r:1", turns=[0], mark="[IND]") == expected


def test_the_mark_goes_to_its_own_turn():
    row = talk(("a", "b"), ("c", "d"), ("e", "f"))
    found = marked(row, source="r:1", turns=[1, 2], mark="[IND]")
    assert [one["content"] for one in found["messages"]] == ["a", "b", "c [IND]", "d", "e [IND]", "f"]
    several = {"context": "x", "questions": ["a", "b"], "chosens": ["1", "2"], "rejecteds": ["3", "4"]}
    assert marked(several, source="r:1", turns=[1], mark="!")["questions"] == ["a", "b !"]
    history = [
        {"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))
    ]
    prompt = marked({"prompt": history, "chosen": "d"}, source="r:1", turns=[0], mark="!")["prompt"]
    assert [one["content"] for one in prompt] == ["a", "b", "c !"]


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "Is it? Yes", "rejected": "Is it? No"},
        {"prompt": "<|im_start|>user\nWhy<|im_end|>\n<|im_start|>assistant\n", "chosen": "So"},
    ],
    ids=["implicit text", "rendered"],
)
def test_a_layout_without_a_place_for_the_mark_is_refused(row):
    with pytest.raises(UserError, match=r"r:1: select\.mark has no place in a row of this layout"):
        marked(row, source="r:1", turns=[0], mark="[IND]")


def test_marked_rows_are_all_kept_and_say_why(model, tmp_path):
    source = write(tmp_path / "rows.jsonl", context_rows(6))
    here = workspace(tmp_path, model)
    plain = ContextDependency(str(model), least=None).scores(source, here)
    middle = sorted(score.value for score in plain)[3]
    selector = ContextDependency(str(model), least=middle, mark="[IND]")
    selector.check()
    assert select_rows(selector, source, tmp_path / "train.jsonl", here) == (6, 0)
    for row, score in zip(read(tmp_path / "train.jsonl"), plain, strict=True):
        enough = score.value >= middle
        assert row["question"].endswith(" [IND]") == enough
        assert row["selection"]["why"].split(";")[0].endswith("marked [IND]") == enough
        assert row["selection"]["details"]["context_dependency"] == pytest.approx(score.value)
    fewer = ContextDependency(str(model), least=middle)
    assert select_rows(fewer, source, tmp_path / "fewer.jsonl", here) == (3, 3)


# ---- the command


def words(model, tmp_path, output, *more):
    source = write(tmp_path / "rows.jsonl", context_rows(6))
    return [
        *("pipeline=rows", f"pipeline.path={source}", "select=context_dependency", f"model.path={model}"),
        *(f"output={output}", *more),
    ]


def test_a_killed_run_goes_on_and_ends_alike(model, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    synthesize(*words(model, tmp_path, whole, "select.least=0"))
    append = measuring.Measurements.append
    left = iter([None] * 3)

    def killed(self, group):
        if next(left, "") == "":
            raise KilledError
        append(self, group)

    monkeypatch.setattr(measuring.Measurements, "append", killed)
    with pytest.raises(KilledError):
        synthesize(*words(model, tmp_path, broken, "select.least=0"))
    monkeypatch.setattr(measuring.Measurements, "append", append)
    ledger = broken / "work" / "context_dependency.jsonl"
    assert len(read(ledger)) == 3 and not (broken / "train.jsonl").exists()
    before = ledger.read_text()
    synthesize(*words(model, tmp_path, broken, "select.least=0"))
    assert ledger.read_text().startswith(before) and len(read(ledger)) == 6
    assert (broken / "train.jsonl").read_text() == (whole / "train.jsonl").read_text()
    assert "context_dependency" in (whole / "README.md").read_text()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["select.model=null"], r"select\.model is not set"),
        (["select.layer=2"], r"select\.layer=2: .* has the layers 0 … 1"),
        (["select.layer=-1"], r"select\.layer=-1 must be 0 or more"),
        (["select.tokens=all"], r"select\.tokens=all"),
        (["select.heads=mean"], r"select\.heads=mean"),
        (["select.least=1.5"], r"select\.least=1\.5 must lie in \[0, 1\]"),
        (["select.mark='a b'"], r"select\.mark names 'a b'"),
        (["select.mark=X", "select.least=null"], r"select\.mark goes to rows with select\.least"),
    ],
)
def test_careless_values_are_refused_before_weights_load(model, tmp_path, monkeypatch, more, sentence):
    monkeypatch.setattr("align.models.loading.load_causal_lm", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UserError, match=sentence):
        synthesize(*words(model, tmp_path, tmp_path / "out", *more))


def test_every_row_has_an_entry_in_the_file_of_scores(model, tmp_path):
    source = write(tmp_path / "rows.jsonl", [*context_rows(2), *context_rows(2)])
    select_rows(
        ContextDependency(str(model), least=0.0), source, tmp_path / "t.jsonl", workspace(tmp_path, model)
    )
    entries = read(tmp_path / "selection.jsonl")
    assert len(entries) == 4 == len(list(read_rows(open_sources(str(source)).train)))
    assert [one["score"] for one in entries[:2]] == [one["score"] for one in entries[2:]]
    assert len(read(tmp_path / "work" / "context_dependency.jsonl")) == 2  # equal rows are read once
