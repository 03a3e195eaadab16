"""`select=reference_logp`: each model's own tokens and template, the mean over models, and rows that are alike."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from align import synthesize, train
from align.core.errors import UserError
from align.synthesis.selection import measuring
from align.synthesis.selection.reference_logp import ReferenceLogp
from align.synthesis.selection.select import Score, select_rows
from tests.generation.helpers import KilledError
from tests.synthesis.scripted import WORDS, save_model, workspace
from tests.tiny import save_tiny

OTHER_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}\n{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models of different tokens and chat templates: of the second every made-up word is unknown."""
    first = save_model(tmp_path_factory.mktemp("first"))
    second = tmp_path_factory.mktemp("second")
    save_tiny(second, "qwen3")
    tokenizer = AutoTokenizer.from_pretrained(second)
    tokenizer.chat_template = OTHER_TEMPLATE
    tokenizer.save_pretrained(second)
    return first, second


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows(count=5):
    return [
        {
            "id": f"r{i}",
            "prompt": [{"role": "user", "content": f"{WORDS[i]} w{20 + i}"}],
            "chosen": f"{WORDS[i + 5]} w{40 + i} {WORDS[i + 9]}",
            "rejected": WORDS[i + 20],
        }
        for i in range(count)
    ]


def by_hand(folder, row):
    """The mean over the answer and its end of tokens alone, with everything rendered by the tokenizer itself."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = tokenizer(row["chosen"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([before + answer])
    with torch.inference_mode():
        logps = model(ids).logits[0].double().log_softmax(-1)
    picked = [logps[len(before) - 1 + k, token].item() for k, token in enumerate(answer)]
    return sum(picked) / len(picked)


def test_means_are_those_of_each_models_own_tokens(folders, tmp_path):
    source = write(tmp_path / "rows.jsonl", rows())
    selector = ReferenceLogp([str(folder) for folder in folders])
    selector.check()
    for row, score in zip(rows(), selector.scores(source, workspace(tmp_path, folders[0])), strict=True):
        expected = [by_hand(folder, row) for folder in folders]
        assert score.details["mean_logp_1"] == pytest.approx(expected[0], abs=1e-5)
        assert score.details["mean_logp_2"] == pytest.approx(expected[1], abs=1e-5)
        assert score.details["mean_logp"] == score.value == pytest.approx(sum(expected) / 2, abs=1e-5)
        assert score.why == f"log-prob {score.value:.3f} a token, mean of 2 models"


def test_the_docstrings_numbers():
    """−6 nats over 4 tokens, −10 over 5: −1.5 and −2.0, together −1.75."""
    found = ReferenceLogp(["a", "b"], least=-1.8)._score([-6 / 4, -10 / 5])
    details = {"mean_logp": -1.75, "mean_logp_1": -1.5, "mean_logp_2": -2.0}
    assert found == Score(-1.75, "log-prob -1.750 a token, mean of 2 models ≥ -1.8", details)
    assert ReferenceLogp(["a", "b"], least=-1.7)._score([-1.5, -2.0]).value is None


def test_rows_of_one_id_and_equal_rows_keep_their_own_numbers(folders, tmp_path):
    """Joined by id, the numbers of rows that share one would be pasted to each other."""
    four = rows(4)
    shared = [row | {"id": "same"} for row in (four[2], four[0], four[2], four[3])]
    here = workspace(tmp_path, folders[0])
    selector = ReferenceLogp([str(folders[0])])
    alone = selector.scores(write(tmp_path / "alone.jsonl", four), here)
    found = selector.scores(write(tmp_path / "shared.jsonl", shared), here)
    assert [score.value for score in found] == [alone[i].value for i in (2, 0, 2, 3)]
    assert len(read(tmp_path / "work" / "reference_logp-1.jsonl")) == 4


def test_the_likeliest_share_is_kept_with_its_column(folders, tmp_path):
    source = write(tmp_path / "rows.jsonl", rows(5))
    selector = ReferenceLogp([str(folders[0])], keep=0.4)
    here = workspace(tmp_path, folders[0])
    values = [score.value for score in selector.scores(source, here)]
    assert select_rows(selector, source, tmp_path / "train.jsonl", here) == (2, 3)
    kept = read(tmp_path / "train.jsonl")
    best = sorted(values)[-2:]
    assert sorted(row["selection"]["details"]["mean_logp"] for row in kept) == best


def test_a_row_beyond_one_models_window_or_without_a_number_is_left_out(folders, tmp_path, monkeypatch):
    short = tmp_path / "short"
    save_tiny(short, max_position_embeddings=32)
    long_row = {"prompt": "w9 " * 40, "chosen": "w10"}
    source = write(tmp_path / "rows.jsonl", [*rows(1), long_row])
    found = ReferenceLogp([str(folders[0]), str(short)]).scores(source, workspace(tmp_path, folders[0]))
    assert found[0].value is not None and found[1].value is None
    assert found[1].why == f"its 42 tokens exceed the window of {short}, 32"
    monkeypatch.setattr("align.synthesis.selection.context_use.answer_nll", lambda *_: float("nan"))
    (silent,) = ReferenceLogp([str(short)]).scores(
        write(tmp_path / "one.jsonl", rows(1)), workspace(tmp_path / "nan", folders[0])
    )
    assert silent.value is None and silent.why == f"no number: {short} gave NaN, or no probability at all"


def words(folders, tmp_path, output, *more):
    source = write(tmp_path / "rows.jsonl", rows())
    return [
        *("pipeline=rows", f"pipeline.path={source}", "select=reference_logp", f"model.path={folders[0]}"),
        *(f"select.models=[{folders[0]},{folders[1]}]", f"output={output}", *more),
    ]


def test_a_killed_run_goes_on_with_the_model_it_was_at(folders, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    synthesize(*words(folders, tmp_path, whole))
    append = measuring.Measurements.append
    left = iter([None] * 7)  # all five rows of the first model and two of the second

    def killed(self, group):
        if next(left, "") == "":
            raise KilledError
        append(self, group)

    monkeypatch.setattr(measuring.Measurements, "append", killed)
    with pytest.raises(KilledError):
        synthesize(*words(folders, tmp_path, broken))
    monkeypatch.setattr(measuring.Measurements, "append", append)
    synthesize(*words(folders, tmp_path, broken))
    assert [len(read(broken / "work" / f"reference_logp-{i}.jsonl")) for i in (1, 2)] == [5, 5]
    assert (broken / "train.jsonl").read_text() == (whole / "train.jsonl").read_text()
    assert read(whole / "train.jsonl")[0]["selection"]["details"].keys() == {
        *("mean_logp", "mean_logp_1", "mean_logp_2")
    }


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["select.models=[]"], r"select\.models is not set"),
        (["select.models=[a/b,a/b]"], r"select\.models names a/b twice"),
        (["select.models=[no/such/place]"], r"select\.models=no/such/place is no model folder"),
        (["select.least=0.5"], r"select\.least=0\.5 must be 0 or less"),
        (["select.keep=0"], r"select\.keep=0"),
        (["select.device=tpu"], r"select\.device=tpu"),
    ],
)
def test_careless_values_are_refused_before_weights_load(folders, tmp_path, monkeypatch, more, sentence):
    monkeypatch.setattr("align.models.loading.load_causal_lm", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UserError, match=sentence):
        synthesize(*words(folders, tmp_path, tmp_path / "out", *more))


def test_poft_trains_on_the_column(folders, tmp_path):
    """`data.numbers` leads into `selection.details`: the first step's loss is that of the rows' own numbers."""
    out = tmp_path / "rows"
    synthesize(*words(folders, tmp_path, out, f"select.models=[{folders[0]}]"))
    policy = {row["id"]: by_hand(folders[1], row) for row in rows()}
    margins = [
        policy[row["id"]] - row["selection"]["details"]["mean_logp"] for row in read(out / "train.jsonl")
    ]
    expected = sum(math.log1p(math.exp(-margin)) for margin in margins) / len(margins)
    train(
        *("method=poft_columns", "data.numbers={aligned_logp: selection.details.mean_logp}"),
        *(f"data.path={out / 'train.jsonl'}", f"model.path={folders[1]}", "model.dtype=float32"),
        *("data.eval_size=0", "trainer.use_cpu=true", "trainer.max_steps=1", "trainer.save_steps=1"),
        *("trainer.per_device_train_batch_size=5", "trainer.gradient_accumulation_steps=1"),
        f"output={tmp_path / 'run'}",
    )
    state = json.loads((tmp_path / "run" / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["log_history"][0]["loss"] == pytest.approx(expected, rel=1e-4)
