"""Every row layout as an `Example`: TRL's columns, context and question, several turns, ShareGPT, SFT."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from align.data.columns import AnswerMessages, Columns, common_prefix
from align.data.context_rows import context_row
from align.data.examples import Example, Turn
from align.data.messages import Message, turns_of_answer
from align.data.sources import RawRow, open_sources, read_rows

LAYOUTS = (
    "prompt + chosen + rejected, chosen + rejected (prompt in both), "
    "context + question + chosen + rejected, context + questions + chosens + rejecteds, "
    "conversations + chosen + rejected, prompt + completion, messages, "
    "context + query + win_response + lose_response (LongReward), instruction + chosen + rejected (LongDPO)"
)


@dataclass(frozen=True)
class ParsedRow:
    """A row as text.

    Attributes:
        example: the row.
        dropped: how many of its rejected answers were left out, since they equal the chosen one.
    """

    example: Example
    dropped: int = 0


def read_examples(
    path: str, *, require_rejected: bool = False, limit: int | None = None
) -> Iterator[Example]:
    """The rows of `data.path` as text, one after the other (of a data set with splits: the train split).

    Args:
        path: a file, a folder of files, a saved `datasets` folder or a Hub id.
        require_rejected: the method compares answers, so that a row without a rejected one is an error.
        limit: at most this many rows.

    Raises:
        UserError: the path or a row cannot be used; names file and line or row.
    """
    for row in islice(read_rows(open_sources(path).train), limit):
        yield parse_row(row, require_rejected=require_rejected).example


def parse_row(row: RawRow, *, require_rejected: bool = False) -> ParsedRow:
    """One raw row as an `Example`, whatever its layout; arguments and errors as in `read_examples`."""
    columns = Columns(row.source, row.values)
    example = _read_layout(columns)
    kept, dropped = _drop_equal(example.turns)
    if dropped and not kept[0].rejected:
        raise columns.error("every rejected answer equals the chosen one.")
    if require_rejected and not kept[0].rejected:
        raise columns.no_rejected()
    return ParsedRow(replace(example, turns=kept, tools=columns.tools()), dropped)


def _read_layout(columns: Columns) -> Example:
    """Picks the layout by the columns that are there."""
    if "context" in columns:
        return context_row(columns)
    if "conversations" in columns:
        return _conversation_row(columns, "conversations")
    if "prompt" in columns:
        return _prompt_row(columns)
    if "messages" in columns:
        return _conversation_row(columns, "messages")
    if "instruction" in columns:
        return _instruction_row(columns)
    if "chosen" in columns:
        return _implicit_row(columns)
    found = ", ".join(columns.values) or "none"
    raise columns.error(f"unknown layout with the columns {found}; accepted are: {LAYOUTS}.")


def _conversation_row(columns: Columns, name: str) -> Example:
    """A conversation: the prompt where `chosen` is there (ranking rows), else the whole of an SFT row."""
    messages = columns.conversation(name)
    if "chosen" in columns:
        answers = [columns.answer("chosen", columns.get("chosen")), *columns.answers("rejected")]
        return _chat_example(columns, messages, answers)
    first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), None)
    if first is None:
        raise columns.error(f"column {name} holds no assistant's message and there is no column chosen.")
    return _chat_example(columns, messages[:first], [messages[first:]])


def _prompt_row(columns: Columns) -> Example:
    """`prompt` with `chosen` and `rejected`, or with `completion`."""
    column = "chosen" if "chosen" in columns else "completion"
    chosen = columns.answer(column, columns.get("chosen", "completion"))
    answers = [chosen, *columns.answers("rejected")]
    if not isinstance(columns.get("prompt"), str):
        return _chat_example(columns, columns.conversation("prompt"), answers)
    prompt = columns.text("prompt")
    if chosen[0]["role"] != "assistant":  # TRL: a prompt column beside conversations that hold it too
        return _implicit_row(columns)
    if not isinstance(columns.get(column), str):
        return _chat_example(columns, [{"role": "user", "content": prompt}], answers)
    turns, dropped = _turns(columns, answers)
    system = columns.optional_text("system")
    return Example(columns.source, turns, text=prompt, system=system, dropped_messages=dropped)


def _instruction_row(columns: Columns) -> Example:
    """LongDPO's steps: `instruction` is the whole prompt as text, with its markers and the text so far."""
    if columns.optional_text("input") is not None:
        raise columns.error(
            "column input beside instruction is not read: put both into prompt, as the model is to see them."
        )
    prompt = columns.text("instruction")
    answers = [columns.answer("chosen", columns.get("chosen")), *columns.answers("rejected")]
    return Example(columns.source, _turns(columns, answers)[0], text=prompt)


