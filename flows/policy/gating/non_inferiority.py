"""How strongly do counts say that the candidate is good enough? E-values against "it is bad twice over"."""

from collections.abc import Sequence
from math import log

import numpy as np

from flows.policy.gating.e_values import Floats, Hypotheses, log_e_value, multiplied, part_of_hits
from flows.policy.gating.latency import LATE_PART
from flows.policy.gating.limits import Limits
from flows.policy.gating.measures import LatencyMeasure, Panel

TIMES_THAT_MATTER = 2
"""A stage is passed once it is plain that the candidate is not as bad as so many times the limit, or stable."""
FRACTIONS_OF_THE_LIMIT = (1 / 8, 1 / 4, 1 / 2)
FRACTIONS_OF_STABLE = (1 / 8, 1 / 2, 1)
"""The alternatives."""
LATER_THAN_P90 = 0.1
ALONE_PART = 0.2
"""Of the wealth, what is on the candidate's own answers."""


def twice_the_limit(limit: float) -> Hypotheses:
    """The claim "the candidate breaks the limit twice over, or worse"."""
    return multiplied(limit, TIMES_THAT_MATTER), tuple(limit * fraction for fraction in FRACTIONS_OF_THE_LIMIT)


def log_e_within_limit(hits: Floats | float, counted: Floats | float, limit: float) -> Floats:
    return log_e_value(hits, counted, twice_the_limit(limit))


def log_e_like_stable(hits: Floats | float, all_hits: Floats | float, of: Floats | float, weight: float) -> Floats:
    """Against "the candidate is later than the p90 twice as often as stable, or worse".

    A fifth of the wealth is on the candidate alone, against "later in 20 % of its answers": where all answers take as
    long, nobody is ever later, and comparing would tell nothing.
    """
    alternatives = tuple(part_of_hits(weight, fraction) for fraction in FRACTIONS_OF_STABLE)
    beside = log_e_value(hits, all_hits, (part_of_hits(weight, TIMES_THAT_MATTER), alternatives))
    alternatives = tuple(LATER_THAN_P90 * fraction for fraction in FRACTIONS_OF_STABLE)
    alone = log_e_value(hits, of, (LATER_THAN_P90 * TIMES_THAT_MATTER, alternatives))
    return np.logaddexp(beside + log(1 - ALONE_PART), alone + log(ALONE_PART))


def promised(panel: Panel, limits: Limits) -> Sequence[tuple[str, float]]:
    """The gates that have a limit, and the rate that it allows: a p95 allows 5 % of the answers to be over it."""
    events = [(one.name, rate) for one in panel.events if (rate := one.limit(limits)) is not None]
    latencies = [one for one in panel.latencies if one.limit_ms(limits) is not None]
    return [*events, *((one.gate("over limit"), LATE_PART) for one in latencies)]


def compared(panel: Panel, limits: Limits, weight: float) -> Sequence[LatencyMeasure]:
    """The latencies that have to be like stable's before a stage is passed."""
    return [one for one in panel.latencies if one.limit_ms(limits) is not None] if weight < 1 else []
