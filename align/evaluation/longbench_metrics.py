"""LongBench's task metrics, equal to the published scorer's, its quirks included (Bai et al. 2023, arXiv:2308.14508).

The libraries are the published scorer's own (`rouge`, `jieba`, `fuzzywuzzy`: extra `evaluate`), since others
round or cut differently. They are imported when a score first needs them.
"""

from __future__ import annotations

import functools
import re
import string
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from align.core.errors import UserError
from align.evaluation.answers import normalise, token_f1

# `(prediction, reference, all_classes) -> score in [0, 1]`
Metric = Callable[[str, str, Sequence[str]], float]

# Chinese and full-width punctuation that the published scorer strips beside ASCII's.
_ZH_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿"
    "–—‘’‛“”„‟…‧﹏."
)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation + _ZH_PUNCTUATION)
# What the references of these tasks hold.
PLACES = {"passage_retrieval_en": r"Paragraph (\d+)", "passage_retrieval_zh": r"段落(\d+)"}
_COMMENT_MARKS = ("`", "#", "//")


def library(name: str) -> ModuleType:
    """One of the published scorer's libraries.

    Raises:
        UserError: it is not installed.
    """
    import importlib

    try:
        with warnings.catch_warnings():
            # jieba calls pkg_resources, fuzzywuzzy wants a faster library that rounds differently.
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"LongBench's scores need the package {name}: `pip install 'long-preference[evaluate]'`."
        ) from error


def f1(prediction: str, reference: str, all_classes: Sequence[str] = ()) -> float:
    """Token F1 over normalised words."""
    return token_f1(normalise(prediction).split(), normalise(reference).split())


def f1_zh(prediction: str, reference: str, all_classes: Sequence[str] = ()) -> float:
    """Token F1 over jieba's tokens, each stripped of punctuation and white space; empty ones dropped."""
    return token_f1(_zh_tokens(prediction), _zh_tokens(reference))


def _zh_tokens(text: str) -> list[str]:
    stripped = ("".join(token.lower().translate(_NO_PUNCTUATION).split()) for token in _cut(text))
    return [token for token in stripped if token]


def _cut(text: str) -> list[str]:
    """jieba's words, in its exact mode."""
    jieba: Any = library("jieba")
    return list(jieba.cut(text, cut_all=False))


def rouge_l(prediction: str, reference: str, all_classes: Sequence[str] = ()) -> float:
    """Rouge-L f of the package `rouge`; 0 for whatever it cannot score: empty texts, and texts so long that
    its recursion ends.
    """
    try:
        return float(_rouge().get_scores([prediction], [reference], avg=True)["rouge-l"]["f"])
    except (ValueError, RecursionError):
        return 0.0


def rouge_l_zh(prediction: str, reference: str, all_classes: Sequence[str] = ()) -> float:
    """Rouge-L f over jieba's words."""
    return rouge_l(" ".join(_cut(prediction)), " ".join(_cut(reference)))


@functools.cache
def _rouge() -> Any:
    module: Any = library("rouge")
    return module.Rouge()


def classification(prediction: str, reference: str, all_classes: Sequence[str]) -> float:
    """1/number of the classes that the prediction names, if the right one is among them.

    Classes that are proper substrings of the right answer do not count. The published scorer takes them out
    while it walks over the list, so that the class behind a removed one is passed over: kept here.
    """
    named = [name for name in all_classes if name in prediction]
    for name in named:
        if name in reference and name != reference:
            named.remove(name)
    return 1.0 / len(named) if reference in named else 0.0


def count(prediction: str, reference: str, all_classes: Sequence[str] = ()) -> float:
    """Share of all numbers in the prediction that are the right count, compared as text."""
    return _share(prediction, str(reference))


def retrieval(prediction: str, reference: str, all_classes: Sequence[str] = ()) -> float:
    """Share of all numbers in the prediction that are the N of `Paragraph N`."""
    return _share(prediction, re.findall(PLACES["passage_retrieval_en"], reference)[0])


def retrieval_zh(prediction: str, reference: str, all_classes: Sequence[str] = ()) -> float:
    """Share of all numbers in the prediction that are the N of `段落N`."""
    return _share(prediction, re.findall(PLACES["passage_retrieval_zh"], reference)[0])


def _share(prediction: str, wanted: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(wanted) / len(numbers) if numbers else 0.0


def code_similarity(prediction: str, reference: str, all_classes: Sequence[str] = ()) -> float:
    """fuzzywuzzy's ratio (a whole number of per cent) of the first line without a backtick, `#` or `//`."""
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in _COMMENT_MARKS)), "")
    fuzz: Any = library("fuzzywuzzy.fuzz")
    return float(fuzz.ratio(line, reference)) / 100


METRICS: dict[str, Metric] = {
    **dict.fromkeys(
        ("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique", "triviaqa"), f1
    ),
    "multifieldqa_zh": f1_zh,
    **dict.fromkeys(("gov_report", "qmsum", "multi_news", "samsum"), rouge_l),
    **dict.fromkeys(("dureader", "vcsum"), rouge_l_zh),
    **dict.fromkeys(("trec", "lsht"), classification),
    "passage_retrieval_en": retrieval,
    "passage_retrieval_zh": retrieval_zh,
    "passage_count": count,
    **dict.fromkeys(("lcc", "repobench-p"), code_similarity),
}
# Of these only the first line of the prediction counts: few-shot examples make models go on.
FIRST_LINE = frozenset({"trec", "triviaqa", "samsum", "lsht"})
# These are scored by the classes that a row's `all_classes` lists.
CLASSES = frozenset({"trec", "lsht"})
# LongBench-E's buckets by the row's `length`: name → smallest length.
BUCKETS = {"0-4k": 0, "4-8k": 4000, "8k+": 8000}


def score(
    task: str, prediction: str, answers: Sequence[str], all_classes: Sequence[str] | None = None
) -> float:
    """A sample's score in [0, 1]: the best over its references.

    Args:
        task: a key of `METRICS`; LongBench-E's `_e` is dropped.
        prediction: what the model said.
        answers: accepted references.
        all_classes: the task's classes, for `trec` and `lsht`.

    Raises:
        UserError: unknown task, or no classes for a task that is scored by them.
    """
    name = task.removesuffix("_e")
    if name not in METRICS:
        raise UserError(f"LongBench has no task {task}: use one of {', '.join(METRICS)}.")
    if name in CLASSES and not all_classes:
        raise UserError(f"{task} is scored by its classes, and the row has no `all_classes`.")
    if name in FIRST_LINE:
        prediction = prediction.lstrip("\n").split("\n")[0]
    return max((METRICS[name](prediction, answer, all_classes or ()) for answer in answers), default=0.0)


def task_score(scores: Sequence[float]) -> float:
    """A task's published figure: the mean × 100, rounded to two decimals."""
    return round(100 * sum(scores) / len(scores), 2)


def bucket(length: int) -> str:
    """LongBench-E's bucket of a row's `length`."""
    return [name for name, least in BUCKETS.items() if length >= least][-1]
