"""Short answers: normalised as in SQuAD's token F1, and found in a prediction as a substring."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from align.core.readable import counted

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, ASCII punctuation out, the articles a, an, the out, white space folded; in this order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def token_f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of two bags of tokens; 0 where they share none."""
    common = (Counter(prediction) & Counter(reference)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(prediction), common / len(reference)
    return 2 * precision * recall / (precision + recall)


def contains_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether any accepted answer, normalised, is a substring of the normalised text, of all its lines.

    An answer of which nothing is left by the normalisation counts as not found.
    """
    said = normalise(text)
    return any(wanted in said for wanted in map(normalise, answers) if wanted)


def never_found(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence where nothing is left of all of a record's `answers`, so that none can be found."""
    lost = sum(not any(map(normalise, record["answers"])) for record in records)
    if not lost:
        return []
    return [
        f"{lost} of {counted(len(records), 'question')} have no answer that could be found: without articles and "
        "punctuation nothing is left of theirs."
    ]


def first_line(prediction: str) -> str:
    """What is said before the first line break.

    The accuracy of multi-document question answering (Liu et al. 2023, "Lost in the Middle", section 2.2; the released
    scorer's `best_subspan_em`) is `contains_answer` of it: whoever repeats the documents says every answer somewhere.
    """
    return prediction.split("\n", 1)[0]
