"""Documents on their way to a server: what looks like a chat template's token is made plain text.

A server renders the chat template and tokenises the result, special tokens included, so that a document
which holds `<|im_end|>` would end its own message. A zero-width space after the first character of every such
marker takes the marker apart for any tokenizer, and stays invisible to a reader. It is taken out again where
an answer quotes it. In this process contents are tokenised as text (`prompts.PromptEncoder`), and only markers
that are no special tokens there, such as Mistral-v0.2's `[INST]`, are taken apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

BREAK = "\u200b"  # zero-width space: no normalisation form of Unicode removes it
_LONGEST = 80  # characters looked at behind a break

# Markers of the widespread templates: ChatML, Llama 2 to 4, Mistral, GLM, Gemma, Phi, DeepSeek, T5; EXAONE, Seed,
# Cohere, MiniMax, Nemotron, InternLM.
_MISTRAL = "INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|ARGS|CALL_ID|THINK|IMG"
KNOWN = (
    r"<\|[^<>|\n]{1,60}\|>",
    r"<｜[^<>｜\n]{1,60}｜>",
    r"<</?SYS>>",
    rf"\[/?(?:{_MISTRAL}|gMASK|sMASK|MASK|PREFIX|MIDDLE|SUFFIX|CLS|SEP|PAD|UNK|BOS|EOS)\]",
    r"</?(?:s|sop|eop|unk|pad|bos|eos|mask|think|tools?|tool_call|tool_response|start_of_turn|end_of_turn|image)>",
    r"<(?:unused|extra_id_|reserved_?|SPECIAL_)\d+>",
    r"<(?:start|end)_of_(?:image|utterance)>|</?arg_(?:key|value)>",
    r"<\|[a-z_]{1,40}>|<[a-z_]{1,40}\|>",
    r"\[\|[^\[\]|\n]{1,60}\|\]",
    r"</?seed:[^<>\n]{1,60}>",
    r"<[A-Z]{2,20}(?:_[A-Z]{1,20}){0,5}_TOKEN>",
    r"\]~!?b\[|\]~b\]|\[e~\[",
    r"<eo[hams]>|<eosys>|<TOKENS_UNUSED_\d+>|\[UNUSED_TOKEN_\d+\]",
)


class Escaper:
    """Takes markers apart and puts them together again.

    Args:
        markers: strings, such as a tokenizer's special tokens.
        patterns: regular expressions of further ones; by default those of the widespread templates.
    """

    def __init__(self, markers: Iterable[str] = (), patterns: Sequence[str] = KNOWN) -> None:
        known = re.compile("|".join(patterns) or r"(?!)")
        # Gemma has 6,242 of one pattern, and each further alternative is tried at each character.
        others = {marker for marker in markers if marker and known.fullmatch(marker) is None}
        named = [re.escape(marker) for marker in sorted(others, key=len, reverse=True)]
        self.markers = re.compile("|".join([*named, *patterns]) or r"(?!)")
        # Looking ahead from every character finds markers that overlap too.
        self._starts = re.compile(rf"(?=(?:{self.markers.pattern}))(.)", re.DOTALL)

    def escape(self, text: str) -> str:
        """The text without a marker: none of its substrings is one. `<|im_end|>` becomes `<`, U+200B, `|im_end|>`."""
        return self._starts.sub(rf"\1{BREAK}", text)

    def restore(self, text: str) -> str:
        """The text with the breaks inside markers taken out; other zero-width spaces stay."""
        parts = text.split(BREAK)
        whole = [parts[-1]]  # from the end
        ahead = parts[-1][:_LONGEST]  # how it begins
        for part in reversed(parts[:-1]):
            inside = part and self.markers.match(part[-1] + ahead)
            joint = "" if inside else BREAK
            whole += [joint, part]
            ahead = (part[:_LONGEST] + joint + ahead)[:_LONGEST]
        return "".join(reversed(whole))


def plain_markers(chat_template: str, specials: re.Pattern[str]) -> set[str]:
    """Markers that a chat template writes and its tokenizer has no special token for: plain text to both."""
    found = {match.group() for pattern in KNOWN for match in re.finditer(pattern, chat_template)}
    return {marker for marker in found if specials.fullmatch(marker) is None}
