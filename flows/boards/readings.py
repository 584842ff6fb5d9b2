"""What the judge knows of a stage, as boards show it: the one file of them that knows what evidence looks like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flows.boards.markdown import Marked, bold, escaped
from flows.policy.gating.decide import Verdict, threshold_of_answers
from flows.policy.gating.e_values import confidence_interval
from flows.policy.gating.evidence import Evidence, Probed
from flows.policy.gating.limits import Limits
from flows.policy.gating.measures import Measure, panel_of
from flows.policy.gating.progress import progress_of
from flows.policy.gating.wording import Words, answers_in_words

DONE: Mapping[Verdict, str] = {"promote": "passed", "hold": "holding", "roll back": "rolled back"}
"""What each verdict comes to, for a stage."""
NEVER_BY_PROBES = {"left", "left midway"}


@dataclass(frozen=True)
class Part:
    """So many of so many; None where nobody knows of how many."""

    count: int
    of: int | None

    @property
    def rate(self) -> float | None:
        return self.count / self.of if self.of else None


@dataclass(frozen=True)
class Slots:
    """One thing of both slots' users: counts, or times in milliseconds, None where there are none yet."""

    what: str
    candidate: Part | float | None
    stable: Part | float | None

    @property
    def times_stable(self) -> float | None:
        """How much more it is of the candidate; None where stable has nothing to compare with."""
        own, its = (side.rate if isinstance(side, Part) else side for side in (self.candidate, self.stable))
        return own / its if own is not None and its else None


@dataclass(frozen=True)
class Gate:
    """How far a gate's log e-values are on their way to their thresholds, from 0 to 1; None where it has no such."""

    name: str
    harm: float | None
    non_inferiority: float | None
    words: str


@dataclass(frozen=True)
class Band:
    """The candidate's rate of failures at each interim analysis, with a confidence sequence over all of them."""

    points: Sequence[tuple[int, float, float, float]]
    """Requests so far, the rate, and the lower and upper end."""
    limit: float
    confidence: float


def told(words: Words) -> Marked:
    """What was done and what users met, for somebody who was woken up; under it what that stands on."""
    return Marked("\n\n".join(filter(None, (bold(words.first), escaped(words.second)))))


def users_met(evidence: Evidence, limits: Limits, measures: tuple[Measure, ...]) -> list[Slots]:
    """What the users of each slot met; of each user the first hit of each measure, such as a failure."""
    panel = panel_of(evidence.kind, limits, measures)
    met = [
        Slots(
            f"users {event.met}",
            Part(count.hits, count.of or None),
            Part(count.all_hits - count.hits, count.all_of - count.of if count.all_of else None),
        )
        for event in panel.events
        for count in (evidence.count(event.name),)
    ]
    for latency in panel.shown_latencies:
        own_p50, own_p95, its_p50, its_p95 = evidence.timing(latency.name).recent_ms
        met += [
            Slots(f"{latency.phrase}, median", own_p50, its_p50),
            Slots(f"{latency.phrase}, p95", own_p95, its_p95),
        ]
    return met


def gates_of(evidence: Evidence, limits: Limits, measures: tuple[Measure, ...]) -> list[Gate]:
    return [Gate(one.gate, one.to_rollback, one.to_pass, one.seen) for one in progress_of(evidence, limits, measures)]


def gates_of_probes(probed: Probed, limits: Limits, measures: tuple[Measure, ...]) -> list[Gate]:
    """Those that probes can roll a release back by; a probe never leaves."""
    gates = [
        Gate(gate.name, gate.harm, None, gate.words)
        for gate in gates_of(probed.evidence, limits, measures)
        if gate.harm is not None and gate.name not in NEVER_BY_PROBES
    ]
    threshold = threshold_of_answers(probed, limits)
    return gates + [
        Gate(check, count.peak / threshold, None, answers_in_words(check, count))
        for check, count in probed.answers.items()
    ]


def failures_band(evidence: Evidence, limits: Limits) -> Band | None:
    """None before there are two interim analyses to draw a line between."""
    failed, alpha = evidence.count("failed"), limits.missed_harm_percent / 100
    points = [
        (of, hits / of, *confidence_interval(hits, of, alpha))
        for of, hits in dict([*evidence.trail, (failed.of, failed.hits)]).items()
        if of
    ]
    return Band(points, limits.error_percent / 100, 1 - alpha) if len(points) > 1 else None
