"""Part `qa`: preference rows that the starting model makes itself; a pipeline of `align synthesize`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.core.errors import UserError
from align.documents.loading import Document
from align.evaluation.answers import contains_answer
from align.generation.generators import Completion, Message, Request, Sampling, ScoredText, derive_seed
from align.generation.prompts import PromptEncoder
from align.generation.stage import Workspace, run_stage
from align.synthesis.answers import comparable, trim_cut
from align.synthesis.pipeline import Summary, write_rows
from benchmarks.miniature import questions
from benchmarks.miniature.questions import Row, Split


@dataclass(frozen=True)
class QuestionRows:
    """`pipeline._target_` of the cell `qa/rows`.

    Attributes:
        data: the folder `ALIGN_DATA`.
        sources: training questions to make rows of, the first ones of the split.
        groups: of held-out questions, which do not train.
        max_new_tokens: of every answer, at most.
    """

    data: str
    sources: int = questions.SOURCES
    groups: int = questions.GROUPS
    max_new_tokens: int = 48

    def check(self) -> None:
        """Raises UserError where there is no data."""
        if not (Path(self.data) / questions.FILE).is_file():
            raise UserError(
                f"pipeline.data={self.data} has no {questions.FILE}: see docs/data-for-experiments.md."
            )

    def read(self) -> list[Document]:
        """The training questions; their texts are read again by `run`."""
        train = Split.read(Path(self.data), groups=self.groups).train[: self.sources]
        return [
            Document(str(i), f"{questions.FILE}:{i}", f"{row['question']} {row['ctxs'][0]['text']}")
            for i, row in enumerate(train)
        ]

    def run(self, documents: Sequence[Document], workspace: Workspace) -> Summary:
        """Chosen answers of all questions, then the rejected ones of those that are right."""
        split = Split.read(Path(self.data), groups=self.groups)
        places = [int(document.id) for document in documents]
        dropped: Counter[str] = Counter()
        alone = {place: [questions.passage(split.train[place])] for place in places}
        chosen = self._ask("chosen", split, alone, workspace)
        right = [place for place in places if _is_right(chosen[place], split.train[place])]
        dropped["preferred answer wrong"] = len(places) - len(right)
        contexts = {place: split.context(place) for place in right}
        long = self._ask("long", split, {place: contexts[place][0] for place in right}, workspace)
        wrong = [place for place in right if _is_rejected(long[place], chosen[place], split.train[place])]
        dropped["answer from the long context right, or the same"] = len(right) - len(wrong)
        others = {place: _without_gold(*contexts[place]) for place in wrong}
        one = self._ask("irrelevant1", split, {p: others[p][:1] for p in wrong}, workspace)
        three = self._ask("irrelevant3", split, {p: others[p][1:4] for p in wrong}, workspace)
        encode = PromptEncoder(workspace.tokenizer)
        rows = []
        for place in wrong:
            row = split.train[place]
            irrelevant = [one[place], three[place]]
            texts = {comparable(text) for text in irrelevant}
            if len(texts) < 2 or not all(_is_rejected(text, chosen[place], row) for text in irrelevant):
                dropped["answer from irrelevant passages right, or the same"] += 1
                continue
            answers = {"chosen": chosen[place], "long": long[place], "irrelevant": irrelevant}
            rows.append(_row(place, row, *contexts[place], answers, encode))
        return Summary(
            path=write_rows(workspace.output, rows),
            rows=len(rows),
            counts={"questions": len(places)},
            dropped=dict(dropped),
        )

    def _ask(
        self, stage: str, split: Split, contexts: dict[int, list[str]], workspace: Workspace
    ) -> dict[int, str]:
        """One greedy answer a place; a cut one ends at its last whole sentence."""
        requests = []
        for place, passages in contexts.items():
            name = f"{stage}/{place}"
            content = questions.prompt(passages, split.train[place])
            sampling = Sampling(0.0, 1.0, 1, self.max_new_tokens)
            seed = derive_seed(workspace.seed, name)
            requests.append(Request(name, (Message("user", content),), sampling, seed))
        completions: list[Completion] = run_stage(stage, requests, workspace)
        return {place: trim_cut(completion) for place, completion in zip(contexts, completions, strict=True)}


def _is_right(text: str, row: Row) -> bool:
    return bool(comparable(text)) and contains_answer(text, row["answers"])


def _is_rejected(text: str, chosen: str, row: Row) -> bool:
    """Says something, something else than the preferred answer, and nothing that counts as right."""
    return bool(comparable(text)) and comparable(text) != comparable(chosen) and not _is_right(text, row)


def _without_gold(passages: Sequence[str], gold: int) -> list[str]:
    return [text for i, text in enumerate(passages) if i != gold]


def _row(
    place: int,
    row: Row,
    passages: Sequence[str],
    gold: int,
    answers: Mapping[str, Any],
    encode: PromptEncoder,
) -> dict[str, Any]:
    """A row with every kind of rejected answer; `cells` gives each method its own."""
    message = (Message("user", questions.prompt(passages, row)),)

    def count(answer: str) -> tuple[int, int]:
        prompt, scored = encode.scored(ScoredText("", message, answer, end=True))
        return len(prompt), len(scored)

    prompt, chosen = count(answers["chosen"])
    tokens = {
        "prompt": prompt,
        "chosen": chosen,
        "long": count(answers["long"])[1],
        "irrelevant": sum(count(text)[1] for text in answers["irrelevant"]),
    }
    return {
        "id": f"train{place}",
        "context": list(passages),
        "question": questions.asked(row),
        "short_prompt": questions.passage(row),
        "chosen": answers["chosen"],
        "rejected": [answers["long"]],
        "long": answers["long"],
        "irrelevant": answers["irrelevant"],
        "gold": gold,
        "answers": row["answers"],
        "tokens": tokens,
    }
