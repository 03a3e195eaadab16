"""Samples of one instruction: what the local generator costs beside reading the prompt once and decoding.

python benchmarks/generation.py                       # writes results/generation.json
python benchmarks/generation.py --tokens 256 --new 8  # to see that it runs

A round measures, one after the other on the same prompt: one forward of the prompt alone (*read*); the samples'
decoding after a cache that is there already (*decode*); the generator, shared and unshared (*shared*, *unshared*).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import DynamicCache, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from align.documents.loading import load_documents
from align.generation.generators import Message, Request, Sampling, derive_seed
from align.generation.local_generator import LocalGenerator
from align.generation.sampling import RowSampler
from align.models.loading import load_causal_lm, load_tokenizer
from align.models.settings import ModelSettings

RESULTS = Path(__file__).parent / "results" / "generation.json"


def main() -> None:
    """Measures, prints the ratios and writes them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1500, help="of the instruction, template included")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--new", type=int, default=64, help="tokens of each sample")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    settings = ModelSettings(path=arguments.model)
    tokenizer = load_tokenizer(settings.path)
    model = load_causal_lm(settings)
    calls = sample_calls(tokenizer, arguments.tokens, arguments.samples, arguments.new)
    rounds = [measure(model, tokenizer, calls) for _ in range(arguments.rounds)]
    result = summarise(rounds) | {key: value for key, value in vars(arguments).items() if key != "output"}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["ratios"], indent=2))


def sample_calls(tokenizer: PreTrainedTokenizerBase, tokens: int, samples: int, new: int) -> list[Request]:
    """Requests that differ by their seed alone, with an instruction of real text."""
    text = "\n".join(document.text for document in load_documents("embedded"))
    ids = tokenizer(text, truncation=True, max_length=tokens - 40)["input_ids"]  # 40: the chat template's
    content = "Continue this text:\n\n" + tokenizer.decode(ids)
    sampling = Sampling(temperature=0.8, top_p=0.95, min_new_tokens=new, max_new_tokens=new)
    return [
        Request(f"sample{i}", (Message("user", content),), sampling, derive_seed(0, str(i)))
        for i in range(samples)
    ]


@torch.inference_mode()
def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calls: list[Request]
) -> dict[str, float]:
    """Seconds of each contestant, once; generators start without anything kept."""
    shared, unshared = (make_generator(model, tokenizer, share=share) for share in (True, False))
    prompt = torch.from_numpy(shared.encode(calls[0]))[None]
    cache = DynamicCache(config=model.config)
    seconds = {"read": timed(lambda: model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1))}
    cache.crop(-1)  # the last token is read with the first step of decoding
    cache.batch_repeat_interleave(len(calls))
    seconds["decode"] = timed(lambda: decode(model, shared, cache, prompt, calls))
    seconds["shared"] = timed(lambda: list(shared.generate(calls, finished=())))
    seconds["unshared"] = timed(lambda: list(unshared.generate(calls, finished=())))
    return seconds | {"prompt_tokens": prompt.shape[1]}


def decode(
    model: PreTrainedModel,
    generator: LocalGenerator,
    cache: DynamicCache,
    prompt: torch.Tensor,
    calls: list[Request],
) -> None:
    """All samples from a cache of all but the prompt's last token."""
    sampling = calls[0].sampling
    sampler = RowSampler(
        [call.seed for call in calls], temperature=sampling.temperature, top_p=sampling.top_p
    )
    generator._model.generate(
        prompt.expand(len(calls), -1),
        attention_mask=torch.ones(len(calls), prompt.shape[1], dtype=torch.long),
        past_key_values=cache,
        max_new_tokens=sampling.max_new_tokens,
        min_new_tokens=sampling.min_new_tokens,
        logits_processor=LogitsProcessorList([sampler]),
    )


def make_generator(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, share: bool
) -> LocalGenerator:
    """All calls in one batch."""
    return LocalGenerator(
        load=lambda: model,
        tokenizer=tokenizer,
        name="benchmark",
        window=None,
        batch_tokens=1_000_000,
        batch_size=64,
        share_prefixes=share,
    )


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def summarise(rounds: list[dict[str, float]]) -> dict[str, object]:
    """Medians over the rounds of ratios within a round."""

    def median(ratio: Callable[[dict[str, float]], float]) -> float:
        return round(statistics.median(map(ratio, rounds)), 3)

    ratios = {
        "shared / (read + decode)": median(lambda r: r["shared"] / (r["read"] + r["decode"])),
        "(shared - decode) / read": median(lambda r: (r["shared"] - r["decode"]) / r["read"]),
        "unshared / (read + decode)": median(lambda r: r["unshared"] / (r["read"] + r["decode"])),
        "(unshared - decode) / read": median(lambda r: (r["unshared"] - r["decode"]) / r["read"]),
    }
    return {"ratios": ratios, "rounds": rounds}


if __name__ == "__main__":
    main()
