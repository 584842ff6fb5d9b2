"""Words that somebody else has written, within markdown: names of files, what hubs and stores answer, reasons."""

import re

MEANS_SOMETHING = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&:@]|(?<=www)\.|^[-=])", re.IGNORECASE)
"""To CommonMark, to what GitHub adds to it, and to what makes links of bare addresses."""
SHOWN_AT_MOST = 2000
"""Characters: nobody reads on, and a page of them hides the rest."""


def escaped(words: object) -> str:
    """Shown as they are and in one line, whatever is in them: no picture, link, heading or column of a table."""
    text = " ".join(str(words).split())
    text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    if len(text) > SHOWN_AT_MOST:
        text = f"{text[:SHOWN_AT_MOST]}…"
    text = MEANS_SOMETHING.sub(r"\\\1", text)
    return re.sub(r"^(\d+)\.", r"\1\\.", text)  # the beginning of a list
