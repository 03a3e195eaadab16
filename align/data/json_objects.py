"""A `.json` file that holds one object: one row, the rows under its one key, or pandas' columns of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from align.core.errors import UserError
from align.data.json_files import Values, as_object, only_value, whole_text
from align.data.near_names import shown
from align.data.row_files import RowFile

# One of these names is in every row of a known layout.
ROW_COLUMNS = ("context", "conversations", "prompt", "messages", "instruction", "chosen")


@dataclass(frozen=True)
class JsonObject(RowFile):
    """One JSON object, held whole."""

    @cached_property
    def _rows(self) -> list[Values]:
        value = only_value(whole_text(self.path, self.name), self.name)
        if not isinstance(value, dict):
            return [as_object(value, f"{self.name}:1")]
        return [
            as_object(row, f"{self.name}:{i}") for i, row in enumerate(rows_of(value, self.name), start=1)
        ]

    def count(self) -> int:
        """Rows that it holds."""
        return len(self._rows)

    def read(self, start: int, stop: int | None = None) -> Iterator[tuple[int, str, Values]]:
        """See `Source.read`."""
        for place, values in enumerate(islice(self._rows, start, stop), start):
            yield place, f"{self.name}:{place + 1}", values


def rows_of(value: Mapping[str, Any], name: str) -> list[Any]:
    """The rows that one object holds.

    One row has a column that all layouts have one of; `{"data": [{…}, {…}]}` has its rows under its only key; pandas'
    `to_json` writes each column as `{"0": …, "1": …}`.

    Raises:
        UserError: it is none of these.
    """
    held = list(value.values())
    if held and all(isinstance(one, dict) and one and one.keys() == held[0].keys() for one in held):
        if all(key.isdecimal() for key in held[0]):
            return [{column: cells[key] for column, cells in value.items()} for key in held[0]]
        raise _no_rows(value, name, "pandas writes rows with to_json(…, orient='records', lines=True)")
    if "columns" in value and "data" in value and not any(column in value for column in ROW_COLUMNS):
        raise _no_rows(value, name, "pandas writes rows with to_json(…, orient='records', lines=True)")
    if isinstance(value.get("prompt"), list) and all(isinstance(one, str) for one in value["prompt"]):
        raise _no_rows(value, name, "its columns are lists: write one object for each row")
    if any(column in value for column in ROW_COLUMNS):
        return [value]
    lists = [key for key, one in value.items() if isinstance(one, list) and one and _are_objects(one)]
    if len(lists) == 1 and len(value) == 1:
        return list(value[lists[0]])
    if lists:
        raise _no_rows(value, name, f"write the list under {lists[0]} into a file of its own")
    raise _no_rows(value, name, "write rows as JSON Lines, and move a file that holds none out of the folder")


def _are_objects(values: list[Any]) -> bool:
    return all(isinstance(one, dict) for one in values)


def _no_rows(value: Mapping[str, Any], name: str, cure: str) -> UserError:
    return UserError(
        f"{name}: a .json file must hold a list of rows, JSON Lines or one row, not one object with {shown(value)}: "
        f"{cure}."
    )
