"""May the candidate have more traffic? Evidence in; out comes promote, hold or roll back, and what it stands on.

Harm outranks doubt, doubt outranks good news, and no data is never a pass. docs/gates.md says what each rule is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import log
from typing import Literal

import numpy as np

from flows.policy.gating.alpha import log_threshold, log_threshold_of_margins, parts_of_alpha
from flows.policy.gating.cells import cells_to_blame
from flows.policy.gating.e_values import Flags, Floats
from flows.policy.gating.evidence import Evidence, Probed, Series, Trajectory, trajectory_of
from flows.policy.gating.limits import Limits
from flows.policy.gating.measures import MEASURES, Measure, Panel, panel_of
from flows.policy.gating.non_inferiority import compared, log_e_like_stable, log_e_within_limit, promised

Verdict = Literal["promote", "hold", "roll back"]
SUSPICIOUS = 0.0
"""A log e-value on harm above this is no harm yet, and no time to rise."""
SUSPICIOUS_OF_PROBES = log(2)
"""The same of probes: one hit that stable did not have is less, and nobody asks more of them because of it."""
CONTINUATION = 1.25
"""Deadlines. An e-value is valid whenever one stops, so a stage whose evidence is due by then goes on until then."""

Kind = Literal["harm", "cumulative harm", "answers", "too few", "limit", "learning", "unlike", "suspicious", "minimum"]
Doubts = Mapping[tuple[Kind, str], Flags]
"""What is missing before a stage can be passed, by what it is and its gate, at each interim analysis."""


@dataclass(frozen=True)
class Finding:
    """One thing that a ruling stands on."""

    kind: Kind
    subject: str = ""
    """The gate, the latency, or the check of probes' answers."""
    by_probes: bool = False
    log_e_value: float = 0.0
    log_threshold: float = 0.0


@dataclass(frozen=True)
class Ruling:
    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    bad_cells: tuple[str, ...] = ()
    """Hold these back: the harm is theirs alone."""
    blockers: str = ""
    """Why stable could not take its traffic back, where only that is in the way."""


@dataclass(frozen=True)
class Stakes:
    """By what a stage is judged."""

    panel: Panel
    limits: Limits
    weight: float
    alpha: float
    cumulative_alpha: float

    @classmethod
    def of(cls, evidence: Evidence, limits: Limits, measures: tuple[Measure, ...] = MEASURES) -> "Stakes":
        panel = panel_of(evidence.kind, limits, measures)
        return cls(panel, limits, evidence.weight, evidence.alpha, evidence.cumulative_alpha)

    @cached_property
    def parts(self) -> Mapping[str, float]:
        return parts_of_alpha(self.panel.gates, is_alone=self.weight == 1)

    def threshold(self, gate: str, *, cumulative: bool = False) -> float:
        """What the log e-value of a gate has to reach before it says harm."""
        alpha = self.cumulative_alpha if cumulative else self.alpha
        return log_threshold(self.limits, alpha, self.parts[gate])

    def threshold_of_margins(self, gate: str, *, cumulative: bool = False) -> float:
        alpha = self.cumulative_alpha if cumulative else self.alpha
        return log_threshold_of_margins(self.threshold(gate, cumulative=cumulative), alpha)


def peak_of(gate: str, series: Series, stakes: Stakes) -> tuple[Floats, Floats]:
    """The two e-values on harm at their peak.

    Of what nobody promised, alone, as they are now, of as many requests as a stage needs: what a stranger sends at once
    is outweighed by what others are answered.
    """
    if stakes.weight < 1 or gate not in stakes.panel.unpromised:
        return series.peak, series.peak_beyond_margin
    now = np.where(series.of >= stakes.limits.minimum_requests, series.current, 0.0)
    return now, now


def harms(trajectory: Trajectory, stakes: Stakes) -> dict[str, Flags]:
    """By gate, where this stage's e-values are beyond bad luck and beyond the margins."""
    found: dict[str, Flags] = {}
    for gate in _ruled(trajectory, stakes):
        peak, beyond = peak_of(gate, trajectory.series[gate], stakes)
        found[gate] = (peak >= stakes.threshold(gate)) & (beyond >= stakes.threshold_of_margins(gate))
    return found


