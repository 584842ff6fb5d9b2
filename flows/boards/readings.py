"""What the judge knows of a stage, as boards show it: the one file of them that knows what evidence looks like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flows.boards.markdown import Marked, bold, escaped
from flows.policy.gating.bets import interval
from flows.policy.gating.gates import Ruling, Verdict, answers_in_words, bar_of_answers, nearness
from flows.policy.gating.measures import EACH_TOKEN, FIRST_TOKEN, Evidence, Limits, Measure, Probed

DONE: Mapping[Verdict, str] = {"promote": "passed", "hold": "holding", "roll back": "rolled back"}
"""What each verdict comes to, for a stage."""
NEVER_BY_PROBES = {"left", "left midway"}
USERS_WHO: tuple[tuple[str, Measure], ...] = (
    ("users who met a failure", "failed"),
    ("users who were refused", "refused"),
    ("users who gave up before an answer", "left"),
    ("users who left within an answer", "left midway"),
)


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
        mine, theirs = (side.rate if isinstance(side, Part) else side for side in (self.candidate, self.stable))
        return mine / theirs if mine is not None and theirs else None


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


def told(ruling: Ruling, evidence: Evidence) -> Marked:
    """What was done and what users met, for somebody who was woken up."""
    done = bold(f"{DONE[ruling.verdict].capitalize()} at {100 * evidence.share:g} % of traffic")
    return Marked(f"{done}: {escaped(ruling.reason)}")


def users_met(evidence: Evidence) -> list[Slots]:
    """What the users of each slot met; of each user the first failure, the first refusal and the first departures."""
    met = [
        Slots(
            what,
            Part(count.hits, count.of or None),
            Part(count.all_hits - count.hits, count.all_of - count.of if count.all_of else None),
        )
        for what, measure in USERS_WHO
        for count in (evidence.count(measure),)
    ]
    for what, time in (("time to first token", FIRST_TOKEN), ("time per output token", EACH_TOKEN)):
        mine_p50, mine_p95, stables_p50, stables_p95 = evidence.timing(time).recent_ms
        met += [Slots(f"{what}, median", mine_p50, stables_p50), Slots(f"{what}, p95", mine_p95, stables_p95)]
    return met


def gates_of(evidence: Evidence, limits: Limits) -> list[Gate]:
    return [Gate(near.gate, near.harm, near.good_news, near.seen) for near in nearness(evidence, limits)]


def gates_of_probes(probed: Probed, limits: Limits) -> list[Gate]:
    """Those that probes can roll a release back by; a probe never leaves."""
    gates = [
        Gate(gate.name, gate.harm, None, gate.words)
        for gate in gates_of(probed.evidence, limits)
        if gate.harm is not None and gate.name not in NEVER_BY_PROBES
    ]
    threshold = bar_of_answers(probed, limits)
    return gates + [
        Gate(check, count.harm / threshold, None, answers_in_words(check, count))
        for check, count in probed.answers.items()
    ]


def failures_band(evidence: Evidence, limits: Limits) -> Band | None:
    """None before there are two interim analyses to draw a line between."""
    failed, alpha = evidence.count("failed"), limits.missed_harm_percent / 100
    points = [
        (of, hits / of, *interval(hits, of, alpha))
        for of, hits in dict([*evidence.trail, (failed.of, failed.hits)]).items()
        if of
    ]
    return Band(points, limits.error_percent / 100, 1 - alpha) if len(points) > 1 else None
