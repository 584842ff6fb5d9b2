"""Markdown for pages: tables, and words that somebody else has written (names of files, answers of hubs, log tails)."""

import re
from collections.abc import Iterable, Sequence

MEANS_SOMETHING = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&:@]|(?<=www)\.|^[-=])", re.IGNORECASE)
"""To CommonMark, to what GitHub adds to it, and to what makes links of bare addresses."""
SHOWN_AT_MOST = 2000
"""Characters: nobody reads on, and a page of them hides the rest."""
BAR_CHARACTERS = 12
PLAIN = re.compile(r"[\w./:-]+")
LINKED = re.compile(r"https?://[^\s<>|]+")


class Marked(str):
    """Markdown of our own, in one line: `table` shows it as it is, and escapes all else."""

    __slots__ = ()


def escaped(words: object) -> str:
    """Shown as they are and in one line, whatever is in them: no picture, link, heading or column of a table."""
    text = " ".join(str(words).split())
    text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    if len(text) > SHOWN_AT_MOST:
        text = f"{text[:SHOWN_AT_MOST]}…"
    text = MEANS_SOMETHING.sub(r"\\\1", text)
    return re.sub(r"^(\d+)\.", r"\1\\.", text)  # the beginning of a list


def bold(words: object) -> Marked:
    return Marked(f"**{escaped(words)}**")


def code(words: object) -> Marked:
    """In the letters of code, where nothing in the words could end that early."""
    return Marked(f"`{words}`" if PLAIN.fullmatch(str(words)) else escaped(words))


def link(address: str) -> Marked:
    """To an address that somebody can follow; shown as text where it could end the link early."""
    return Marked(f"<{address}>" if LINKED.fullmatch(address) else escaped(address))


def bar(part: float) -> Marked:
    """A part of a whole, from 0 to 1, as a bar that every renderer of markdown shows; beyond is as full as full."""
    within = min(max(part, 0.0), 1.0)
    full = round(BAR_CHARACTERS * within)
    return Marked(f"`{'█' * full}{'░' * (BAR_CHARACTERS - full)}` {100 * within:.0f} %")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, text_columns: int = 1) -> str:
    """A table; its first `text_columns` are to the left, and all others are numbers, to the right.

    Nothing where there is no row. A cell holds a few words: longer ones make the UI cut columns off, and belong under
    the table, as in `listed`.
    """
    rules = ["---" if column < text_columns else "---:" for column in range(len(head))]
    lines = [_line(row) for row in rows]
    return "\n".join([_line(head), _line([Marked(rule) for rule in rules]), *lines]) if lines else ""


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(_in_line, cells))} |"


def _in_line(words: object) -> str:
    return words if isinstance(words, Marked) else escaped(words)


def listed(items: Iterable[tuple[object, object]]) -> str:
    """One line each: of what, and what is to be said of it."""
    return "\n".join(f"- {bold(name)}: {_in_line(words)}" for name, words in items)


def lines(items: Iterable[object]) -> str:
    return "\n".join(f"- {_in_line(words)}" for words in items)


def page(*parts: str) -> str:
    """The parts that there are, apart from each other."""
    return "\n\n".join(part for part in parts if part) + "\n"


def section(title: str, *parts: str) -> str:
    """With its heading, or nothing where nothing is in it."""
    body = "\n\n".join(part for part in parts if part)
    return f"## {title}\n\n{body}" if body else ""
