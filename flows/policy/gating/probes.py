"""Golden prompts put to the candidate and to stable: when, how many, and what their answers show.

They are judged apart from users: by a judge of their own, to which half of all requests are the candidate's, and by
what the answers are. They can take a release back, and stand in for users in what a stage still has to learn; that
nobody calls they cannot make up for.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from math import log

import numpy as np

from blocks.ports.engine import Answer, Expectation, Prompt, pace_ms
from blocks.ports.fleet import ModelKind, Replica
from blocks.ports.gateway import Outcome, RequestKind, Slot, other
from flows.policy.gating.decide import PROBES_WEIGHT, Stakes, doubts
from flows.policy.gating.e_values import Flags, Floats, log_e_value, part_of_hits
from flows.policy.gating.evidence import Count, Evidence, Probed, Trajectory, trajectory_of
from flows.policy.gating.judge import Judge
from flows.policy.gating.latency import LEARNED_FROM
from flows.policy.gating.limits import Limits
from flows.policy.gating.measures import MEASURES, Measure
from flows.policy.gating.non_inferiority import compared, log_e_like_stable, log_e_within_limit, promised
from flows.policy.gating.sample_size import requests_missing, requests_needed, smallest

CHECKS: tuple[str, ...] = ("wrong", "much shorter", "much longer")
"""What a probe's answer can be where the other slot's, to the same prompt, is not."""
TIMES_STABLE = (3, 10, 30)
"""Alternatives of the e-processes on answers: so many times as often as stable's."""
PART_OF_ALPHA = 0.05
"""Of a stage's alpha, what probes have, where they may be sent."""
NOT_BEFORE = 0.05
"""Of the deadline: until then, nobody can say that too few users come."""
RULE_OF_THREE = 3
"""Where so many more came by bad luck only once in twenty times, they are granted."""
ENOUGH_TIMES = 4
"""What a stage takes if all goes well: who gets no more is undone by a few failures of bad luck."""
SPREAD_OVER = 1 / 3
"""Of the deadline: all the probes that a stage may have take so long at least, for engines have users to answer."""
LENGTHS_APART = 3
"""An answer that is so many times shorter or longer than stable's to the same prompt is counted."""


@dataclass(frozen=True)
class Pair:
    """One prompt, put to a replica of each slot one after the other."""

    prompt: Prompt
    candidate: Replica
    own: Answer
    stable: Replica
    its: Answer


def what_is_wrong(prompt: Prompt, answer: Answer) -> str:
    """With an answer that came, in words; nothing where it is what was asked for."""
    if prompt.expects in {"vector", "ranking"}:
        return answer.unsound
    if prompt.expects == "tool":
        if answer.tool_arguments is None:
            return "no tool was called"
        return "" if _is_json(answer.tool_arguments) else "the tool was called with what is no JSON"
    if prompt.expects == "json":
        return "" if _is_json(answer.text) else "it is no JSON"
    return "" if answer.text.strip() or answer.has_thought else "it is empty"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


