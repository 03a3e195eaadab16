"""Replies of every shape, from a real server: an answer, another attempt or one sentence, and never a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import threading
import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from align.core.errors import AlignWarning, UserError
from align.generation.generators import Message, Request, Sampling
from align.generation.leads import SHORT_LEAD, with_lead
from align.generation.ledger import Ledger
from align.generation.pool import Pace, Pool, RetryError
from align.generation.replies import ReplyError, read_reply
from align.generation.server import OpenAISettings, retry_after
from align.generation.spoken import spoken
from align.generation.stage import run_dialogues, run_stage
from align.synthesis.answers import trim_cut
from align.synthesis.pipeline import at_least
from tests.generation.helpers import workspace
from tests.generation.http_server import Reply, serve
from tests.generation.test_server import SAMPLING, answers, calls, generator

USAGE = {"prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8}


def body(message, finish="stop", usage=USAGE, **changes):
    choices = [{"index": 0, "message": message, "finish_reason": finish}]
    values = {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": choices,
        "usage": usage,
    }
    return json.dumps(values | changes).encode()


def assistant(content):
    return {"role": "assistant", "content": content}


ODD = {
    "an error in a 200": json.dumps({"error": {"message": "overloaded", "code": 503}}).encode(),
    "an error as text": json.dumps({"error": "overloaded"}).encode(),
    "an error without the key": json.dumps({"object": "error", "message": "overloaded"}).encode(),
    "a detail alone": json.dumps({"detail": "warming up"}).encode(),
    "choices as a mapping": json.dumps({"choices": {"0": {"message": assistant("x")}}}).encode(),
    "no choices": json.dumps({"choices": None}).encode(),
    "a message as text": body("x"),
    "no message": body(None),
    "a number for content": body(assistant(5)),
    "parts that are no text": body(assistant([{"type": "text", "text": 5}])),
    "a list": b"[1, 2]",
    "a number": b"7",
    "broken off with an error": body(assistant("x"), finish="error"),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_one_malformed_reply_is_asked_again(odd):
    with serve(lambda number, body: Reply(body=odd) if number == 0 else Reply(text="fine")) as state:
        assert answers(generator(state), calls(1))["r0"].text == "fine"
    assert len(state.calls) == 2


def test_an_error_in_a_200_keeps_its_words_and_is_not_asked_again_where_nothing_helps():
    sentence = r"failed 2 times in a row \(status 503: overloaded\)"
    with (
        serve(lambda number, body: Reply(body=ODD["an error in a 200"])) as state,
        pytest.raises(UserError, match=sentence),
    ):
        answers(generator(state, retries=1), calls(1))
    refused = json.dumps({"error": {"message": "context too long", "code": 400}}).encode()
    with (
        serve(lambda number, body: Reply(body=refused)) as state,
        pytest.raises(UserError, match="status 400: context too long"),
    ):
        answers(generator(state), calls(1))
    assert len(state.calls) == 1


def test_a_refusal_without_a_message_is_shown_as_it_is():
    reply = Reply(
        status=422, body=json.dumps({"detail": [{"loc": ["body", "seed"], "msg": "too large"}]}).encode()
    )
    with (
        serve(lambda number, body: reply) as state,
        pytest.raises(UserError, match=r"status 422.*too large.*seed_bits"),
    ):
        answers(generator(state), calls(1))


def test_content_in_parts_is_their_text():
    parts = [
        {"type": "text", "text": "One, "},
        {"type": "image_url"},
        {"type": "output_text", "text": "two."},
    ]
    with serve(lambda number, body_: Reply(body=body(assistant(parts)))) as state:
        assert answers(generator(state), calls(1))["r0"].text == "One, two."


@pytest.mark.parametrize("usage", [None, {}, {"completion_tokens": None}, {"completion_tokens": "7"}, []])
def test_tokens_are_counted_where_the_server_does_not(usage):
    """A byte a token: `three` has five."""
    with serve(lambda number, body_: Reply(body=body(assistant("three"), usage=usage))) as state:
        assert answers(generator(state), calls(1))["r0"].tokens == 5


def test_a_ledger_with_an_answer_of_unknown_length_names_its_line(tmp_path):
    line = {"request": "a", "id": "r", "text": "t", "tokens": None, "finish": "stop"}
    (tmp_path / "s.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match=r"s\.jsonl:1 is no stored answer"):
        Ledger(tmp_path / "s.jsonl")


def test_a_ledger_with_bytes_that_are_no_text_names_its_line(tmp_path):
    whole = json.dumps({"request": "a", "id": "r", "text": "t", "tokens": 1, "finish": "stop"}).encode()
    for damage in (b"\xff", b"[" * 100_000):
        (tmp_path / "s.jsonl").write_bytes(whole + b"\n" + damage + b"\n")
        with pytest.raises(UserError, match=r"s\.jsonl:2 is no stored answer"):
            Ledger(tmp_path / "s.jsonl")


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("stop", "stop"),
        (None, "stop"),
        ("eos", "stop"),
        ("EOS_TOKEN", "stop"),
        ("end_turn", "stop"),
        ("length", "length"),
        ("max_tokens", "length"),
        ("content_filter", "broken"),
        ("safety", "broken"),
        ("abort", "broken"),
    ],
)
def test_only_what_ends_by_itself_is_whole(reason, finish):
    """What a filter has broken off answers nothing: it is not trimmed to a sentence, but empty."""
    with serve(
        lambda number, body_: Reply(body=body(assistant("It is. The recipe is"), finish=reason))
    ) as state:
        found = answers(generator(state), calls(1))["r0"]
    assert found.finish == finish
    assert trim_cut(found) == {"stop": "It is. The recipe is", "length": "It is.", "broken": ""}[finish]


def test_what_a_filter_has_broken_off_is_empty_wherever_answers_are_read_and_is_counted(tmp_path):
    """The ledger keeps what there is of it."""
    with serve(lambda number, body_: Reply(text=f"Part {number}", finish="content_filter")) as state:
        here = workspace(tmp_path, generator(state))
        assert {one.text for one in run_stage("s", calls(2), here)} == {""}

        def ask():
            (first,) = yield calls(1)
            return first.text

        assert run_dialogues("d", [ask()], here) == [""]
    told = here.console.file.getvalue()
    assert "s: 2 of 2 answers were broken off by the server" in told and "d: 1 of 1 answer" in told
    assert "Part" in (tmp_path / "work" / "s.jsonl").read_text()


@pytest.mark.parametrize("usage", [None, USAGE])
def test_halves_of_surrogate_pairs_are_no_text(usage):
    odd = body(assistant("What \ud83d is \ude00\ud83d\ude00?"), usage=usage)
    assert b"\\ud83d" in odd
    with (
        serve(lambda number, body_: Reply(body=odd)) as state,
        pytest.warns(AlignWarning, match="2 halves of surrogate pairs"),
    ):
        found = answers(generator(state), calls(1))["r0"]
    assert found.text == "What \ufffd is \ufffd\U0001f600?"


def test_what_cannot_be_sent_is_said_at_once():
    request = Request("r", (Message("user", "a\ud83d"),), SAMPLING, 1)
    with serve() as state, pytest.raises(UserError, match=r"r: this call cannot be sent \(.*surrogates"):
        answers(generator(state, tokens_per_minute=1e9), [request])
    with serve() as state, pytest.raises(UserError, match=r"r0: this call cannot be sent \(.*JSON compliant"):
        answers(generator(state, extra_body={"top_k": math.inf}), calls(1))
    assert not state.calls


SECRET = "sk-" + "s3cret'\\" * 6


@pytest.mark.parametrize(
    "said",
    [
        "Bearer KEY is wrong",
        "x" * 250 + " KEY",
        "illegal " + repr(SECRET.encode()),
        json.dumps({"key": SECRET}),
        "https://host?key=" + quote(SECRET),
    ],
)
def test_no_part_of_the_key_is_shown_however_it_is_written(said, monkeypatch):
    monkeypatch.setenv("MY_KEY", f"{SECRET}\n")
    said = said.replace("KEY", SECRET)
    for reply in (Reply(status=400, text=said), Reply(body=json.dumps({"message": said}).encode())):
        with serve(lambda number, body_, reply=reply: reply) as state:
            with pytest.raises(UserError, match=r"\*\*\*") as caught:
                answers(generator(state, api_key_env="MY_KEY", retries=0), calls(1))
            assert "s3cret" not in str(caught.value) and state.keys == {f"Bearer {SECRET}"}


@pytest.mark.parametrize("key", ["sk-clé", "sk-a\nb", "sk-a\x00"])
def test_what_is_no_key_is_refused_before_anything_is_sent(key, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ | {"MY_KEY": key})
    with pytest.raises(UserError, match=r"api_key_env=MY_KEY: .*printable ASCII") as caught:
        OpenAISettings(api_key_env="MY_KEY").check()
    assert key not in str(caught.value)


DEEP = b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize("reply", [Reply(body=DEEP), Reply(status=400, body=b'{"error": ' + DEEP + b"}")])
def test_a_deeply_nested_reply_is_none(reply):
    with (
        serve(lambda number, body_: reply) as state,
        pytest.raises(UserError, match=r"cut short or is no JSON|status 400"),
    ):
        answers(generator(state, retries=0), calls(1))


@pytest.mark.parametrize(
    "date",
    [
        "Fri, 31 Dec 99999 23:59:59 GMT",
        "Fri, 31 Dec 999999999999 23:59:59 GMT",
        "Fri, 99 Dec 2026 99:59:59 GMT",
    ],
)
def test_a_date_that_is_none_is_no_time_to_wait_for(date):
    assert retry_after({"retry-after": date}) is None or retry_after({"retry-after": date}) >= 0


@pytest.mark.parametrize("changes", [{"timeout": math.inf}, {"timeout": 1e12}, {"slowest": 1e-300}])
def test_a_time_without_an_end_is_waited_for_as_long_as_a_clock_can(changes):
    with serve() as state:
        assert len(answers(generator(state, **changes), calls(1))) == 1


def test_a_server_that_fails_for_days_is_still_asked_each_minute():
    pool = Pool(lambda job: job, lambda job: 1, Pace(1, 5000, 0.5, 60.0))
    assert pool._doubled(3) == 4.0 and pool._doubled(5000) == 60.0


def test_variables_of_the_template_stand_beside_a_body_without_any():
    own = OpenAISettings(template_kwargs={"a": 1}, extra_body={"chat_template_kwargs": None})
    own.check()
    assert own.body == {"chat_template_kwargs": {"a": 1}}
    with pytest.raises(UserError, match=r"generator\.extra_body\.chat_template_kwargs must be a mapping"):
        OpenAISettings(extra_body={"chat_template_kwargs": "a=1"}).check()


@pytest.mark.parametrize(
    "key", ["concurrency", "retries", "backoff", "patience", "timeout", "slowest", "requests_per_minute"]
)
def test_nan_is_out_of_every_range(key):
    with pytest.raises(UserError, match=rf"generator\.{key}=nan"):
        OpenAISettings(**{key: math.nan}).check()
    with pytest.raises(UserError, match=r"pipeline\.x=nan"):
        at_least("x", math.nan, 0)


def test_no_quota_is_no_rate_limit():
    error = {"message": "You have no credit.", "type": "insufficient_quota", "code": "insufficient_quota"}
    reply = Reply(status=429, body=json.dumps({"error": error}).encode())
    with (
        serve(lambda number, body: reply) as state,
        pytest.raises(UserError, match=r"no quota left.*You have no credit"),
    ):
        answers(generator(state), calls(1))
    assert len(state.calls) == 1


def test_a_rate_limit_without_a_time_delays_everybody():
    """For 0.6 s all are turned away: at once the 8 in flight, then one at a time, each twice as late as the last."""
    begin = time.monotonic()

    def behave(number, body):
        return Reply(status=429 if time.monotonic() - begin < 0.6 else 200)

    with serve(behave) as state:
        found = answers(generator(state, backoff=0.05, concurrency=8), calls(100))
    assert len(found) == 100
    assert len(state.calls) <= 100 + 8 + 6


def test_all_wait_until_one_call_succeeds():
    """The first job finds out; its fifth attempt is taken, and nobody else has been turned away twice."""
    lock, tries = threading.Lock(), {}

    def call(job):
        with lock:
            tries[job] = tries.get(job, 0) + 1
            if sum(tries.values()) < 8:
                raise RetryError("full", everybody=True)
        return job

    pool = Pool(call, lambda job: 1, Pace(4, 20, 0.005, 60.0))
    assert sorted(job for job, _ in pool.run(list(range(20)))) == list(range(20))
    assert sum(tries.values()) <= 8 + 20 and max(tries[job] for job in range(4, 20)) == 1


def test_a_long_answer_is_waited_for_as_long_as_it_takes():
    """32,768 tokens at 10 a second are 3,277 s, longer than the timeout of 600; 8 tokens are not."""
    with serve() as state:
        model = generator(state, timeout=600.0)
        long = Request("r", (Message("user", "x"),), Sampling(0.5, 0.9, 1, 32768), 1)
        assert model._timeout(long) == pytest.approx(3276.8)
        assert model._timeout(calls(1)[0]) == 600


def test_a_time_that_is_no_number_is_none():
    assert retry_after({"retry-after": "nan"}) is None
    assert retry_after({"retry-after-ms": "nan", "retry-after": "2"}) == 2.0


def test_what_a_model_refuses_is_left_out_and_the_refusal_says_how():
    refusal = Reply(status=400, text="Unsupported parameter: 'temperature' is not supported with this model.")
    with serve(lambda number, body: refusal if "temperature" in body else Reply(text="x")) as state:
        with pytest.raises(UserError, match=r"leave it out of generator\.sent"):
            answers(generator(state), calls(1))
        assert answers(generator(state, sent=["seed"], seed_bits=31), calls(1))["r0"].text == "x"
    sent = state.calls[-1]
    assert "temperature" not in sent and "top_p" not in sent
    assert sent["seed"] == calls(1)[0].seed % 2**31


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [({"sent": ["heat"]}, "generator.sent"), ({"seed_bits": 0}, "seed_bits"), ({"slowest": 0.0}, "slowest")],
)
def test_bad_settings_are_named(bad, sentence):
    with pytest.raises(UserError, match=sentence):
        OpenAISettings(**bad).check()


@pytest.mark.parametrize(
    ("lead", "text", "whole"),
    [
        ("What", "is a list?", "What is a list?"),
        ("What", " is a list?", "What is a list?"),
        ("What", "What is a list?", "What is a list?"),
        ("1.", "1. What is it?", "1. What is it?"),
        ("1.", "What is it?", "1. What is it?"),
        ("A much longer  opening", "**a much longer opening** goes on", "**a much longer opening** goes on"),
        ("A much longer opening", ", and then", "A much longer opening, and then"),
        ("第一段", "：一", "第一段：一"),
    ],
)
def test_the_lead_stands_once_before_what_follows(lead, text, whole):
    assert with_lead(lead, text) == whole


@pytest.mark.parametrize("dialect", ["openai", "vllm"])
@pytest.mark.parametrize(
    ("text", "whole", "read"),
    [
        ("<think>So.</think>\n\nis a list?", "<think>So.</think>\n\nWhat is a list?", "What is a list?"),
        ("So.\n</think>\n\nis a list?", "So.\n</think>\n\nWhat is a list?", "What is a list?"),
        ("<think>They want a question. What", "<think>They want a question. What", ""),
        ("<think>So.</think>\n", "<think>So.</think>", ""),
        (" \n", "", ""),
        ("", "", ""),
    ],
)
def test_a_lead_stands_behind_the_thinking_block_and_before_nothing_it_is_nothing(dialect, text, whole, read):
    """Before the block it hid the block, so that an unfinished thought was read as the answer."""
    with serve(lambda number, body_: Reply(text=text)) as state:
        found = answers(generator(state, dialect=dialect), calls(1, lead="What"))["r0"]
    assert found.text == whole
    (answer,) = spoken("questions", [found], Console(file=io.StringIO()))
    assert answer.text == read


def test_a_long_lead_is_given_to_go_on_from():
    """Two thirds of a text are no beginning that a model would copy; the candidate begins where the lead does."""
    lead = " ".join(["word"] * (SHORT_LEAD + 1))
    with serve(lambda number, body: Reply(text="And then the middle goes on.")) as state:
        found = answers(generator(state), calls(1, SAMPLING, lead))["r0"]
    assert found.text == f"{lead} And then the middle goes on."
    assert state.calls[0]["messages"][-1]["content"].endswith(f"do not repeat it:\n\n{lead}")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "error", "usage", "code", "type", "text", "finish_reason"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(VALUES)
def test_any_json_is_an_answer_an_error_or_another_attempt(value):
    with contextlib.suppress(ReplyError, RetryError):
        assert isinstance(read_reply(value).text, str)
