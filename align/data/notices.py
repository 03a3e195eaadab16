"""What a command says of its rows before it loads a model: what is cut, left out, or read in an unusual way."""

from __future__ import annotations

import pyarrow.compute as pc

from align.core.readable import agreeing, counted
from align.data.bad_rows import reasons
from align.data.dataset import PreferenceData
from align.data.totals import column_of
from align.data.unread import unread_notices


def notices(
    data: PreferenceData,
    *,
    window: int | None,
    reach: int | None = None,
    limit: str = "data.max_length",
    bad_rows: str = "drop",
) -> list[str]:
    """One sentence for each thing that a user may not expect; none where rows are read as they stand.

    Args:
        data: the rows.
        window: tokens that the model was made to read, where contexts are cut to them because `data.max_length` is
            not set. None where the user has set a length or stretched the model.
        reach: positions that the model was made to read, more than its window where its RoPE is linear; None: as many
            as the window.
        limit: what set the length, where it was not the window.
        bad_rows: what training does about rows that cannot be used (`data.bad_rows`).
    """
    return [
        *_pieces(data, window=window, limit=limit),
        *_rows_of_pieces(data.counts),
        *_cuts(data.counts, window=window, limit=limit),
        *_places(data, window=window, reach=reach),
        *_readings(data),
        *unread_notices(data),
        *_left_out(data, bad_rows),
    ]


def _pieces(data: PreferenceData, *, window: int | None, limit: str) -> list[str]:
    """What became of documents of plain text."""
    counts = data.counts
    if not counts["documents"]:
        return []
    read = f"{counted(counts['documents'], 'document')} of plain text {agreeing(counts['documents'], 'is', 'are')} read"
    end = "nothing is put behind them" if data.end is None else f"each ends with {data.end}"
    tokens = counted(counts["piece_tokens"], "token")
    if not counts["cut_documents"]:
        return [f"{read} whole, {tokens} together; {end}."]
    why = limit if window is None else f"the model's window of {window} tokens"
    are = agreeing(counts["cut_documents"], "is", "are")
    return [
        f"{read} as {counted(counts['pieces'], 'row')}, {tokens} together; {end}. "
        f"{counted(counts['cut_documents'], 'document')} {are} cut into pieces by {why}, of which "
        "a later one begins with the last token of the one before."
    ]


def _rows_of_pieces(counts: dict[str, int]) -> list[str]:
    """How rows that come in pieces are read."""
    rows = counts["rows_of_pieces"]
    if not rows:
        return []
    return [
        f"{counted(rows, 'row')} of pieces {agreeing(rows, 'is', 'are')} read as laid out, "
        f"{counted(counts['tokens_in_pieces'], 'token')} together: nothing is put before, between or behind the pieces."
    ]


def _cuts(counts: dict[str, int], *, window: int | None, limit: str) -> list[str]:
    """What is cut."""
    said = []
    why = limit if window is None else f"the model's window of {window} tokens"
    if counts["cut_rows"]:
        share = counts["cut_tokens"] / (counts["tokens"] + counts["cut_tokens"])
        said.append(
            f"The contexts of {counts['cut_rows']} of {counted(counts['rows'], 'row')} are cut to {why}: "
            f"{counted(counts['cut_tokens'], 'token')} are gone, {share:.1%} of all."
        )
    if counts["short_cut_rows"]:
        said.append(
            f"The short contexts of {counts['short_cut_rows']} of {counted(counts['rows'], 'row')} are cut to {why}: "
            f"{counted(counts['short_cut_tokens'], 'token')} are gone."
        )
    return said


def _places(data: PreferenceData, *, window: int | None, reach: int | None) -> list[str]:
    """Where positions lie."""
    counts, said = data.counts, []
    beyond = positions_beyond(counts["largest_position"], window=window, reach=reach)
    if beyond is not None:
        said.append(beyond)
    if counts["unplaced_rows"]:
        said.append(
            f"{counts['unplaced_rows']} of {counted(counts['rows'], 'row')} have no context, and keep their positions."
        )
    if data.positions.redrawn:
        said.append(
            "Positions of training rows are drawn anew for each epoch (positions.redraw=epoch); held-out rows keep "
            "theirs."
        )
    return said


