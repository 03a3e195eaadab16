"""Sentences of README and the documentation that quote measured figures, made from `benchmarks/results/`.

    python -m docs.figures     # names every sentence that a page lacks, and every figure that no sentence covers

A page has to hold each fragment that `quotes` makes for it, white space aside. Figures outside of them (a number with a
unit such as ×, GB or %) are errors, unless `EXPLAINED` says where they come from.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.miniature.analysis import Comparison, Difference, ablations, compare, comparisons, mean_of
from docs.h200_figures import on_an_h200, over_trl
from docs.miniature import results
from docs.order_figures import by_step
from docs.tables import RESULTS, ROOT, read, scaling_cell
from docs.windows_figures import windows

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
# A number with a unit of something measured.
FIGURE = re.compile(r"(?<![\w.])\d[\d.,]*\s?(?:×(?! \d)|GB|GiB|%|points|seconds|nats)|(?<![\w.])\d\.\de-\d\d")
# (page, fragment that holds the figure) → where it comes from.
EXPLAINED = {
    ("docs/planning.md", "15 % were allowed"): "the tolerance of benchmarks/plan_check.py",
    ("docs/planning.md", "with 40 GB a GPU"): "the cluster that is simulated",
    ("docs/planning.md", "Five of them are held to 10 %"): "the tolerance of tests/planning/test_counting.py",
    (
        "docs/planning.md",
        "errors are between −0.9 % and +3.6 %; under autocast over float32 weights the plan is 6 to 20 %",
    ): "against torch's own count of live memory, as that test counts it",
    (
        "docs/configuration.md",
        "at a learning rate of 5e-7 99 % of them stay where they were",
    ): "bfloat16's spacing at 0.02 is 1.2e-4; counted over 30 steps of LOGO",
    (
        "docs/long-sequences.md",
        "more than 2 GiB beside its results",
    ): "the bound of align/longseq/head_slices.py",
    ("docs/replication.md", "with 95 % intervals"): "what an interval is",
    ("docs/evaluation.md", "with 95 % intervals"): "what an interval is",
    ("docs/methods.md", "counts as 0 %"): "what a tie counts",
    ("docs/glossary.md", "With β = 0.1, −10 and −14 nats: 0.4"): "an example",
}


def growing(*values: float) -> str:
    """`a to b` of the smallest and the largest."""
    return f"{min(values):.1f} to {max(values):.1f}"


def gpu() -> dict[str, str]:
    """What README and docs/performance.md quote of the first look on an H100."""
    found = read("gpu/first_look-H100.json")
    ratios = {name: cell["ratio"] for name, cell in found["speed"].items()}
    two = [ratios[f"{prompt} + (512, 512, 512)"][0] for prompt in (16384, 32768, 65536)]
    one = [ratios[f"{prompt} + (512, 512)"][0] for prompt in (16384, 32768, 65536)]
    worst = {
        dtype: max(value[1] for name, value in found["exact"].items() if name.startswith(dtype))
        for dtype in ("float32", "bfloat16")
    }
    margins = {cell["eval_rewards/margins"] for cell in found["train"].values()}
    assert margins == {0.0}, margins
    assert len(found["train"]) == 3
    assert len(found["exact"]) == 2 * 6
    full, host = (
        found["length"][f"full {{'mlp_chunk': 4096{more}}} 32768"] for more in ("", ", 'offload': 'host'")
    )
    longest = found["length"]["full {'mlp_chunk': 4096} 131072"]
    return {
        "two": growing(*two),
        "one": growing(*one),
        "short": f"{ratios['4096 + (512, 512)'][0]:.2f}",
        "memory": f"{ratios['65536 + (512, 512, 512)'][1]:.2f}",
        "tokens": f"{(4096 + 2 * 512) / (2 * (4096 + 512)):.2f}",
        "fp32": f"{worst['float32']:.1e}",
        "bf16": f"{worst['bfloat16']:.1e}",
        "longest": f"{longest['peak_gib']:.1f}",
        "full": f"{full['seconds']:.1f}",
        "host": f"{host['seconds']:.1f}",
        "saved": f"{full['peak_gib'] - host['peak_gib']:.1f}",
        "card": found["card"],
        "date": found["date"],
        "commit": found["commit"],
        "torch": found["environment"]["torch"].split("+")[0],
        "transformers": found["environment"]["transformers"],
    }


def readme() -> Iterator[str]:
    """README's figures."""
    g = gpu()
    yield f"rejected answers {g['two']} × as fast for prompts of 16K to 64K tokens, in about half the memory at 64K"
    yield f"({g['memory']} ×); with one and one {g['one']} ×; with short prompts less, and at 4K with one and one it is"
    yield f"slower ({g['short']} ×)"
    yield f"is {over_trl(16384, 32768)} as fast for prompts of 16K and 32K tokens, and {over_trl(4096)} at 4K"
    cells = read("parity.json")["cells"].values()
    worst = max(cell["gradient"] for cell in cells)
    yield f"[{len(cells)} combinations](docs/scaling.md#exact-in-every-wrapper) is {worst:.1e}"
    yield f"On one H100 ({g['date']}, commit `{g['commit']}`)"
    yield f"worst gradient error {g['fp32']} in fp32 and {g['bf16']} in bf16"
    yield f"had a prompt of 131,072 tokens ({g['longest']} GiB)"
    trl = [cell["summary"]["ours"] for name, cell in read("forward.json")["cells"].items() if "/dpo/" in name]
    processors = {cell["machine"]["processor"] for cell in read("forward.json")["cells"].values()}
    yield f"On CPU ({', '.join(sorted(processors))}; ratios depend on it) [against TRL's `DPOTrainer`]"
    speeds, memory = ([cell[key] for cell in trl] for key in ("speed", "memory"))
    yield f"{min(speeds):.2f} to {max(speeds):.2f} × as fast, in {min(memory):.2f} to {max(memory):.2f} × the memory"
    yield f"({g['host']} s a step in the place of {g['full']})"
    led = lead_over_sft()
    assert led.interval.low is not None
    assert led.interval.high is not None
    low, high = 100 * led.interval.low, 100 * led.interval.high
    seeds = "{:.1f} with one seed and {:.1f} with the other".format(*lead_by_seed(led))
    yield f"({100 * led.interval.mean:.1f} points over SFT, 95 % interval {low:.1f} to {high:.1f}; {seeds})"


