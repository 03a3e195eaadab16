"""Any OpenAI-compatible server (vLLM, SGLang, llama.cpp, a hosted one) as a generator. Needs the extra `openai`."""

from __future__ import annotations

import functools
import importlib.util
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from align.core.errors import AlignWarning, UserError, first_line
from align.core.surrogates import whole_text
from align.data.template_file import check_template_kwargs
from align.generation.call_cache import cached
from align.generation.generators import Completion, Generator, Request, digest_of
from align.generation.leads import ask_for, behind_thinking, continued, with_lead
from align.generation.marked import check_mark, with_mark
from align.generation.markers import Escaper
from align.generation.memories import Memory, NoMemory, refuse_at_server
from align.generation.pool import Pace, Pool, RetryError
from align.generation.refusals import problem, read_key, redacted
from align.generation.replies import Reply, ReplyError, read_error, read_reply, retry_after
from align.models.settings import EMBEDDED, ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DIALECTS = ("openai", "vllm")
LIMIT_KEYS = ("max_tokens", "max_completion_tokens")
IN_BODY = "chat_template_kwargs"  # what servers call `template_kwargs`
SAMPLING_KEYS = ("temperature", "top_p", "seed")
LONGEST_WAIT = 3.15e7  # seconds, a year: clocks take no time without an end


