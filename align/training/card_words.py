"""What a model card says in words: what training changed on held-out rows, and how the model is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from align.runs.objective import ACCURACY, LOSS
from align.scores.wilson import wilson

MARGIN = "eval_rewards/margins"


def change(results: Mapping[str, Any]) -> str:
    """What training changed on held-out rows, with the interval of the share of right comparisons.

    Args:
        results: `before`, `after` and `data` of results.json.

    Returns:
        A paragraph; empty where nothing was held out, or the run has not ended.
    """
    rows = results.get("data", {}).get("eval_rows", 0)
    pairs = {
        key: (results.get("before", {}).get(key), results.get("after", {}).get(key))
        for key in (ACCURACY, MARGIN, LOSS)
    }
    known = {key: pair for key, pair in pairs.items() if all(_finite(value) for value in pair)}
    if not rows or not known:
        return ""
    sentences = []
    if ACCURACY in known:
        sentences.append(_comparisons(known[ACCURACY], rows, same=pairs[MARGIN][0] == 0))
    if MARGIN in known:
        sentences.append(_moved("The margin between the rewards of the two", known[MARGIN]))
    if LOSS in known:
        sentences.append(_moved("The loss", known[LOSS]))
    held_out = "one row" if rows == 1 else f"{rows:,} rows"
    return f"Measured on {held_out} that were held out of training. {' '.join(sentences)}\n"


def use(
    name: str,
    *,
    template: str,
    chat: bool,
    template_kwargs: Mapping[str, Any],
    system: str | None = None,
    loader: str = "AutoModelForCausalLM",
    parts: bool = False,
) -> str:
    """Python that asks the model a question about a document, as its training rows asked.

    Args:
        name: the model's folder or Hub id.
        template: `data.template`, the prompt with places for `{context}` and `{question}`.
        chat: whether the prompt goes through the tokenizer's chat template.
        template_kwargs: variables of the chat template.
        system: `data.system`, the system message of every row without one of its own.
        loader: the library's door to the model.
        parts: whether the chat template takes a content as a list of parts alone.
    """
    said = {"system": None if system is None else repr(system), "user": "prompt"}
    messages = [
        f'{{"role": "{role}", "content": {_part(text) if parts else text}}}'
        for role, text in said.items()
        if text is not None
    ]
    given = ", ".join(
        f"{key}={value!r}" for key, value in {"add_generation_prompt": True, **template_kwargs}.items()
    )
    if chat:
        encode = (
            f"messages = [{', '.join(messages)}]\n"
            "inputs = tokenizer.apply_chat_template(\n"
            f'    messages, {given}, return_dict=True, return_tensors="pt"\n)'
        )
    else:
        encode = 'inputs = tokenizer(prompt, return_tensors="pt")'
    return (
        "from pathlib import Path\n\n"
        f"from transformers import {loader}, AutoTokenizer\n\n"
        f"tokenizer = AutoTokenizer.from_pretrained({name!r})\n"
        f'model = {loader}.from_pretrained({name!r}, dtype="auto")\n'
        'document = Path("document.txt").read_text(encoding="utf-8")\n'
        f'prompt = {template!r}.replace("{{context}}", document).replace("{{question}}", "What follows from it?")\n'
        f"{encode}\n"
        "answer = model.generate(**inputs.to(model.device), max_new_tokens=512)\n"
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))'
    )


def _part(text: str) -> str:
    """The expression of a content with one part."""
    return f'[{{"type": "text", "text": {text}}}]'


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _comparisons(shares: tuple[float, float], rows: int, *, same: bool) -> str:
    """The share of comparisons that the preferred answer wins, with Wilson's interval over the rows."""
    before, after = (_share(share, rows) for share in shares)
    if same:  # policy and reference are one model at the start
        return (
            f"The preferred answer has the higher reward in {after} of the comparisons after training; "
            "before it, both answers had the same reward."
        )
    return (
        f"The preferred answer has the higher reward in {after} of the comparisons after training and had it "
        f"in {before} before."
    )


def _share(share: float, rows: int) -> str:
    low, high = wilson(share * rows, rows)
    return f"{share:.1%} (95 % interval over rows: {low:.1%} to {high:.1%})"


def _moved(what: str, pair: tuple[float, float]) -> str:
    return f"{what} went from {pair[0]:.4f} to {pair[1]:.4f}."