def _implicit_row(columns: Columns) -> Example:
    """`chosen` and `rejected` share their beginning, which is the prompt (TRL's `extract_prompt`).

    Of the texts `Is it? Yes` and `Is it? No` the prompt is `Is it?`, and the answers are ` Yes` and ` No`.
    """
    chosen = columns.get("chosen")
    conversations = [columns.answer("chosen", chosen), *columns.answers("rejected")]
    if isinstance(chosen, str):
        return _implicit_text(columns, conversations)
    if all(other == conversations[0] for other in conversations[1:]):
        cut = len(conversations[0]) - 1  # an SFT conversation, or equal answers, which are told later
    else:
        cut = common_prefix(conversations)
    return _chat_example(columns, conversations[0][:cut], [one[cut:] for one in conversations])


def _implicit_text(columns: Columns, conversations: list[AnswerMessages]) -> Example:
    """The same where both are plain texts."""
    texts = [columns.single("chosen" if i == 0 else "rejected", one) for i, one in enumerate(conversations)]
    if len(texts) > 1 and all(text == texts[0] for text in texts[1:]):
        raise columns.error("every rejected answer equals the chosen one.")
    cut = common_prefix(texts) if len(texts) > 1 else 0
    if cut and texts[0][cut - 1] == " ":  # the space belongs to the answer, as TRL has it
        cut -= 1
    if not texts[0][:cut].strip():
        raise columns.error("there is no prompt: chosen and rejected share no beginning.")
    turns, _ = _turns(columns, [[{"role": "assistant", "content": text[cut:]}] for text in texts])
    return Example(columns.source, turns, text=texts[0][:cut], system=columns.optional_text("system"))


def _chat_example(columns: Columns, prompt: list[Message], answers: list[AnswerMessages]) -> Example:
    """A row of chat messages; the prompt must end with the user's, or with a tool's result."""
    if not prompt or prompt[-1]["role"] not in ("user", "tool"):
        raise columns.error("the prompt must end with a user's message.")
    if prompt[-1]["role"] == "user" and not prompt[-1]["content"].strip():
        raise columns.error("the user's last message is empty.")
    system = columns.optional_text("system")
    if system is not None and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": system}, *prompt]
    turns, dropped = _turns(columns, answers)
    return Example(columns.source, turns, messages=tuple(prompt), dropped_messages=dropped)


def _turns(columns: Columns, answers: list[AnswerMessages]) -> tuple[tuple[Turn, ...], int]:
    """The turns of answers that share their later questions, and how many messages after the last answer are left out.

    The chosen `assistant: A, user: and then?, assistant: B` beside the rejected `assistant: C, user: and
    then?, assistant: D` makes two turns: A against C, and to the question `and then?` B against D.

    Args:
        columns: the row, for messages to people.
        answers: each as messages, the chosen one first.
    """
    parted = []
    for i, answer in enumerate(answers):
        name = "chosen" if i == 0 else "rejected"
        turns_of = turns_of_answer(answer)
        if turns_of is None:
            raise columns.error(f"column {name} must start and end with an assistant's message, in turns.")
        if not all((one["content"] or "").strip() or one.get("tool_calls") for one in turns_of.answers):
            raise columns.error(f"column {name} has an empty answer.")
        parted.append(turns_of)
        if turns_of.between != parted[0].between:
            raise columns.error("chosen and rejected must have the same later questions.")
    short = columns.optional_text("short_prompt")
    if short is not None and parted[0].between:
        raise columns.error("a row of several turns takes short_prompts beside context and questions.")
    turns = []
    for place, said in enumerate(zip(*(one.answers for one in parted), strict=True)):
        asked = parted[0].between[place - 1] if place else []
        question = asked[-1]["content"] if asked else None
        alone = len(asked) < 2 and all(one["role"] == "user" for one in asked)
        chosen, *rejected = (str(one["content"] or "") for one in said)
        fields = tuple(
            {name: item for name, item in one.items() if name not in ("role", "content")} for one in said
        )
        turns.append(
            Turn(
                question,
                chosen,
                tuple(rejected),
                short,
                fields=fields if any(fields) else (),
                asked=() if alone else tuple(asked),
            )
        )
    return tuple(turns), sum(one.dropped for one in parted)


def _drop_equal(turns: tuple[Turn, ...]) -> tuple[tuple[Turn, ...], int]:
    """The turns without the rejected answers that equal the chosen one in every turn."""
    kept = [j for j in range(len(turns[0].rejected)) if any(not turn.rejects_the_same(j) for turn in turns)]
    dropped = len(turns[0].rejected) - len(kept)
    return (tuple(turn.with_rejected(kept) for turn in turns) if dropped else turns), dropped
