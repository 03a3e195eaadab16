"""The question in what a model wrote when it was asked for one."""

from __future__ import annotations

import re
from collections.abc import Sequence

SHORTEST_QUESTION = 3  # words

_ASKING = (
    *(
        "who",
        "whom",
        "whose",
        "what",
        "which",
        "when",
        "where",
        "why",
        "how",
        "is",
        "are",
        "was",
        "were",
        "am",
        "do",
    ),
    *(
        "does",
        "did",
        "has",
        "have",
        "had",
        "can",
        "could",
        "will",
        "would",
        "shall",
        "should",
        "may",
        "might",
        "must",
    ),
    *("in what", "in which", "to what", "at what", "on what", "for what", "by what", "according to", "name"),
)
# A question mark that ends its question: none inside quotes after which words go on.
_MARK = re.compile(r"[?？](?![\"'”’)\]]+\s*\w)")
_LABEL = r"(?:question|q|问题|問題)\s*+(?:\d+|one)?\s*+[.:：)]"
_DECORATION = re.compile(rf"(?:[\s\"'“‘*#>•_-]+|\(?\d{{1,2}}[.)、]\s*|{_LABEL})+", re.IGNORECASE)
_OPENING = r"[\"'“‘*_(\[]*"
_ENDS = re.compile(rf"(?<!\S)(?P<before>\S*)(?P<end>[.!?…][\"'”’)\]*_]*\s+)(?={_OPENING}[^\W\d_])")
_CHINESE_ENDS = re.compile(r"[。！？…][\"'”’）」』]*")
_INTRODUCED = re.compile(r"(?:\bquestions?\b|问题|問題)[^:：?？]{0,80}[:：][*_]*\s*", re.IGNORECASE)
_COLON = re.compile(r"[:：][*_]*\s+")
# Behind these a capital is a name's, and no sentence begins.
_TITLES = "dr mr mrs ms prof st sir gen col capt lt sgt rev hon sen gov pres messrs mme mlle"
TITLES = frozenset(_TITLES.split())
# Behind these no sentence begins where only a capital says so.
_SHORTENED = """
etc approx est ibid fig figs vol vols nos eds incl resp dept univ misc max min ave viz sec chap ref refs tel
"""
SHORTENED = frozenset(_SHORTENED.split())


def parse_question(text: str, *, leads: Sequence[str] = ()) -> str | None:
    """The first question, without what stands before it in its line, list marks, labels and quotes; None without one.

    It begins with its line, or behind the last sentence in it: behind a full stop before a word that asks, or one of
    `leads`, or that follows a word in small letters. Abbreviations (`Dr. Smith`, `the U.S. policy`, `e.g. keys`)
    and colons (`x: int`) end no sentence. Of `Here it is. What did Dr. Smith say?` it is `What did Dr. Smith say?`.
    """
    mark = _MARK.search(text) or re.search("[?？]", text)
    if mark is None:
        return None
    lines = text[: mark.end()].splitlines()
    line = lines[-1]
    undecorated = _without_decoration(line)
    question = _without_decoration(undecorated[_start(undecorated, leads) :])
    if not _says_something(question):
        question = undecorated  # as of `Why Mr. Who?`: what was cut off belongs to it
    return question if _says_something(question) else None


def _start(line: str, leads: Sequence[str]) -> int:
    """Where the last sentence of a line begins."""
    asking = rf"{_OPENING}(?:{'|'.join(map(re.escape, (*_ASKING, *filter(None, leads))))})\b"
    starts = [0, *(match.end() for match in _CHINESE_ENDS.finditer(line[:-1]))]
    for match in _ENDS.finditer(line):
        word = match["before"].strip("\"'“‘([*_")
        follows = line[match.end() :]
        capital = follows.lstrip("\"'“‘*_([")[:1].isupper()
        name = word.casefold() in TITLES or (len(word) == 1 and word.isupper())
        asks = re.match(asking, follows, re.IGNORECASE) is not None
        plain = word.islower() and word.isalpha() and len(word) > 2 and word not in SHORTENED
        if capital and not name and (asks or plain):
            starts.append(match.end())
    starts += [match.end() for match in _INTRODUCED.finditer(line)]
    for match in _COLON.finditer(line):
        follows = line[match.end() :].lstrip("\"'“‘*_([")
        if follows[:1].isupper() and re.match(asking, follows, re.IGNORECASE):
            starts.append(match.end())
    # A lead that the model did not go on from: `What Who wrote it?`
    for lead in filter(None, leads):
        again = re.match(rf"{re.escape(lead)}\s+(?=[A-Z])(?={asking})", line, re.IGNORECASE)
        starts += [again.end()] if again and again.end() < len(line) and line[again.end()].isupper() else []
    return max(starts)


def _without_decoration(text: str) -> str:
    match = _DECORATION.match(text)
    return text[match.end() if match else 0 :].strip()


def _says_something(question: str) -> bool:
    """Three words, or text in a script without spaces."""
    return len(question.split()) >= SHORTEST_QUESTION or (len(question) >= 4 and not question.isascii())