def lead_over_sft() -> Difference:
    """LOGO with synthesised positions against SFT in part `find`, beyond the trained lengths."""
    (led,) = (c for c in comparisons() if (c.first, c.second, c.part) == ("logo_positions", "sft", "find"))
    outcome = compare(results(), led)
    assert outcome is not None
    return outcome


def lead_by_seed(outcome: Difference) -> list[float]:
    """Each seed's difference in points."""
    return [100 * outcome.by_seed[seed] for seed in sorted(outcome.by_seed)]


def performance() -> Iterator[str]:
    """docs/performance.md."""
    g = gpu()
    yield f"{g['card']}, torch {g['torch']}, transformers {g['transformers']}, {g['date']}, commit `{g['commit']}`"
    yield f"worst relative gradient error {g['fp32']} in fp32, {g['bf16']} in bf16"
    yield f"although it has {g['tokens']} × the tokens"
    yield f"saved {g['saved']} GiB there and more than doubled the step"
    yield from on_an_h200()
    full, kept = (scaling_cell(lever, 8192)["processor_seconds"] for lever in ("full", "keep_attention"))
    yield f"{full - kept:.0f} of a step's {full:.0f} seconds of processor time at 8192 tokens"


def long_sequences() -> Iterator[str]:
    """docs/long-sequences.md: what a window costs, a hybrid's step, and a mask."""
    heads = read("windows.json")["heads"].values()
    wide, narrow = (next(cell for cell in cells if cell["pattern"] == "Window(size=512)") for cells in heads)
    yield f"{wide['ratio']:.2f} × the time of full attention with Gemma-3-1B's heads and {narrow['ratio']:.2f} × with"
    yield f"for {wide['pairs']:.2f} × its pairs"
    assert wide["kept_ratio"] == narrow["kept_ratio"] == 1.0
    ratios = read("hybrid.json")["ratios"]
    yield f"is {ratios['speed']:.1f} × as fast as with padded rows, in {ratios['memory']:.2f} × the memory"
    ratios = read("masked.json")["ratios"]
    yield f"a step is {ratios['speed']:.1f} × as fast, in {ratios['memory']:.2f} × the memory"


