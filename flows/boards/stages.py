"""The stages that a release has behind it, and the question whether it gets the next."""

from collections.abc import Sequence

from flows.boards.markdown import escaped, listed, page, table
from flows.boards.numbers import count, seconds
from flows.boards.readings import DONE
from flows.policy.releases.ledger import Release, Stage


def approval_question(release: Release, weight_percent: int) -> str:
    """What a person is asked before a stage, with what the release has behind it."""
    return page(
        f"**Give {escaped(release.id)} {weight_percent} % of the traffic?**",
        stages_so_far(release.stages) or "No stage has been held yet.",
    )


def stages_so_far(stages: Sequence[Stage]) -> str:
    """How each ended, and under that why, for reasons are long."""
    rows = [(f"{s.share_percent} %", DONE[s.verdict], count(s.requests), seconds(s.seconds)) for s in stages]
    if not rows:
        return ""
    reasons = listed((f"{stage.share_percent} %", stage.reason) for stage in stages)
    return f"{table(('% of traffic', 'verdict', 'requests', 'held'), rows, text_columns=2)}\n\n{reasons}"