@dataclass(frozen=True)
class OpenAISettings:
    """Group `generator`; see hydra_conf/generator/openai.yaml."""

    base_url: str = "http://127.0.0.1:8000/v1"
    model: str | None = None
    api_key_env: str | None = None
    dialect: str = "openai"
    limit_key: str = "max_tokens"
    concurrency: int = 64
    timeout: float = 600.0
    slowest: float = 10.0
    retries: int = 8
    backoff: float = 0.5
    patience: float = 600.0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    cache: str | None = None
    sent: list[str] = field(default_factory=lambda: list(SAMPLING_KEYS))
    seed_bits: int = 63
    template_kwargs: dict[str, Any] | None = None
    mark: str | None = None
    extra_body: dict[str, Any] = field(default_factory=dict)
    memory: Memory = field(default_factory=NoMemory)

    def check(self) -> None:
        """Raises UserError for a value out of range, a missing package or a missing key."""
        refuse_at_server(self.memory)
        if importlib.util.find_spec("openai") is None:
            raise UserError("generator=openai needs its client: `pip install 'long-preference[openai]'`.")
        self._check_url()
        for key, value, least in (
            ("concurrency", self.concurrency, 1),
            ("retries", self.retries, 0),
            ("backoff", self.backoff, 0),
            ("patience", self.patience, 0),
        ):
            if not value >= least:  # as NaN is not either
                raise UserError(f"generator.{key}={value} is too small: give {least} or more.")
        unknown = [str(name) for name in self.sent if name not in SAMPLING_KEYS]
        if unknown:
            raise UserError(
                f"generator.sent knows {', '.join(SAMPLING_KEYS)}, not {', '.join(unknown)}: what else a server takes "
                "belongs to generator.extra_body."
            )
        if not 1 <= self.seed_bits <= 63:
            raise UserError(f"generator.seed_bits={self.seed_bits} must lie between 1 and 63.")
        for key in ("timeout", "slowest", "requests_per_minute", "tokens_per_minute"):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise UserError(f"generator.{key}={value} must be greater than 0.")
        for key, choices in (("dialect", DIALECTS), ("limit_key", LIMIT_KEYS)):
            if getattr(self, key) not in choices:
                raise UserError(f"generator.{key}={getattr(self, key)}: use {' or '.join(choices)}.")
        check_template_kwargs("generator.template_kwargs", self.template_kwargs)
        check_mark(self.mark)
        if not isinstance(self.extra_body.get(IN_BODY) or {}, Mapping):
            raise UserError(f"generator.extra_body.{IN_BODY} must be a mapping of names to values.")
        self.api_key()

    @property
    def body(self) -> dict[str, Any]:
        """What is sent with every call beside the standard's keys; vLLM and SGLang know `chat_template_kwargs`."""
        if not self.template_kwargs:
            return dict(self.extra_body)
        variables = {**self.template_kwargs, **(self.extra_body.get(IN_BODY) or {})}
        return {**self.extra_body, IN_BODY: variables}

    def _check_url(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError("generator.base_url must be an address like http://127.0.0.1:8000/v1.")
        if parts.username or parts.password or parts.query:
            raise UserError(
                "generator.base_url holds a user, a password or a query, which would be written to logs: "
                "put the key in an environment variable and name that in generator.api_key_env."
            )

    def api_key(self) -> str:
        """The key, from the environment alone; the word `none` where the server wants no key."""
        return read_key(self.api_key_env)

    def open(self, model: ModelSettings, tokenizer: PreTrainedTokenizerBase) -> Generator:
        """The generator; `model.path` gives the tokenizer for budgets, and the name where `model` is null."""
        name = self.model or model.path
        if name == EMBEDDED:
            raise UserError("generator.model is not set: name the model as the server does.")
        return cached(with_mark(OpenAIGenerator(self, name, tokenizer), self.mark), self.cache)


class OpenAIGenerator:
    """Sends requests to a server, many at once.

    Args:
        settings: the group.
        name: of the model, as the server knows it.
        tokenizer: counts tokens for `tokens_per_minute`, and names markers to escape.
    """

    def __init__(self, settings: OpenAISettings, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self.settings = settings
        self.name = name
        self.tokenizer = tokenizer
        self._one_at_a_time = threading.Lock()
        self._halves = 0  # of surrogate pairs, in the answers of one `generate`
        special = {token.content for token in tokenizer.added_tokens_decoder.values()} - {settings.mark}
        self.escaper = Escaper([*special, *tokenizer.all_special_tokens])

    @property
    def identity(self) -> str:
        """Address, name, and what is sent beside the requests."""
        own = self.settings
        sent = [*own.sent, own.seed_bits] if (*own.sent, own.seed_bits) != (*SAMPLING_KEYS, 63) else []
        return digest_of([own.base_url, self.name, own.dialect, own.limit_key, own.body, *sent])

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """Variables of the chat template, as they are sent."""
        return dict(self.settings.body.get(IN_BODY) or {})

    def waves(self, openings: Sequence[Sequence[Request]]) -> list[range]:
        """All dialogues together: servers keep what they have read themselves."""
        return [range(len(openings))] if openings else []

    def generate(
        self, requests: Sequence[Request], *, finished: Collection[str]
    ) -> Iterator[Sequence[tuple[Request, Completion]]]:
        """Each answer as it comes, in a group of its own."""
        for request in requests:
            if request.form == "text":
                raise UserError(
                    f"{request.id} is asked without a chat template, which a server puts around whatever it is sent: "
                    "use generator=local."
                )
        jobs = list({r.digest: r for r in requests if r.digest not in finished}.values())
        own = self.settings
        pace = Pace(
            own.concurrency,
            own.retries,
            own.backoff,
            own.patience,
            own.requests_per_minute,
            own.tokens_per_minute,
        )
        self._halves = 0
        for pair in Pool(self._call, self._tokens, pace).run(jobs):
            yield [pair]
        if self._halves:
            warnings.warn(
                f"generator.base_url={own.base_url}: its answers held {self._halves} halves of surrogate "
                "pairs, which are no text: U+FFFD stands in their place.",
                AlignWarning,
                stacklevel=1,
            )

    @functools.cached_property
    def _client(self) -> Any:
        """Retries nothing itself: the pool does, since a waiting call must not hold a place."""
        from openai import OpenAI

        own = self.settings
        return OpenAI(
            base_url=own.base_url,
            api_key=own.api_key(),
            timeout=min(own.timeout, LONGEST_WAIT),
            max_retries=0,
            organization="",
        )

    def _tokens(self, request: Request) -> int:
        prompt = sum(self._count(message.content) for message in request.messages)
        return prompt + request.sampling.max_new_tokens

    def _count(self, text: str) -> int:
        with self._one_at_a_time:  # a fast tokenizer does not like two threads
            return len(self.tokenizer(whole_text(text)[0], verbose=False)["input_ids"])

    def _call(self, request: Request) -> Completion:
        """One attempt; whatever the server says in it, no message of ours repeats the key."""
        own = self.settings
        try:
            return self._completion(request, read_reply(self._body(request)))
        except ReplyError as error:
            raise problem(request, own, error, None) from error
        except RetryError as error:
            reason = redacted(error.reason, own.api_key_env)
            raise RetryError(reason, after=error.after, everybody=error.everybody) from error

    def _body(self, request: Request) -> Any:
        """What the server sends, as JSON."""
        import openai

        own, limit = self.settings, self._timeout(request)
        try:
            answer = self._client.chat.completions.with_raw_response.create(
                **self._arguments(request), timeout=limit
            )
        except openai.APITimeoutError as error:
            raise RetryError(f"no answer within {limit:g} s, see generator.timeout") from error
        except openai.APIStatusError as error:
            found = read_error(error.body or str(error.message), error.status_code)
            raise problem(request, own, found, retry_after(error.response.headers)) from error
        except (openai.APIConnectionError, openai.APIResponseValidationError) as error:
            reason = str(error.__cause__ or error) or "connection lost"
            raise RetryError(f"{own.base_url}: {reason}") from error
        except ValueError as error:  # half of a surrogate pair, or a number without an end
            reason = redacted(first_line(error), own.api_key_env)
            raise UserError(
                f"{request.id}: this call cannot be sent ({reason}): something in its prompt or in the keys of the "
                "group generator is no text or no number that JSON has."
            ) from error
        try:
            return answer.http_response.json()
        except (ValueError, RecursionError) as error:  # a body that was cut short is no JSON
            raise RetryError("the answer's body was cut short or is no JSON") from error

    def _timeout(self, request: Request) -> float:
        """Seconds of silence to bear: a server says nothing before an answer is whole, so a long one needs longer."""
        own = self.settings
        return min(LONGEST_WAIT, max(own.timeout, request.sampling.max_new_tokens / own.slowest))

    def _arguments(self, request: Request) -> dict[str, Any]:
        """The call's body. What OpenAI's own API lacks is sent to servers that know it (`dialect: vllm`)."""
        own, sampling, vllm = self.settings, request.sampling, self.settings.dialect == "vllm"
        messages = [{"role": m.role, "content": self.escaper.escape(m.content)} for m in request.messages]
        extra = own.body
        lead = self.escaper.escape(request.lead)
        if vllm:
            extra["min_tokens"] = sampling.min_new_tokens
        if lead and vllm:
            messages.append({"role": "assistant", "content": lead})
            extra |= {"continue_final_message": True, "add_generation_prompt": False}
        elif lead:
            messages[-1]["content"] += ask_for(lead)
        values = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed & ((1 << own.seed_bits) - 1),
        }
        return {
            "model": self.name,
            "messages": messages,
            **{key: value for key, value in values.items() if key in own.sent},
            **({"stop": list(sampling.stop_at)} if sampling.stop_at else {}),
            own.limit_key: sampling.max_new_tokens,
            "extra_body": extra,
        }

    def _completion(self, request: Request, reply: Reply) -> Completion:
        """What the server said, its lead before it."""
        said, halves = whole_text(reply.text)
        with self._one_at_a_time:
            self._halves += halves
        text = self.escaper.restore(said)
        tokens = self._count(text) if reply.tokens is None else reply.tokens
        if request.lead:
            join = continued if self.settings.dialect == "vllm" else with_lead
            text = behind_thinking(request.lead, text, join)
        return Completion(text=text.strip(), tokens=tokens, finish=reply.finish)
