"""Stages, dialogues, scores and the shared cache: every call is made once, whoever asks and whenever it dies."""

from __future__ import annotations

import json

import pytest
import torch

from align.core.errors import UserError
from align.generation.call_cache import CachedGenerator, cached
from align.generation.generators import Completion, Message, Request, ScoredText, derive_seed
from align.generation.stage import run_dialogues, run_scores, run_stage
from tests.generation.helpers import SAMPLING, KilledError, local_generator, workspace
from tests.tiny import tiny_model, tiny_tokenizer


class Counted:
    """Answers with the prompt's last word and the seed, and counts; dies instead of the call after `calls`."""

    name = "counted"

    def __init__(self, identity="a", calls=None, weights=None):
        self.identity = identity
        self.weights = weights
        self.left = calls
        self.asked = []

    def waves(self, openings):
        return [range(2), range(2, len(openings))] if len(openings) > 2 else [range(len(openings))]

    def generate(self, requests, *, finished):
        for request in requests:
            if request.digest in finished:
                continue
            if self.left == 0:
                raise KilledError
            self.left = None if self.left is None else self.left - 1
            self.asked.append(request.id)
            yield [(request, Completion(f"{request.messages[-1].content} {request.seed % 97}", 2, "stop"))]


def request(name, content, seed=None):
    return Request(
        name, (Message("user", content),), SAMPLING, derive_seed(3, name) if seed is None else seed
    )


def dialogue(name):
    """Two questions, then one answer to each that depends on what was said, then nothing."""
    said = yield [request(f"{name}/q{i}", f"w{i}") for i in range(2)]
    answers = yield [request(f"{name}/a{i}", completion.text) for i, completion in enumerate(said)]
    return [completion.text for completion in answers]


def test_a_dialogue_is_sent_what_its_requests_brought_and_waves_go_on_together(tmp_path):
    generator = Counted()
    results = run_dialogues("talk", [dialogue(name) for name in "abc"], workspace(tmp_path, generator))
    assert [len(texts) for texts in results] == [2, 2, 2]
    for name, texts in zip("abc", results, strict=True):
        first = f"w0 {derive_seed(3, f'{name}/q0') % 97}"
        assert texts[0] == f"{first} {derive_seed(3, f'{name}/a0') % 97}"
    rounds = ["a/q0", "a/q1", "b/q0", "b/q1", "a/a0", "a/a1", "b/a0", "b/a1", "c/q0", "c/q1", "c/a0", "c/a1"]
    assert generator.asked == rounds


def test_dialogues_killed_after_any_call_end_the_same_and_repeat_none(tmp_path):
    def run(folder, generator):
        return run_dialogues("talk", [dialogue(name) for name in "abc"], workspace(folder, generator))

    expected = run(tmp_path / "whole", Counted())
    for calls in range(12):
        first, second = Counted(calls=calls), Counted()
        with pytest.raises(KilledError):
            run(tmp_path / str(calls), first)
        assert run(tmp_path / str(calls), second) == expected
        assert len(first.asked) + len(second.asked) == 12


def test_a_dialogue_may_end_without_a_question(tmp_path):
    def silent():
        return "nothing"
        yield []

    assert run_dialogues("talk", [silent(), silent()], workspace(tmp_path, Counted())) == ["nothing"] * 2


def test_the_cache_answers_other_runs_and_never_for_another_model_seed_or_sampling(tmp_path):
    calls = [request(f"r{i}", f"w{i}") for i in range(4)]
    folder = str(tmp_path / "cache")
    first = Counted()
    whole = run_stage("s", calls, workspace(tmp_path / "1", cached(first, folder)))
    second = Counted()
    renamed = [Request(f"x{i}", call.messages, call.sampling, call.seed) for i, call in enumerate(calls)]
    assert run_stage("s", renamed, workspace(tmp_path / "2", cached(second, folder))) == whole
    assert len(first.asked) == 4 and second.asked == []

    other = Counted("b")
    run_stage("s", calls, workspace(tmp_path / "3", cached(other, folder)))
    assert len(other.asked) == 4
    run_stage("s", [request("r0", "w0", seed=5)], workspace(tmp_path / "4", cached(second, folder)))
    assert second.asked == ["r0"]


def test_a_killed_run_leaves_its_calls_in_the_cache_and_a_damaged_file_is_asked_again(tmp_path):
    calls = [request(f"r{i}", f"w{i}") for i in range(4)]
    folder = tmp_path / "cache"
    with pytest.raises(KilledError):
        run_stage("s", calls, workspace(tmp_path / "1", cached(Counted(calls=3), str(folder))))
    files = sorted(folder.rglob("*.json"))
    assert len(files) == 3
    stored = json.loads(files[0].read_text())
    files[0].write_text(files[0].read_text()[:-20])
    again = Counted()
    run_stage("s", calls, workspace(tmp_path / "2", cached(again, str(folder))))
    assert len(again.asked) == 2
    assert json.loads(files[0].read_text()) == stored


def test_without_a_folder_there_is_no_cache():
    generator = Counted()
    assert cached(generator, None) is generator
    assert isinstance(cached(generator, "x"), CachedGenerator)


def test_log_probs_are_those_of_the_models_own_forward(tmp_path):
    """Σ over the answer's tokens and its end token, from the plain logits of prompt and answer in one row."""
    generator = local_generator()
    text = ScoredText("t", (Message("user", "w9 w10"),), "w11 w12 w13", end=True)
    prompt = generator.encode(request("r", "w9 w10")).tolist()
    answer = [11, 12, 13, tiny_tokenizer().eos_token_id]
    ids = torch.tensor([prompt + answer])
    table = tiny_model()(ids).logits[0].detach().log_softmax(-1)
    expected = [float(table[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)]
    scores = run_scores("scores", [text], workspace(tmp_path, generator))
    assert scores[0] == pytest.approx(expected, abs=1e-5)
    assert run_scores("scores", [text], workspace(tmp_path, local_generator())) == scores
    without_end = ScoredText("u", text.messages, text.answer)
    assert run_scores("more", [without_end], workspace(tmp_path, generator))[0] == pytest.approx(
        expected[:-1], abs=1e-5
    )


def test_a_generator_without_log_probs_is_refused(tmp_path):
    with pytest.raises(UserError, match="generator=local"):
        run_scores("scores", [], workspace(tmp_path, Counted()))
