"""How does each gate ask for harm? Beside stable by whose the hits are, alone by a rate."""

from flows.policy.gating.hits import Question, over_limit
from flows.policy.gating.latency import LATE_PART, TWICE
from flows.policy.gating.limits import Limits
from flows.policy.gating.measures import Panel

TIMES_STABLE_IN_A_CELL = (1.5, 2.5, 5)
"""Alternatives for first answers that are late, of one cell: the release itself is asked by whole distributions."""


def question_of(panel: Panel, gate: str, weight: float, limits: Limits, allowed: float | None = None) -> Question:
    """`allowed`: alone, the rate that is excused of what nobody promised, as far as it is known."""
    if (event := panel.event(gate)) is not None:
        limit = event.limit(limits)
        rate = allowed if limit is None else limit
        return Question(weight, limits, None if rate is None else over_limit(rate))
    latency = panel.latency(gate)
    if latency is None:
        return Question(weight, limits, is_asked=False)
    if gate == latency.gate("over limit"):
        is_promised = latency.limit_ms(limits) is not None
        return Question(weight, limits, over_limit(LATE_PART * TWICE), is_asked=weight == 1 and is_promised)
    if gate == latency.gate("slower"):
        return Question(weight, limits, is_asked=weight < 1, times=TIMES_STABLE_IN_A_CELL, has_margin=False)
    return Question(weight, limits, is_asked=weight < 1 and gate == latency.gate("hung"))
