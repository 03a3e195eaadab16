"""The generator of a server against what that server's own rate allows.

python benchmarks/server.py                  # writes results/server.json
python benchmarks/server.py --answers 128 --seconds 0.5

A server in a process of its own answers `--places` calls at once, each after half to one and a half `--seconds`
(drawn with a seed), and fails every fifth with status 500. With a perfect client it is never idle, so the time that
all its calls took together, over its places, is the least.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import time
from multiprocessing.connection import Connection
from pathlib import Path

from align.generation.generators import Message, Request, Sampling, derive_seed
from align.generation.server import OpenAIGenerator, OpenAISettings
from align.models.loading import load_tokenizer

RESULTS = Path(__file__).parent / "results" / "server.json"


def main() -> None:
    """Measures once, prints the ratio and writes it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--places", type=int, default=64, help="calls that the server answers at once")
    parser.add_argument("--seconds", type=float, default=3.0, help="that a call takes it, on average")
    parser.add_argument("--fail-each", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(
        target=run_server,
        args=(theirs, arguments.places, arguments.seconds, arguments.fail_each),
        daemon=True,
    )
    process.start()
    try:
        result = measure(ours, arguments)
    finally:
        process.terminate()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def measure(server: Connection, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of the client, calls that the server saw, and the ratio to the least time."""
    settings = OpenAISettings(base_url=f"http://127.0.0.1:{server.recv()}/v1", concurrency=arguments.places)
    settings.check()
    generator = OpenAIGenerator(settings, "benchmark", load_tokenizer("embedded"))
    sampling = Sampling(0.7, 0.95, 1, 64)
    requests = [
        Request(str(i), (Message("user", f"Say {i}."),), sampling, derive_seed(0, str(i)))
        for i in range(arguments.answers)
    ]
    generator._client  # noqa: B018 - imports the client before the clock starts
    start = time.perf_counter()
    got = sum(len(group) for group in generator.generate(requests, finished=()))
    seconds = time.perf_counter() - start
    server.send("how many?")
    seen, most, busy = server.recv()
    least = busy / arguments.places
    return {
        "answers": got,
        "calls": seen,
        "most_in_flight": most,
        "seconds": round(seconds, 2),
        "least_seconds": round(least, 2),
        "ratio": round(seconds / least, 3),
    }


def run_server(pipe: Connection, places: int, seconds: float, fail_each: int) -> None:
    """Serves until it is ended; tells its port, and on request its calls, most at once, and seconds of all."""
    asyncio.run(_serve(pipe, places, seconds, fail_each))


async def _serve(pipe: Connection, places: int, seconds: float, fail_each: int) -> None:
    free = asyncio.Semaphore(places)
    seen = now = most = 0
    busy = 0.0
    rng = random.Random(0)
    choice = {"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}
    good = {"id": "c", "object": "chat.completion", "created": 0, "model": "benchmark", "choices": [choice]}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen, now, most, busy
        while head := await _until_blank_line(reader):
            length = next(int(v) for k, _, v in (h.partition(":") for h in head) if k == "content-length")
            await reader.readexactly(length)
            seen, now = seen + 1, now + 1
            most = max(most, now)
            failing = seen % fail_each == 0
            own = seconds * rng.uniform(0.5, 1.5)
            busy += own
            async with free:
                await asyncio.sleep(own)
            body = json.dumps({"error": {"message": "no"}} if failing else good).encode()
            status = "500 Internal Server Error" if failing else "200 OK"
            writer.write(
                f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
                + body
            )
            await writer.drain()
            now -= 1
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=256)
    pipe.send(server.sockets[0].getsockname()[1])
    await asyncio.to_thread(pipe.recv)
    pipe.send((seen, most, busy))
    await asyncio.sleep(60)


async def _until_blank_line(reader: asyncio.StreamReader) -> list[str]:
    """The lines of a request's head, in lower case; empty at the end of the connection."""
    try:
        return (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return []


if __name__ == "__main__":
    main()
