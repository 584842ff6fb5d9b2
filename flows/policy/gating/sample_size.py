"""How many requests does a stage take, and how many are missing?"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from math import log

import numpy as np

from blocks.ports.fleet import ModelKind
from flows.policy.gating.e_values import Flags, Floats
from flows.policy.gating.evidence import EDGES, P90
from flows.policy.gating.limits import Limits
from flows.policy.gating.measures import MEASURES, LatencyMeasure, Measure, panel_of
from flows.policy.gating.non_inferiority import compared, log_e_like_stable, log_e_within_limit, promised

MINUTES_FROM = 600
MOST = 1 << 30


def requests_missing(counted: Floats, hits: Floats, limit: float, limits: Limits) -> Floats:
    """How many more without a hit show that the limit is not broken twice over; 0 where that is shown."""
    sure = -log(limits.beta)
    return smallest(lambda more: log_e_within_limit(hits, counted + more, limit) >= sure, np.shape(counted))


def smallest(enough: Callable[[Floats], Flags], shape: tuple[int, ...] = ()) -> Floats:
    """The smallest number that is enough, of each: what is enough stays so."""
    low, high = np.full(shape, -1.0), np.full(shape, float(MOST))
    while (high - low > 1).any():
        middle = np.floor((low + high) / 2)
        is_enough = enough(middle)
        low, high = np.where(is_enough, low, middle), np.where(is_enough, middle, high)
    return high


def requests_needed(
    limits: Limits,
    weight: float,
    edges_ms: Mapping[str, tuple[float, ...]] | None = None,
    kind: ModelKind = "chat",
    measures: tuple[Measure, ...] = MEASURES,
) -> int:
    """How many requests of the candidate a stage takes if all goes well; the double is no surprise.

    `edges_ms`: of each latency, as far as they are known. Without them nobody knows what a margin excuses.
    """
    panel = panel_of(kind, limits, measures)
    late = tuple(
        _late_part(latency, (edges_ms or {}).get(latency.name, ()), limits)
        for latency in compared(panel, limits, weight)
    )
    return _needed(limits, weight, tuple(rate for _, rate in promised(panel, limits)), late)


@lru_cache(maxsize=256)
def _needed(limits: Limits, weight: float, rates: tuple[float, ...], late: tuple[float, ...]) -> int:
    """Of limits with these rates, and of latencies of which so many answers are late where all is well."""
    sure, zero = -log(limits.beta), np.zeros(())
    needs = [float(limits.minimum_requests), *(float(requests_missing(zero, zero, rate, limits)) for rate in rates)]
    needs += [
        float(smallest(lambda n, part=part: log_e_like_stable(*_alike(n, weight, part), n, weight) >= sure))
        for part in late
    ]
    return int(max(needs))


def _late_part(latency: LatencyMeasure, edges_ms: tuple[float, ...], limits: Limits) -> float:
    """Of the answers of a candidate that is like stable, those that are later than the p90 and the margin."""
    allowed = float(latency.allowed_ms(np.array(edges_ms[P90]), limits)) if edges_ms else 0.0
    passed = [edge for edge, ms in zip(reversed(EDGES), reversed(edges_ms), strict=False) if ms <= allowed]
    return 1 - max([*passed, EDGES[P90]]) / 100


def _alike(requests: Floats, weight: float, late: float) -> tuple[Floats, Floats]:
    """The candidate's hits and both slots' after so many requests, where it is like stable, which knows no margin."""
    stables = requests * (1 - weight) / weight * (1 - EDGES[P90] / 100)
    hits = np.rint(requests * late)
    return hits, hits + np.rint(stables)


def forecast(
    limits: Limits,
    weight: float,
    requests_a_second: float | None,
    edges_ms: Mapping[str, tuple[float, ...]],
    kind: ModelKind = "chat",
) -> str:
    """How many requests of the candidate a stage takes, and how long that is at the present rate of the service."""
    needed = requests_needed(limits, weight, edges_ms, kind)
    words = f"about {needed} requests of the candidate if all goes well"
    if requests_a_second is None:
        return f"{words}; nobody knows how many come now"
    if not requests_a_second:
        return f"{words}; none come now"
    seconds = max(needed / (requests_a_second * weight), limits.minimum_seconds)
    late = f", later than its deadline of {limits.deadline_seconds:g} s" if seconds > limits.deadline_seconds else ""
    return f"{words}: {duration(seconds)} at the {requests_a_second:.2g} a second that the service has now{late}"


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < MINUTES_FROM else f"{seconds / 60:.0f} min"
