"""Is what several cells say one cause, which is then ours and no cell's?"""

import re
from collections.abc import Sequence

from blocks.errors import NoCapacity

CELLS_WITH_ONE_CAUSE = 3
"""That many cells in a row do not fail by chance in the same words, which nobody knows."""


def is_one_cause(noes: Sequence[NoCapacity]) -> bool:
    """Whether the last of these unexplained noes are of enough different cells, and say the same."""
    if not noes:
        return False
    last = _sense(noes[-1])
    cells = set[str]()
    for no in reversed(noes):
        if _sense(no) != last:
            break
        cells.add(no.cell)
    return len(cells) >= CELLS_WITH_ONE_CAUSE


def _sense(no: NoCapacity) -> str:
    """What is said, without what differs from cell to cell: its own names, numbers and ids."""
    words = no.reason.casefold()
    for part in sorted(no.cell.casefold().split("/"), key=len, reverse=True):
        words = re.sub(rf"\b{re.escape(part)}\w?\b", "*", words)  # a zone is called as its region and a letter
    return " ".join(re.sub(r"[0-9a-f-]*\d[0-9a-f-]*", "#", words).split())
