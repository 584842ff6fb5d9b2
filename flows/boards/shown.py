"""The forms in which the Prefect UI shows something."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten, wrap
from typing import ClassVar, Literal

from flows.boards.markdown import escaped

Cell = str | int | float
Kind = Literal["markdown", "table", "progress"]
"""As Prefect's API names the types of artifacts."""


@dataclass(frozen=True)
class Page:
    """Markdown that a person reads from top to bottom."""

    kind: ClassVar[Kind] = "markdown"
    description: str
    """In the list of artifacts, and above the page."""
    markdown: str

    @property
    def data(self) -> str:
        return self.markdown


COLUMN_CHARACTERS = 84
"""What the columns of a table artifact may hold together at a window of 1,400 pixels, beside four columns' padding.

Measured in Prefect's UI: the table has 844 pixels, a column 24 of padding, and a character about 8. The UI never breaks
a line by itself: what is beyond is cut off.
"""
PADDING_CHARACTERS = 3
NARROWEST = 10
CELL_CHARACTERS = 500
"""Nobody reads on, and a page of them hides the other rows."""


@dataclass(frozen=True)
class Table:
    """Rows with the same columns; the UI can search them.

    Cells are plain text. The UI takes them for markdown in which each line break stands, so they are escaped, and the
    longest columns broken into lines until all of them fit.
    """

    kind: ClassVar[Kind] = "table"
    description: str
    """What the rows come to, in a sentence, as markdown: the UI shows it above them."""
    rows: Sequence[Mapping[str, Cell]]

    @property
    def data(self) -> str:
        width = {name: max(map(len, (name, *(_plain(row[name]) for row in self.rows)))) for name in self._columns}
        left = COLUMN_CHARACTERS - PADDING_CHARACTERS * max(0, len(width) - 4)
        while sum(width.values()) > left and (widest := max(width.values())) > NARROWEST:
            width = {name: min(characters, widest - 1) for name, characters in width.items()}
        return json.dumps([{name: _lines(row[name], width[name]) for name in self._columns} for row in self.rows])

    @property
    def _columns(self) -> Sequence[str]:
        return list(self.rows[0]) if self.rows else []


@dataclass(frozen=True)
class Progress:
    """How far something is."""

    kind: ClassVar[Kind] = "progress"
    description: str
    percent: float
    """From 0 to 100."""

    @property
    def data(self) -> float:
        return self.percent


def _plain(cell: Cell) -> str:
    return shorten(str(cell), CELL_CHARACTERS, placeholder=" …")


def _lines(cell: Cell, characters: int) -> Cell:
    """Numbers stay numbers, by which the UI can sort; text is cut into lines, and words that are longer as well."""
    return cell if not isinstance(cell, str) else "\n".join(map(escaped, wrap(_plain(cell), characters)))


Shown = Page | Table | Progress