class ProbeJudge:
    """What the probes of one stage have shown so far."""

    def __init__(
        self, limits: Limits, candidate: Slot, *, alpha: float, cells: dict[str, str], kind: ModelKind = "chat"
    ) -> None:
        """`alpha` is the probes' part: half for their failures and latencies, half for what the answers are."""
        self._slots: tuple[Slot, Slot] = (candidate, other(candidate))
        self._judge = Judge(limits, candidate, weight=PROBES_WEIGHT, alpha=alpha / 2, cells=cells, kind=kind)
        self._counts: dict[str, Count] = dict.fromkeys(CHECKS, Count())

    def drop(self, cells: Sequence[str]) -> None:
        """Go on without these cells, and begin anew."""
        self._judge.drop(cells)
        self._counts = dict.fromkeys(CHECKS, Count())

    def take(self, pairs: Sequence[Pair], elapsed_seconds: float) -> None:
        """Take in what both slots answered to some prompts."""
        outcomes = [
            _outcome(slot, replica, pair.prompt, answer)
            for pair in pairs
            for slot, replica, answer in zip(
                self._slots, (pair.candidate, pair.stable), (pair.own, pair.its), strict=True
            )
        ]
        self._judge.take(outcomes, elapsed_seconds)
        for pair in pairs:
            if _came(pair.own) and _came(pair.its):
                self._compare(pair)

    def _compare(self, pair: Pair) -> None:
        """Only where one of the two is off is there news: if they are alike, it is the one or the other by chance."""
        candidate, stable = (bool(what_is_wrong(pair.prompt, answer)) for answer in (pair.own, pair.its))
        self._take("wrong", candidate=candidate and not stable, stable=stable and not candidate)
        both_right = not candidate and not stable and pair.prompt.expects in {"text", "continuation"}
        own_length, its_length = len(pair.own.text), len(pair.its.text)
        shorter, longer = LENGTHS_APART * own_length < its_length, own_length > LENGTHS_APART * its_length
        self._take("much shorter", candidate=both_right and shorter, stable=both_right and longer)
        self._take("much longer", candidate=both_right and longer, stable=both_right and shorter)

    def _take(self, check: str, *, candidate: bool, stable: bool) -> None:
        before = self._counts[check]
        hits, all_hits = before.hits + candidate, before.all_hits + candidate + stable
        alternatives = tuple(part_of_hits(PROBES_WEIGHT, times) for times in TIMES_STABLE)
        now = float(log_e_value(hits, all_hits, (PROBES_WEIGHT, alternatives)))
        self._counts[check] = Count(hits, all_hits, before.of + 1, peak=max(before.peak, now), current=now)

    def probed(self) -> Probed:
        return Probed(self._judge.evidence(), dict(self._counts))


def _has_begun(answer: Answer) -> bool:
    return answer.status is not None and answer.status < HTTPStatus.MULTIPLE_CHOICES


def _came(answer: Answer) -> bool:
    return _has_begun(answer) and answer.is_whole


REQUESTS: Mapping[Expectation, RequestKind] = {
    "continuation": "completion",
    "vector": "embedding",
    "ranking": "rerank",
    "text": "chat",
    "json": "chat",
    "tool": "chat",
}
"""What is asked for, by what is expected."""


def _outcome(slot: Slot, replica: Replica, prompt: Prompt, answer: Answer) -> Outcome:
    """As the gateway would have logged it."""
    return Outcome(
        id="probe",
        at=0,
        slot=slot,
        address=replica.address,
        status=HTTPStatus.GATEWAY_TIMEOUT if answer.status is None else answer.status,
        first_token_ms=answer.first_token_ms,
        tokens=answer.tokens,
        per_token_ms=pace_ms(answer.first_token_ms, answer.last_token_ms, answer.tokens),
        total_ms=answer.total_ms,
        user=None,
        retried=False,
        by_fallback=False,
        cut_short=_has_begun(answer) and not answer.is_whole,
        is_empty=False,  # what the answer is has a check of its own
        user_left=False,
        kind=REQUESTS[prompt.expects],
        error_status=answer.error_status,
    )


def is_too_thin(evidence: Evidence, limits: Limits, elapsed_seconds: float) -> bool:
    """Whether users will not have told enough by the deadline, even if three more had come by now.

    What counts is what non-inferiority evidence stands on: one user who sends nearly all requests tells little.
    Failures of bad luck have to be made up for as well.
    """
    count, elapsed = evidence.count("failed"), np.array([elapsed_seconds])
    edges_ms = {name: timing.edges_ms for name, timing in evidence.timings.items()}
    needed = requests_needed(limits, evidence.weight, edges_ms, evidence.kind)
    counted, hits = np.array([float(count.counted)]), np.array([float(count.counted_hits)])
    return bool(_is_too_thin(counted, hits, elapsed, needed, limits)[0])


