"""`generator.mark`: what the model is asked, what its caller gets back, and what a cache may give out again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from align.core.errors import UserError
from align.generation.call_cache import cached
from align.generation.generators import (
    Completion,
    Message,
    Request,
    Sampling,
    ScoredText,
    TextScorer,
    weights_of,
)
from align.generation.local import LocalSettings
from align.generation.marked import with_mark
from align.generation.prompts import encoder_of
from align.generation.server import OpenAIGenerator, OpenAISettings
from align.models.loading import model_tokenizer
from align.models.settings import ModelSettings
from tests.tiny import save_tiny

MARK = "[IND]"
GREEDY = Sampling(0.0, 1.0, 0, 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_tiny(folder)
    return ModelSettings(path=str(folder), extra_tokens=[MARK])


def request(text, **more):
    return Request(f"r/{text}", (Message("system", "w8"), Message("user", text)), GREEDY, 7, **more)


def answers(generator, requests, finished=()):
    found = {}
    for group in generator.generate(requests, finished=set(finished)):
        found |= {one.digest: completion for one, completion in group}
    return found


def test_answers_are_those_to_the_marked_requests_under_the_plain_ones_digests(model):
    tokenizer = model_tokenizer(model)
    marked = LocalSettings(mark=MARK).open(model, tokenizer)
    plain = LocalSettings().open(model, tokenizer)
    requests = [request("w9 w10"), request("w11"), request("w12", form="text")]
    asked = [request(f"w9 w10 {MARK}"), request(f"w11 {MARK}"), request("w12", form="text")]
    found, expected = answers(marked, requests), answers(plain, asked)
    assert [found[one.digest] for one in requests] == [expected[one.digest] for one in asked]
    ids = encoder_of(plain, tokenizer)(asked[0])
    assert list(ids).count(128) == 1 and len(ids) == len(encoder_of(marked, tokenizer)(requests[0])) + 1
    assert requests[1].digest not in answers(marked, requests[1:2], finished=[requests[1].digest])


def test_scores_are_those_of_the_marked_prompts(model):
    tokenizer = model_tokenizer(model)
    marked = LocalSettings(mark=MARK).open(model, tokenizer)
    plain = LocalSettings().open(model, tokenizer)
    assert isinstance(marked, TextScorer) and isinstance(plain, TextScorer)
    text = ScoredText("t", (Message("user", "w9"),), "w20 w21")
    ((given, found),) = marked.log_probs([text])
    ((_, expected),) = plain.log_probs([replace(text, messages=(Message("user", f"w9 {MARK}"),))])
    assert given == text and found == expected


def test_a_cache_keeps_marked_answers_apart(model, tmp_path):
    tokenizer = model_tokenizer(model)
    folder = str(tmp_path / "cache")
    marked = LocalSettings(mark=MARK, cache=folder).open(model, tokenizer)
    plain = LocalSettings(cache=folder).open(model, tokenizer)
    assert marked.identity != plain.identity and weights_of(marked) != weights_of(plain)
    one = request("w9 w10")
    first, second = answers(plain, [one])[one.digest], answers(marked, [one])[one.digest]
    again = LocalSettings(mark=MARK, cache=folder).open(model, tokenizer)
    assert answers(again, [one])[one.digest] == second != first
    assert encoder_of(marked, tokenizer) is marked.inner.inner.encode


def test_nothing_changes_without_a_mark(model):
    tokenizer = model_tokenizer(model)
    plain = LocalSettings().open(model, tokenizer)
    assert with_mark(plain, None) is plain and cached(plain, None) is plain


def test_a_server_is_sent_the_mark_whole(model):
    """Its tokenizer knows the mark as a token of its own, which in anybody else's text is broken up."""
    settings = OpenAISettings(mark=MARK)
    server = with_mark(OpenAIGenerator(settings, "m", model_tokenizer(model)), MARK)
    assert not isinstance(server, TextScorer)
    sent = server.inner._arguments(server._marked(request("w9")))["messages"]
    assert [message["content"] for message in sent] == ["w8", "w9 [IND]"]


@pytest.mark.parametrize("mark", ["", "a b", "x" * 99])
def test_what_is_no_mark_is_refused(mark):
    with pytest.raises(UserError, match=r"generator\.mark names "):
        LocalSettings(mark=mark).check()


def test_completions_pass_through_as_they_are():
    class Inner:
        name = identity = "inner"

        def waves(self, openings):
            assert [one.messages[-1].content for one in openings[0]] == ["a !"]
            return [range(1)]

        def generate(self, requests, *, finished):
            yield [(one, Completion(one.messages[-1].content, 1, "length")) for one in requests]

    inner = with_mark(Inner(), "!")
    assert inner.waves([[request("a")]]) == [range(1)]
    assert answers(inner, [request("a")]) == {request("a").digest: Completion("a !", 1, "length")}
    assert weights_of(inner) is None
