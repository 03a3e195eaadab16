"""Tables of measured figures in README and the documentation, made from `benchmarks/results/`.

    python -m docs.tables           # writes every table between its markers

A page holds a table between `<!-- NAME: begin -->` and `<!-- NAME: end -->`; a test holds that it is what the files
give. Sentences that quote figures are held by `docs/figures.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.parity_report import markdown as parity_table
from docs.plans import published

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def read(name: str) -> dict[str, Any]:
    """One of the results files."""
    found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return found


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def parity() -> str:
    """Every exchange, degree and wrapper against one process (`make test-parity`)."""
    return parity_table(read("parity.json"))


def forward() -> str:
    """A training step against TRL and padded rows on a CPU (`make bench`)."""
    rivals = {"dpo": ("trl", "DPOTrainer"), "logo": ("padded", "padded rows")}
    cells = read("forward.json")["cells"]
    rows = []
    for name in sorted(cells, key=lambda name: (name.split("/")[1], int(name.split("/")[2]), name)):
        _, method, prompt, _ = name.split("/")
        ours = cells[name]["summary"]["ours"]
        answers = " + ".join(str(length) for length in cells[name]["answers"])
        rows.append(
            [
                *(f"`{method}`", prompt, answers, rivals[method][1]),
                *(f"{ours['speed']:.2f} ×", f"{ours['processor_speed']:.2f} ×"),
                *(f"{ours['peak_gb']:.2f} GB", f"{ours['memory']:.2f} ×", f"{ours['loss_difference']:.0e}"),
            ]
        )
    made = table(
        [
            *("method", "prompt", "answers", "against", "speed", "by CPU time"),
            *("peak memory", "over the rival's", "loss differs by"),
        ],
        rows,
    )
    return f"{made}\n{forward_ways(cells)}"


def forward_ways(cells: Mapping[str, Any]) -> str:
    """On which processor, with how many threads and rounds each row was taken: one line each way."""
    ways: dict[str, list[str]] = {}
    for name, cell in sorted(
        cells.items(), key=lambda item: (item[0].split("/")[1], int(item[0].split("/")[2]))
    ):
        _, method, prompt, kind = name.split("/")
        threads = f"{cell['machine']['threads']} thread{'s' * (cell['machine']['threads'] > 1)}"
        counted = (
            f"{cell['rounds']} counted round{'s' * (cell['rounds'] > 1)}{', median' * (cell['rounds'] > 1)}"
        )
        warm = f"{cell['warmup']} to warm up" if cell["warmup"] else "none to warm up"
        ways.setdefault(f"{cell['machine']['processor']}, {threads}, {counted}, {warm}", []).append(
            f"`{method}` {prompt} {kind}"
        )
    if len(ways) == 1:
        return f"All: {next(iter(ways))}.\n"
    return "".join(f"- {way}: {', '.join(names)}.\n" for way, names in ways.items())


def smoke() -> str:
    """Every method and adapter by one override (`make smoke`)."""
    rows = []
    for name, cell in sorted(read("smoke.json")["cells"].items()):
        rows.append(
            [
                *(f"`{name}`", f"{cell['loss_before']:.3f}", f"{cell['loss_after']:.3f}"),
                *(f"{cell['accuracy_before']:.0%}", f"{cell['accuracy_after']:.0%}"),
                *(f"{cell['reference_tokens']:,.0f}", f"{cell['peak_gb']:.2f}"),
                f"{cell['processor_seconds']:.0f}",
            ]
        )
    return table(
        ["override", "held-out loss", "after", "accuracy", "after", "reference tokens", "GB", "CPU s"], rows
    )


def plan_check() -> str:
    """Planned against measured memory (`benchmarks/plan_check.py`)."""
    rows = []
    for name, cell in read("plan_check.json").items():
        size, settings = (
            name.split(" method=")[0].split(" model.lora", 1)[0],
            name[name.index("model.lora") :],
        )
        predicted, measured = cell["predicted"], cell["measured"]["peak_bytes"]
        error = f"{cell['error']:+.1%}".replace("-0.0%", "0.0%").replace("-", "−").replace("%", " %")
        rows.append(
            [
                *(size, f"`{settings}`", f"{predicted['total'] / 1e9:.2f}", f"{measured / 1e9:.2f}"),
                *(error, predicted["phase"]),
            ]
        )
    return table(["prompt × degree", "settings", "predicted, GB", "measured, GB", "error", "peak in"], rows)


def generation() -> str:
    """What making data costs (`server.py`, `generation.py`)."""
    server, shared = read("server.json"), read("generation.json")
    ratios = shared["ratios"]
    return table(
        ["what", "measured", "at most"],
        [
            [
                f"`server.py`: {server['answers']:,} answers, {server['most_in_flight']} in flight, one call in five "
                "failing, over the time that the server's own rate allows",
                f"{server['ratio']:.2f}",
                "1.2",
            ],
            [
                f"`generation.py`: {shared['samples']} samples of a {shared['tokens']:,}-token instruction "
                f"({shared['new']} tokens each), over reading it once and decoding",
                f"{ratios['shared / (read + decode)']:.2f}",
                "1.3",
            ],
            [
                "the same without sharing what the samples begin with",
                f"{ratios['unshared / (read + decode)']:.2f}",
                "",
            ],
        ],
    )


def scaling_cell(lever: str, prompt: int, kind: str = "none", degree: int = 1) -> dict[str, Any]:
    """The one cell of `scaling.json` with the embedded model, all its layers, LoRA and 1 + 2 answers of 128 tokens."""
    wanted = {
        "lever": lever,
        "prompt": prompt,
        "kind": kind,
        "degree": degree,
        "model": "embedded",
        "layers": 0,
    }
    wanted |= {"parameters": "lora", "answers": [128] * 3, "logits_chunk": 1024}
    cells: list[dict[str, Any]] = list(read("scaling.json")["cells"].values())
    (found,) = (one for one in cells if one["cell"] | wanted == one["cell"])
    return found


def levers() -> str:
    """Levers, exchanges and NLL on a CPU (`scaling.py`, `parallel_speed.py`, `nll_memory.py`)."""
    parallel, cell = read("parallel_4096.json"), scaling_cell
    speed, rounds = parallel["summary"], len(parallel["rounds"]["none/1"])

    def share(kind: str) -> str:
        whole = cell("keep_attention", 8192)["activation_bytes"]
        parts = (cell("keep_attention", 8192, kind, n)["activation_bytes"] / whole for n in (2, 4))
        return f"{kind} " + ", ".join(f"{part:.2f}" for part in parts)

    kept, full = cell("keep_attention", 8192), cell("full", 8192)
    short, long = cell("tiled_disk", 4096), cell("tiled_disk", 20480)
    growth = (long["activation_bytes"] - short["activation_bytes"]) / (20480 - 4096)
    both = [f"{kind} {speed[f'{kind}/2']['speed']:.2f} ×" for kind in ("ulysses", "gather")]
    return table(
        ["what", "measured"],
        [
            [
                "activation memory of a process at 8192 tokens, degree 2 and 4, over degree 1",
                f"{share('ulysses')}; {share('gather')}",
            ],
            [
                f"two processes with one thread each against one with two, 4096 tokens, {parallel['parameters']} "
                f"parameters under DDP, median of {rounds} rounds",
                ", ".join(both),
            ],
            [
                "`checkpointing=keep_attention` against `full` at 8192 tokens",
                f"{full['seconds'] / kept['seconds']:.2f} × faster, "
                f"{kept['activation_bytes'] / full['activation_bytes']:.2f} × the activation memory",
            ],
            [
                "the whole process at 20,480 tokens, `memory.mlp_chunk=512 memory.offload=disk`",
                f"{long['peak_bytes'] / 1e9:.2f} GB",
            ],
            [
                "what a token adds there, over the checkpointed hidden states alone (layers · hidden · 4 bytes)",
                f"{growth / long['checkpoint_bytes_per_token']:.2f}",
            ],
            [
                "padded rows through the library's own forward at 3,416 tokens",
                f"{cell('padded', 3416)['peak_bytes'] / 1e9:.2f} GB",
            ],
            [
                "LongPO's NLL over a row of 8192 tokens: peak memory over the same step without it",
                f"{read('nll_memory.json')['peak_ratio']:.2f}",
            ],
        ],
    )


# (page, marker) → what stands between the markers.
TABLES: dict[tuple[str, str], Callable[[], str]] = {
    ("docs/scaling.md", "parity"): parity,
    ("docs/performance.md", "forward"): forward,
    ("docs/performance.md", "levers"): levers,
    ("docs/methods.md", "smoke"): smoke,
    ("docs/planning.md", "plan check"): plan_check,
    ("docs/planning.md", "published plans"): published,
    ("docs/making-data.md", "generation"): generation,
}


def marked(text: str, name: str) -> str:
    """What stands between the markers of `name`; ValueError where they are not there once."""
    found = re.findall(rf"<!-- {name}: begin -->\n(.*?)<!-- {name}: end -->", text, flags=re.DOTALL)
    if len(found) != 1:
        raise ValueError(f"{len(found)} places are marked {name}")
    return str(found[0])


def all_tables() -> dict[tuple[str, str], str]:
    """Every table: those of the other modules too."""
    from docs.adapter_tables import TABLES as ADAPTERS
    from docs.architectures import TABLES as ARCHITECTURES
    from docs.gpu import TABLES as GPU
    from docs.miniature import TABLES as MINIATURE
    from docs.plan_tables import TABLES as PLANS
    from docs.window_tables import TABLES as WINDOWS

    every = TABLES | ADAPTERS | MINIATURE | ARCHITECTURES | PLANS | GPU | WINDOWS
    return {place: make() for place, make in every.items()}


def main() -> None:
    """Writes the tables where they stand."""
    for (page, name), made in all_tables().items():
        path = ROOT / page
        text = path.read_text()
        begin, end = (f"<!-- {name}: {edge} -->\n" for edge in ("begin", "end"))
        path.write_text(text.replace(begin + marked(text, name) + end, begin + made + end))


if __name__ == "__main__":
    main()
