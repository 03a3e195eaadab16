"""The model of 0.12M parameters: its words, its chat template, and its training from scratch.

python -m benchmarks.miniature.tiny find 1 FOLDER      # the base model of part find, seed 1
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from align.generation.generators import derive_seed
from benchmarks.miniature import find, write

SPECIAL_TOKENS = ("<|pad|>", "<|unk|>", "<|im_start|>", "<|im_end|>")
ROLES = ("system", "user", "assistant", "\n")
# As ChatML is written everywhere: one block a message, each ended by <|im_end|> and a line break.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IGNORED = -100  # label of a token that is read and not learnt
# part → steps, sequences a step, peak learning rate; enough that the base does its task within its window.
TRAINING = {"find": (300, 64, 3e-3), "write": (200, 64, 3e-3)}
# A training sequence: its words, and for each whether it is learnt.
Sequences = Callable[[random.Random], tuple[list[str], list[bool]]]


def vocabulary() -> list[str]:
    """Every word, in the order of its id."""
    return [*SPECIAL_TOKENS, *ROLES, *find.WORDS, *write.WORDS]


def tokenizer() -> PreTrainedTokenizerFast:
    """One word, one token; a line break is one too, spaces only separate."""
    ids = {word: i for i, word in enumerate(vocabulary())}
    words = Tokenizer(models.WordLevel(ids, unk_token="<|unk|>"))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", behavior="isolated"), pre_tokenizers.Split(" ", behavior="removed")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )


def model(seed: int) -> LlamaForCausalLM:
    """Two layers of width 64, plain RoPE, random weights."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary()),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=2048,  # what may be asked; what it has seen in training is far less
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=SPECIAL_TOKENS.index("<|im_end|>"),
        )
    )


def chat(prompt: Sequence[str], answer: Sequence[str]) -> tuple[list[str], list[bool]]:
    """One exchange as the chat template writes it; the answer and its end are learnt."""
    before = ["<|im_start|>", "user", "\n", *prompt, "<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"]
    after = [*answer, "<|im_end|>"]
    return before + after, [False] * len(before) + [True] * len(after)


def find_sequence(rng: random.Random) -> tuple[list[str], list[bool]]:
    """Half of them an exchange; the other half a context with all its questions in a row, which teaches faster."""
    sample = find.draw(rng, tokens=rng.randint(find.CHUNK, find.TRAINED))
    kinds = list(sample.facts)
    rng.shuffle(kinds)
    if rng.random() < 0.5:
        return chat([*sample.words, *find.question(kinds[0])], [sample.facts[kinds[0]]])
    asked = [word for kind in kinds for word in (find.kind_word(kind), sample.facts[kind])]
    return [*sample.words, *asked], [False] * len(sample.words) + [False, True] * len(kinds)


def write_sequence(rng: random.Random) -> tuple[list[str], list[bool]]:
    """An instruction for some length and an answer of at most `write.SHORT` words."""
    topic, required = rng.choice(write.train_pairs())
    answer = write.text(rng, topic, words=rng.randint(4, write.SHORT))
    return chat(write.instruction(topic, required).split(), answer)


SEQUENCES: dict[str, Sequences] = {"find": find_sequence, "write": write_sequence}


def train(part: str, seed: int, *, steps: int, batch: int, learning_rate: float) -> LlamaForCausalLM:
    """Next-token loss on what is learnt of each sequence; AdamW, warm-up of 50 steps, cosine to a tenth."""
    ids = {word: i for i, word in enumerate(vocabulary())}
    rng = random.Random(derive_seed(seed, part, "base"))
    policy = model(seed)
    optimiser = torch.optim.AdamW(policy.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        scale = min(1.0, (step + 1) / 50) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * scale
        loss = policy(**batch_of([SEQUENCES[part](rng) for _ in range(batch)], ids)).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 49 or step == steps - 1:
            print(f"{part}, seed {seed}: step {step + 1} of {steps}, loss {loss.item():.4f}", flush=True)
    return policy.eval()


def batch_of(
    sequences: Sequence[tuple[list[str], list[bool]]], ids: dict[str, int]
) -> dict[str, torch.Tensor]:
    """`input_ids` and `labels` `[B, longest]`; what pads on the right is never attended by what counts."""
    longest = max(len(words) for words, _ in sequences)
    tokens = torch.zeros(len(sequences), longest, dtype=torch.long)
    labels = torch.full_like(tokens, IGNORED)
    for row, (words, learnt) in enumerate(sequences):
        known = torch.tensor([ids[word] for word in words])
        tokens[row, : len(words)] = known
        labels[row, : len(words)] = torch.where(torch.tensor(learnt), known, IGNORED)
    return {"input_ids": tokens, "labels": labels}


def main() -> None:
    """Trains a base model and saves it with its tokenizer; the folder appears when it is whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=sorted(TRAINING))
    parser.add_argument("seed", type=int)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    steps, batch, learning_rate = TRAINING[arguments.part]
    policy = train(arguments.part, arguments.seed, steps=steps, batch=batch, learning_rate=learning_rate)
    save(policy, arguments.folder)


def save(policy: LlamaForCausalLM, folder: Path) -> None:
    """Writes the model with its tokenizer, whole or not at all."""
    staging = folder.with_name(f".{folder.name}.{os.getpid()}")
    policy.save_pretrained(staging)
    tokenizer().save_pretrained(staging)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(staging, folder)


if __name__ == "__main__":
    main()
