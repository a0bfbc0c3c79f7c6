"""Tables of rows of measurements: plain data, of which some lack what others have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        head: What stands above it.
        entry: Of a row: what fills the column.
        form: How the entry is shown, a format or a function of the whole row.
        stays: Whether the column is there though no row fills it.
    """

    head: str
    entry: str
    form: str | Callable[[Row], str] = "{}"
    stays: bool = False

    def cell(self, row: Row) -> str:
        """What a row has there; a dash where it has nothing."""
        value = row.get(self.entry)
        if value is None:
            return "-"
        return self.form.format(value) if isinstance(self.form, str) else self.form(row)


def tabulate(rows: Sequence[Row], columns: Sequence[Column]) -> list[tuple[str, ...]]:
    """Head and rows, with the columns that some row fills."""
    shown = [column for column in columns if column.stays or any(row.get(column.entry) is not None for row in rows)]
    return [tuple(column.head for column in shown), *(tuple(column.cell(row) for column in shown) for row in rows)]


def distinct(notes: Iterable[Sequence[str]]) -> list[str]:
    """The notes of several runs, each once."""
    return list(dict.fromkeys(note for some in notes for note in some))


def said_of(rows: Sequence[Row], entry: str) -> list[str]:
    """What the notes of rows say, each once, after the entries of those that it is said of."""
    notes = distinct(row.get("notes", ()) for row in rows)
    named = {note: dict.fromkeys(row[entry] for row in rows if note in row.get("notes", ())) for note in notes}
    return [f"{', '.join(names)}: {note}" for note, names in named.items()]