def may_be_thin(counted: Floats, hits: Floats, elapsed_seconds: Floats, weight: float, limits: Limits) -> Flags:
    """Whether `is_too_thin` may be so at each interim analysis: what margins excuse makes it rarer."""
    return _is_too_thin(counted, hits, elapsed_seconds, requests_needed(limits, weight), limits)


def _is_too_thin(counted: Floats, hits: Floats, elapsed_seconds: Floats, needed: int, limits: Limits) -> Flags:
    is_time = elapsed_seconds >= NOT_BEFORE * limits.deadline_seconds
    if not is_time.any():
        return is_time
    pace = (counted + RULE_OF_THREE) / np.maximum(elapsed_seconds, 1e-9)
    by_then = counted + pace * np.maximum(0.0, limits.deadline_seconds - elapsed_seconds)
    is_enough = log_e_within_limit(hits, np.floor(by_then), limits.error_percent / 100) >= -log(limits.beta)
    return is_time & ((by_then < ENOUGH_TIMES * needed) | ~is_enough)


def probes_missing(evidence: Evidence, limits: Limits, elapsed_seconds: float, probed: Probed, at_most: int) -> int:
    """How many more prompts the candidate should be asked; none where users tell in time, or enough was asked."""
    if not at_most or not is_too_thin(evidence, limits, elapsed_seconds):
        return 0
    return max(0, min(answers_missing(evidence, limits, probed), at_most - probed.evidence.requests))


def answers_missing(
    evidence: Evidence, limits: Limits, probed: Probed, measures: tuple[Measure, ...] = MEASURES
) -> int:
    """How many more good answers of the candidate's to probes take all doubt of what is to be learned."""
    stakes, probes = (Stakes.of(one, limits, measures) for one in (evidence, probed.evidence))
    users, by_probes = trajectory_of(evidence, stakes.panel), trajectory_of(probed.evidence, probes.panel)
    found = doubts(users, stakes, np.zeros(1), by_probes)
    missing = [0.0]
    for gate, rate in promised(stakes.panel, limits):
        both = [some.series[gate] for some in (users, by_probes) if gate in some.series]
        counted, hits = (
            sum((one.counted for one in both), np.zeros(1)),
            sum((one.counted_hits for one in both), np.zeros(1)),
        )
        missing.append(float(requests_missing(counted, hits, rate, limits)[0]))
    for latency in compared(stakes.panel, limits, stakes.weight):
        gate = latency.gate("later than p90")
        if found["learning", latency.name][0]:
            missing.append(-(-(LEARNED_FROM - probed.evidence.timing(latency.name).learned) // 2))
        elif found["unlike", gate][0]:
            # Alike, the candidate has a tenth of its answers beyond the p90, and half of all such answers.
            missing.append(10 * float(smallest(_shows_likeness(gate, users, by_probes, stakes))))
    return int(max(missing))


def _shows_likeness(gate: str, users: Trajectory, by_probes: Trajectory, stakes: Stakes) -> Callable[[Floats], Flags]:
    """Whether so many more late answers of the candidate to probes, and as many of stable's, would be enough."""
    sure, own, its = -log(stakes.limits.beta), users.series.get(gate), by_probes.series.get(gate)
    shown = np.zeros(1)
    if own is not None and own.is_known[0]:
        shown = log_e_like_stable(own.weighed_hits, own.weighed_all_hits, own.weighed_of, stakes.weight)
    hits, all_hits, of = np.zeros((3, 1)) if its is None else (its.weighed_hits, its.weighed_all_hits, its.weighed_of)

    def enough(more: Floats) -> Flags:
        probes = log_e_like_stable(hits + more, all_hits + 2 * more, of + 10 * more, PROBES_WEIGHT)
        return (shown + probes >= sure)[0]

    return enough


def seconds_between_rounds(limits: Limits, prompts: int, at_most: int) -> float:
    """From the beginning of one round of all prompts to the next one's."""
    return limits.deadline_seconds * SPREAD_OVER * prompts / at_most
