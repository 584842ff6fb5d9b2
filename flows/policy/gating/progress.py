"""How near is a stage to its ruling? What the canary board shows: evidence closing in on one verdict or the other."""

from dataclasses import dataclass
from math import log

import numpy as np

from flows.policy.gating.decide import LATELY, Stakes, peak_of
from flows.policy.gating.evidence import Evidence, Series, trajectory_of
from flows.policy.gating.limits import Limits
from flows.policy.gating.measures import MEASURES, Measure
from flows.policy.gating.non_inferiority import compared, log_e_like_stable, log_e_within_limit, promised
from flows.policy.gating.wording import seen_of


@dataclass(frozen=True)
class Progress:
    """Of one gate: how much of what a ruling takes is there, as logarithms go; None where it does not rule so."""

    gate: str
    seen: str
    to_rollback: float | None
    to_pass: float | None


def progress_of(evidence: Evidence, limits: Limits, measures: tuple[Measure, ...] = MEASURES) -> list[Progress]:
    """Of all gates of which something can be told."""
    stakes, sure = Stakes.of(evidence, limits, measures), -log(limits.beta)
    trajectory = trajectory_of(evidence, stakes.panel)
    rates = dict(promised(stakes.panel, limits))
    like = {one.gate("later than p90") for one in compared(stakes.panel, limits, stakes.weight)}
    found: list[Progress] = []
    for gate, series in trajectory.series.items():
        if gate.endswith(LATELY) or not _can_be_told(gate, evidence, stakes):
            continue
        to_rollback = _to_rollback(gate, series, stakes) if gate in stakes.parts else None
        to_pass = None
        if gate in rates:
            to_pass = float(log_e_within_limit(series.counted_hits, series.counted, rates[gate])[0]) / sure
        elif gate in like:
            weighed = series.weighed_hits, series.weighed_all_hits, series.weighed_of
            to_pass = float(log_e_like_stable(*weighed, stakes.weight)[0]) / sure
        if to_rollback is not None or to_pass is not None:
            found.append(Progress(gate, seen_of(gate, evidence, limits, measures), to_rollback, to_pass))
    return found


def _to_rollback(gate: str, series: Series, stakes: Stakes) -> float:
    """Of this stage's e-values, or of those that go on, whichever are further."""
    parts = [_part(peak_of(gate, series, stakes), gate, stakes, cumulative=False)]
    if stakes.cumulative_alpha:
        e_values = series.cumulative_peak, series.cumulative_peak_beyond_margin
        parts.append(_part(e_values, gate, stakes, cumulative=True))
    return max(parts)


def _part(e_values: tuple[np.ndarray, np.ndarray], gate: str, stakes: Stakes, *, cumulative: bool) -> float:
    harm, beyond = (float(one[0]) for one in e_values)
    threshold, of_margins = (
        stakes.threshold(gate, cumulative=cumulative),
        stakes.threshold_of_margins(gate, cumulative=cumulative),
    )
    return min(harm / threshold, 1.0 if beyond == np.inf else beyond / of_margins)


def _can_be_told(gate: str, evidence: Evidence, stakes: Stakes) -> bool:
    latency = stakes.panel.latency(gate)
    if latency is None:
        is_known = evidence.count(gate).allowed is not None
        return evidence.weight < 1 or gate not in stakes.panel.unpromised or is_known
    if gate == latency.gate("over limit"):
        return latency.limit_ms(stakes.limits) is not None
    return bool(evidence.timing(latency.name).edges_ms)