def methods() -> Iterator[str]:
    """docs/methods.md."""
    seconds = [cell["processor_seconds"] for cell in read("smoke.json")["cells"].values()]
    yield f"in {min(seconds):.0f} to {max(seconds):.0f} seconds of processor time"


def planning() -> Iterator[str]:
    """docs/planning.md."""
    errors = [abs(cell["error"]) for cell in read("plan_check.json").values()]
    yield f"The worst error is {100 * max(errors):.1f} %"
    simulated = read("plan_scale.json")
    seconds = {
        cell["exchange"]: cell["seconds_per_prompt"]
        for cell in simulated["by_degree"]
        if (cell["length"], cell["degree"], cell["gpus"]) == (262144, 64, 128)
    }
    yield (
        f"256K tokens at degree 64 on 128 GPUs: {seconds['mixed']:.1f} seconds a prompt against "
        f"{seconds['gather']:.1f} and {seconds['ulysses']:.1f}"
    )
    over = [cell["one_for_all"] / cell["many_a_batch"] for cell in simulated["degrees"]]
    last = simulated["degrees"][-1]
    batch = last["one_a_batch"] / last["many_a_batch"]
    yield f"one degree costs {over[0]:.2f}, {over[1]:.2f} and {over[2]:.2f} times"
    yield f"400 Gbit/s a machine {over[3]:.2f}, {over[4]:.2f} and {over[5]:.2f} times"
    yield f"({batch:.2f} in the place of {over[5]:.2f})"
    yield from by_step()


def making_data() -> Iterator[str]:
    """docs/making-data.md."""
    bm25, tfidf = (
        next(cell for cell in read_list("scorers.json") if cell["scorer"].startswith(name))
        for name in ("bm25", "tfidf")
    )
    yield f"Of {bm25['questions']} questions"
    yield f"for {100 * bm25['preferred']:.1f} % and TF-IDF for {100 * tfidf['preferred']:.1f} %"


def read_list(name: str) -> list[dict[str, float]]:
    """A results file that holds a list."""
    found: list[dict[str, float]] = read(name)  # type: ignore[assignment]
    return found


def evaluation() -> Iterator[str]:
    """docs/evaluation.md."""
    found = read("retrieval/summary.json")
    whole, by_length = found["scores"]["needles"], found["by_length"]["needles"]
    within = ("512", "1024", "2048", "4096")
    assert all(by_length[length]["mean"] == 1 for length in within)
    asked = sum(by_length[length]["n"] for length in within)
    found_at_end = round(by_length["8192"]["mean"] * by_length["8192"]["n"])
    yield f"asks for {whole['n']} needles"
    yield f"finds {100 * whole['mean']:.0f} % [{100 * whole['low']:.0f}, {100 * whole['high']:.0f}]"
    yield f"up to 4096 tokens all {asked}, at 8192 {found_at_end} of {by_length['8192']['n']}"