def cumulative_harms(trajectory: Trajectory, stakes: Stakes) -> dict[str, Flags]:
    """The same of the e-values that go on from an earlier stage, if there are any."""
    if not stakes.cumulative_alpha:
        return {}
    found: dict[str, Flags] = {}
    for gate in _ruled(trajectory, stakes):
        one = trajectory.series[gate]
        found[gate] = (one.cumulative_peak >= stakes.threshold(gate, cumulative=True)) & (
            one.cumulative_peak_beyond_margin >= stakes.threshold_of_margins(gate, cumulative=True)
        )
    return found


def _ruled(trajectory: Trajectory, stakes: Stakes) -> list[str]:
    return [gate for gate in trajectory.series if gate in stakes.parts]


def doubts(trajectory: Trajectory, stakes: Stakes, elapsed_seconds: Floats, probes: Trajectory | None = None) -> Doubts:
    """What is missing before the stage can be passed; probes stand in for users in what is still to be learned."""
    limits, sure = stakes.limits, -log(stakes.limits.beta)
    found: dict[tuple[Kind, str], Flags] = {("too few", ""): trajectory.requests < limits.minimum_requests}
    for gate, rate in promised(stakes.panel, limits):
        counted, hits = (sum(some) for some in zip(*(_counted(one, gate) for one in (trajectory, probes)), strict=True))
        found["limit", gate] = log_e_within_limit(hits, counted, rate) < sure
    for latency in compared(stakes.panel, limits, stakes.weight):
        gate = latency.gate("later than p90")
        both = ((trajectory, stakes.weight), (probes, PROBES_WEIGHT))
        known = [(one.series[gate], weight) for one, weight in both if one is not None and gate in one.series]
        is_known = np.any([one.is_known for one, _ in known], axis=0) if known else np.array([False])
        # Of users and of probes, one wealth that is carried from one to the other: their logarithms add up.
        shown = sum(
            (np.where(one.is_known, log_e_like_stable(*_weighed(one), weight), 0.0) for one, weight in known),
            start=np.zeros(1),
        )
        found["learning", latency.name] = ~is_known
        found["unlike", gate] = is_known & (shown < sure)
    return {**found, **suspicions(trajectory, stakes, elapsed_seconds, SUSPICIOUS)}


def _counted(trajectory: Trajectory | None, gate: str) -> tuple[Floats, Floats]:
    one = None if trajectory is None else trajectory.series.get(gate)
    return (np.zeros(1), np.zeros(1)) if one is None else (one.counted, one.counted_hits)


def _weighed(series: Series) -> tuple[Floats, Floats, Floats]:
    return series.weighed_hits, series.weighed_all_hits, series.weighed_of


def suspicions(trajectory: Trajectory, stakes: Stakes, elapsed_seconds: Floats, above: float) -> Doubts:
    """What looks like harm, and is none yet. At the deadline, what is no more than beta allows ends no release."""
    least = np.where(elapsed_seconds >= stakes.limits.deadline_seconds, max(above, -log(stakes.limits.beta)), above)
    # What failed lately has a penalty that only the judge knows; in older ledgers its current e-value is without.
    gates = [gate for gate in _ruled(trajectory, stakes) if not gate.endswith(LATELY)]
    return {("suspicious", gate): trajectory.series[gate].current > least for gate in gates}


def is_due(found: Doubts, trajectory: Trajectory, stakes: Stakes, elapsed_seconds: Floats) -> Flags:
    """Whether only a limit is in doubt, and what is missing comes by the end of the continuation at the pace so far."""
    limits, until = stakes.limits, CONTINUATION * stakes.limits.deadline_seconds
    due = (elapsed_seconds < until) & ~_any(flags for (kind, _), flags in found.items() if kind != "limit")
    for gate, rate in promised(stakes.panel, limits):
        counted, hits = _counted(trajectory, gate)
        by_then = np.floor(counted * until / np.maximum(elapsed_seconds, 1e-9))
        due &= ~found["limit", gate] | (log_e_within_limit(hits, by_then, rate) >= -log(limits.beta))
    return due


def _any(flags: Iterable[Flags]) -> Flags:
    return np.logical_or.reduce(list(flags))


def verdicts(harm: Flags, doubt: Flags, due: Flags, elapsed_seconds: Floats, limits: Limits) -> list[Verdict]:
    """At each interim analysis; `due`: what is in doubt will be known soon."""
    overdue = doubt & (elapsed_seconds >= limits.deadline_seconds) & ~due
    holds = doubt | (elapsed_seconds < limits.minimum_seconds)
    chosen = np.where(harm | overdue, "roll back", np.where(holds, "hold", "promote"))
    return chosen.tolist()


