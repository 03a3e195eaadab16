"""A real OpenAI-compatible HTTP server in this process, which misbehaves as a test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server does with one call.

    Attributes:
        status: of HTTP.
        text: the answer's, or the error's message.
        finish: finish_reason.
        headers: further ones.
        seconds: before it answers.
        cut: bytes of the body that are never sent, though its length is announced.
        body: sent instead of the usual one.
    """

    status: int = 200
    text: str | None = None
    finish: str = "stop"
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    cut: int = 0
    body: bytes | None = None


@dataclass
class State:
    """What the server has seen: `calls` bodies in their order, `keys`, most calls at once."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    now: int = 0
    most: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


def echo(body: dict[str, Any]) -> str:
    """Depends on everything that makes a call another call."""
    return f"{body['messages'][-1]['content']} | {body['seed'] % 1000} {body['temperature']}"


@contextmanager
def serve(behave: Callable[[int, dict[str, Any]], Reply] = lambda number, body: Reply()) -> Iterator[State]:
    """A server on a free port of 127.0.0.1.

    Args:
        behave: (number of the call from 0, its body) → what to do; text None is `echo`.
    """
    state = State()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                number = len(state.calls)
                state.calls.append(body)
                state.keys.add(self.headers.get("Authorization"))
                state.now += 1
                state.most = max(state.most, state.now)
            try:
                self.answer(behave(number, body), body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client has given up, as some tests want it to
            finally:
                with state.lock:
                    state.now -= 1

        def answer(self, reply, body):
            time.sleep(reply.seconds)
            content = reply.body if reply.body is not None else json.dumps(self.values(reply, body)).encode()
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: len(content) - reply.cut])
            if reply.cut:
                self.close_connection = True

        def values(self, reply, body):
            if reply.status != 200:
                return {"error": {"message": reply.text or "no reason", "type": "x"}}
            text = echo(body) if reply.text is None else reply.text
            message = {"role": "assistant", "content": text}
            return {
                "id": "c",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": reply.finish}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8},
            }

        def log_message(self, *arguments):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, request, client_address):
            pass  # connections that a client has dropped

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
