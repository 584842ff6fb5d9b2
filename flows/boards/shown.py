"""The forms in which the Prefect UI shows something."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

Cell = str | int | float | None
"""Of a table artifact: the UI shows it as text, so it needs no escaping; None is an empty cell."""
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


@dataclass(frozen=True)
class Table:
    """Rows with the same columns; the UI can search them."""

    kind: ClassVar[Kind] = "table"
    description: str
    """What the rows come to, in a sentence, as markdown: the UI shows it above them."""
    rows: Sequence[Mapping[str, Cell]]

    @property
    def data(self) -> str:
        return json.dumps(self.rows)


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


Shown = Page | Table | Progress