def points(first: str, second: str, part: str, at: str) -> float:
    """A difference of the protocol or of an ablation, in points."""
    (found,) = {c for c in (*comparisons(), *ablations()) if _is(c, first, second, part, at)}
    outcome = compare(results(), found)
    assert outcome is not None
    return (1 if part == "write" else 100) * outcome.interval.mean


def _is(comparison: Comparison, *wanted: str) -> bool:
    return (comparison.first, comparison.second, comparison.part, comparison.at) == wanted


def replication() -> Iterator[str]:
    """docs/replication.md."""
    long = {"qa": "trained + beyond", "find": "trained + beyond_256 + beyond_1024"}
    yield f"cost the base model {-points('base_diluted', 'base', 'qa', 'diluted − trained'):.1f} points"
    yield f"raises long-context accuracy by {points('longpo', 'base', 'qa', long['qa']):.1f} points"
    yield f"In `find` it loses {-points('longpo', 'base', 'find', long['find']):.1f} points"
    yield f"it gains {points('longpo_answer', 'base', 'find', long['find']):.1f} points on long contexts"
    yield f"takes it up by {points('longpo_answer', 'longpo', 'qa', long['qa']):.1f} points"
    most, least = lead_by_seed(lead_over_sft())
    yield f"in `find` one seed leads SFT by {most:.1f} points and the other by {least:.1f}"
    (dpo,) = (c for c in comparisons() if (c.first, c.part) == ("dpo", "write"))
    outcome = compare(results(), dpo)
    assert outcome is not None
    first, second = (outcome.by_seed[seed] for seed in sorted(outcome.by_seed))
    mean = outcome.interval.mean
    yield f"{mean:.1f} points more on average, but {-first:.1f} fewer with one seed and {second:.1f} more"
    score = [mean_of(results(), "write", name, "length_score") for name in ("base", "sft")]
    words = [
        mean_of(results(), "write", name, "written_words").mean  # type: ignore[union-attr]
        for name in ("sft", "dpo_half", "dpo")
    ]
    yield "S_l from {:.1f} to {:.1f}".format(*(interval.mean for interval in score if interval is not None))
    yield "from {:.1f} words over {:.1f} after one epoch to {:.1f}".format(*words)


QUOTES = {
    "README.md": readme,
    "docs/performance.md": performance,
    "docs/long-sequences.md": long_sequences,
    "docs/windows.md": windows,
    "docs/methods.md": methods,
    "docs/planning.md": planning,
    "docs/making-data.md": making_data,
    "docs/evaluation.md": evaluation,
    "docs/replication.md": replication,
}


def prose(text: str) -> str:
    """A page without blocks, tables and what `docs/tables.py` writes, white space made one."""
    text = re.sub(r"<!-- [\w ]+: begin -->.*?<!-- [\w ]+: end -->", " ", text, flags=re.DOTALL)
    text = re.sub(r"^```.*?^```$", " ", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^\|.*$", " ", text, flags=re.MULTILINE)
    return " ".join(text.split())


def faults() -> Iterator[str]:
    """What is wrong: a sentence that a page lacks, a figure that no sentence covers, an explanation of nothing."""
    for path in PAGES:
        page = str(path.relative_to(ROOT))
        text = prose(path.read_text())
        covered = [False] * len(text)
        explained = [fragment for own, fragment in EXPLAINED if own == page]
        for fragment in (*QUOTES.get(page, lambda: ())(), *explained):
            start = text.find(fragment)
            if start < 0:
                yield f"{page} does not say: {fragment}"
            covered[start : start + len(fragment)] = [True] * len(fragment)
        for found in FIGURE.finditer(text):
            if not all(covered[found.start() : found.end()]):
                yield f"{page}: no file gives «{text[max(0, found.start() - 60) : found.end() + 20]}»"


def main() -> int:
    """Prints the faults."""
    found = list(faults())
    print("\n".join(found) or f"every figure comes from {Path(RESULTS).name}/")
    return len(found) > 0


if __name__ == "__main__":
    sys.exit(main())
