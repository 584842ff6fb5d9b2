"""The stages that a release has behind it."""

from collections.abc import Sequence

from flows.boards.markdown import listed, table
from flows.boards.numbers import count, seconds
from flows.boards.readings import DONE
from flows.policy.releases.ledger import Stage


def stages_so_far(stages: Sequence[Stage]) -> str:
    """How each ended, and under that why, for reasons are long."""
    rows = [(f"{s.share_percent} %", DONE[s.verdict], count(s.requests), seconds(s.seconds)) for s in stages]
    if not rows:
        return ""
    reasons = listed((f"{stage.share_percent} %", stage.reason) for stage in stages)
    return f"{table(('% of traffic', 'verdict', 'requests', 'held'), rows, text_columns=2)}\n\n{reasons}"