def _readings(data: PreferenceData) -> list[str]:
    """What is read in a way that its author may not expect."""
    counts, said = data.counts, []
    if "good_answers" in counts:
        said.append(
            f"Of the answers to train on, {counts['good_answers']} are good and {counts['bad_answers']} are bad."
        )
    if counts.get("unrelated_answers"):
        cut = f" ({counts['cut_unrelated']} of them are cut to fit)" if counts["cut_unrelated"] else ""
        said.append(
            "Each row also has the answer of the next row with another prompt, which is scored and not learnt: the "
            f"method estimates a KL by it{cut}."
        )
    if counts["rendered_prompts"]:
        said.append(
            f"{counted(counts['rendered_prompts'], 'string prompt')} (the first is {_first(data, 'rendered')}) "
            f"{agreeing(counts['rendered_prompts'], 'holds', 'hold')} special tokens of the "
            "model, which count as such, as in TRL; data.chat=always reads them as text."
        )
    if counts["inferred_prompts"]:
        said.append(
            f"{counts['inferred_prompts']} of {counted(counts['rows'], 'row')} (the first is "
            f"{_first(data, 'inferred')}) have no column prompt: theirs is what their answers begin with in common."
        )
    if counts["moved_spaces"]:
        said.append(
            f"{counted(counts['moved_spaces'], 'string prompt')} (the first is {_first(data, 'moved_space')}) "
            f"{agreeing(counts['moved_spaces'], 'ends', 'end')} in a space, which is read as "
            "the beginning of the answers, since it makes one token with their first word."
        )
    if counts["text_prompts"] and data.of_template:
        said.append(
            f"{counted(counts['text_prompts'], 'string prompt')} (the first is {_first(data, 'as_text')}) "
            f"{agreeing(counts['text_prompts'], 'stands as it is', 'stand as they are')}, without the "
            f"chat template, so that {', '.join(data.of_template)} changes nothing there; "
            "data.chat=always makes each a user's message."
        )
    unread = [key for key in data.of_template if key != "data.system"]
    if counts["joined_rows"] and unread:
        said.append(
            f"The messages of {counted(counts['joined_rows'], 'row')} (the first is {_first(data, 'joined')}) are "
            f"written without a chat template, so that {', '.join(unread)} changes nothing there."
        )
    if counts["joined_rows"] and not data.has_template:
        said.append(
            f"The tokenizer has no chat template: the messages of {counted(counts['joined_rows'], 'row')} (the first "
            f"is {_first(data, 'joined')}) are joined as plain text that does not tell who says what; "
            "data.chat_template names a template, data.chat=never says that it is meant."
        )
    if data.date is not None:
        said.append(
            f"The chat template writes the date into prompts: data.date={data.date} gives the same prompts on another "
            "day."
        )
    return said


def _left_out(data: PreferenceData, bad_rows: str) -> list[str]:
    """What is not there any more."""
    counts, said = data.counts, []
    if counts["dropped_rejected"]:
        said.append(
            f"{counted(counts['dropped_rejected'], 'rejected answer')} "
            f"{agreeing(counts['dropped_rejected'], 'equals the chosen one and is', 'equal the chosen one and are')} "
            "left out."
        )
    if counts["dropped_reasoning"]:
        said.append(
            f"The reasoning of {counted(counts['dropped_reasoning'], 'answer')} was left out (data.thinking=drop)."
        )
    if counts["dropped_messages"]:
        said.append(
            "Left out behind the last answers of rows, where nobody answers: "
            f"{counted(counts['dropped_messages'], 'message')}."
        )
    if data.dropped:
        total = counted(counts["rows"] + counts["dropped_rows"], "row")
        if bad_rows == "drop":
            said.append(
                f"{counts['dropped_rows']} of {total} cannot be used and are left out: {reasons(data.dropped)}."
            )
        else:
            said.append(
                f"{counts['dropped_rows']} of {total} cannot be used ({reasons(data.dropped)}): training ends at the "
                "first of them; data.bad_rows=drop leaves them out."
            )
    return said


def positions_beyond(largest: int, *, window: int | None, reach: int | None) -> str | None:
    """What is said where positions are synthesised that the model was not made for; None where there are none."""
    most = window if reach is None else reach
    if most is None or largest < most:
        return None
    return f"Positions go up to {largest}, and the model was made for {most}: model.rope stretches it."


def _first(data: PreferenceData, name: str) -> str:
    """Where the first row stands of which the column `name` is true."""
    for rows in (data.train, data.eval):
        if rows is not None and (place := pc.index(column_of(rows, name), True).as_py()) >= 0:
            return str(rows[place]["source"])
    return "none"