def rule(
    evidence: Evidence,
    limits: Limits,
    elapsed_seconds: float,
    probed: Probed | None = None,
    measures: tuple[Measure, ...] = MEASURES,
) -> Ruling:
    """Rule on a stage as it is now.

    Probes can show harm, and stand in for users in what is still to be learned, but not for the minimum of requests.
    """
    stakes, elapsed = Stakes.of(evidence, limits, measures), np.array([elapsed_seconds])
    trajectory = trajectory_of(evidence, stakes.panel)
    seen = [(evidence, stakes, trajectory, False)]
    if probed is not None:
        of_probes = Stakes.of(probed.evidence, limits, measures)
        seen.append((probed.evidence, of_probes, trajectory_of(probed.evidence, of_probes.panel), True))
    for shown, its_stakes, its_trajectory, by_probes in seen:
        ruling = _harm(shown, its_stakes, its_trajectory, by_probes=by_probes)
        if ruling is not None:
            return ruling
    off = [] if probed is None else answers_off(probed, limits)
    if off:
        return Ruling("roll back", tuple(off))
    found = doubts(trajectory, stakes, elapsed, seen[-1][2] if probed is not None else None)
    due = is_due(found, trajectory, stakes, elapsed)
    findings = [Finding(kind, gate) for (kind, gate), flags in found.items() if flags[0]]
    if probed is not None:
        _, of_probes, its_trajectory, _ = seen[-1]
        findings += [
            Finding(kind, gate, by_probes=True)
            for (kind, gate), flags in suspicions(its_trajectory, of_probes, elapsed, SUSPICIOUS_OF_PROBES).items()
            if flags[0]
        ]
        findings += [
            Finding("suspicious", check, by_probes=True)
            for check, count in probed.answers.items()
            if count.current > SUSPICIOUS_OF_PROBES
        ]
    [verdict] = verdicts(np.array([False]), np.array([bool(findings)]), due, elapsed, limits)
    if verdict == "hold" and not findings:
        findings = [Finding("minimum")]
    return Ruling(verdict, tuple(findings))


def _harm(evidence: Evidence, stakes: Stakes, trajectory: Trajectory, *, by_probes: bool) -> Ruling | None:
    """A ruling where there is harm, of the release or of single cells; None where there is none."""
    own = [gate for gate, flags in harms(trajectory, stakes).items() if flags[0]]
    all_stages = [gate for gate, flags in cumulative_harms(trajectory, stakes).items() if flags[0]]
    if len(own) > 1:
        own = [gate for gate in own if not gate.endswith(LATELY)]
    # Of earlier stages nobody knows in which cell what was: what only all of them show is no cell's.
    bad_cells = () if set(all_stages) - set(own) else cells_to_blame(evidence, stakes.panel, stakes.limits, own)
    known = len(evidence.cells) + len(evidence.dropped)
    findings = [_finding("harm", gate, trajectory, stakes, by_probes=by_probes) for gate in own]
    if bad_cells and 2 * (len(bad_cells) + len(evidence.dropped)) <= known:
        return Ruling("hold", tuple(findings), bad_cells)
    findings += [
        _finding("cumulative harm", gate, trajectory, stakes, by_probes=by_probes)
        for gate in all_stages
        if gate not in own
    ]
    return Ruling("roll back", tuple(findings)) if findings else None


def _finding(
    kind: Literal["harm", "cumulative harm"], gate: str, trajectory: Trajectory, stakes: Stakes, *, by_probes: bool
) -> Finding:
    series, cumulative = trajectory.series[gate], kind == "cumulative harm"
    e_value = series.cumulative_peak if cumulative else peak_of(gate, series, stakes)[0]
    return Finding(kind, gate, by_probes, float(e_value[0]), stakes.threshold(gate, cumulative=cumulative))


def answers_off(probed: Probed, limits: Limits) -> list[Finding]:
    """The checks of probes' answers that are beyond bad luck."""
    threshold = threshold_of_answers(probed, limits)
    return [
        Finding("answers", check, by_probes=True, log_e_value=count.peak, log_threshold=threshold)
        for check, count in probed.answers.items()
        if count.peak >= threshold
    ]


def threshold_of_answers(probed: Probed, limits: Limits) -> float:
    return log_threshold(limits, probed.evidence.alpha, 1 / max(1, len(probed.answers)))


LATELY = " lately"
PROBES_WEIGHT = 0.5
"""Each prompt is put to both slots."""
