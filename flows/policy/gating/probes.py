"""Golden prompts put to the candidate and to stable: when, how many, and what their answers show.

They are judged apart from users: by a judge of their own, to which half of all requests are the candidate's, and by
what the answers are. They can take a release back, and stand in for users in what a stage still has to learn; that
nobody calls they cannot make up for.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from blocks.ports.engine import Answer, Expectation, Prompt, pace_ms
from blocks.ports.fleet import Replica
from blocks.ports.gateway import Outcome, RequestKind, Slot, other
from flows.policy.gating.bets import share_at, worth
from flows.policy.gating.gates import answers_missing, good_ones_missing, requests_needed
from flows.policy.gating.judge import Judge
from flows.policy.gating.measures import (
    CHECKS,
    PROBES_SHARE,
    TIMES,
    TIMES_ASKED,
    Check,
    Count,
    Evidence,
    Limits,
    Probed,
)

PART_OF_THE_BUDGET = 0.05
"""Of a stage's error budget, what probes have, where they may be sent."""
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
    mine: Answer
    stable: Replica
    stables: Answer


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

    def __init__(self, limits: Limits, candidate: Slot, *, budget: float, cells: dict[str, str]) -> None:
        """`budget` is the probes' part; half of it is for their failures and times, half for what the answers are."""
        self._slots: tuple[Slot, Slot] = (candidate, other(candidate))
        self._judge = Judge(limits, candidate, share=PROBES_SHARE, budget=budget / 2, cells=cells)
        self._counts: dict[Check, Count] = dict.fromkeys(CHECKS, Count())

    def drop(self, cells: Sequence[str]) -> None:
        """Go on without these cells, and begin anew."""
        self._judge.drop(cells)
        self._counts = dict.fromkeys(CHECKS, Count())

    def observe(self, pairs: Sequence[Pair], elapsed_seconds: float) -> None:
        for pair in pairs:
            for slot, replica, answer in zip(
                self._slots, (pair.candidate, pair.stable), (pair.mine, pair.stables), strict=True
            ):
                self._judge.observe(_outcome(slot, replica, pair.prompt, answer), elapsed_seconds)
            if _came(pair.mine) and _came(pair.stables):
                self._compare(pair)

    def _compare(self, pair: Pair) -> None:
        """Only where one of the two is off is there a bet: if they are alike, it is the one or the other by chance."""
        mine, stables = (bool(what_is_wrong(pair.prompt, answer)) for answer in (pair.mine, pair.stables))
        self._take("wrong", mine=mine and not stables, stables=stables and not mine)
        both_right = not mine and not stables and pair.prompt.expects in {"text", "continuation"}
        my_length, its_length = len(pair.mine.text), len(pair.stables.text)
        shorter, longer = LENGTHS_APART * my_length < its_length, my_length > LENGTHS_APART * its_length
        self._take("much shorter", mine=both_right and shorter, stables=both_right and longer)
        self._take("much longer", mine=both_right and longer, stables=both_right and shorter)

    def _take(self, check: Check, *, mine: bool, stables: bool) -> None:
        before = self._counts[check]
        hits, all_hits = before.hits + mine, before.all_hits + mine + stables
        others = [share_at(PROBES_SHARE, times) for times in TIMES_ASKED]
        now = worth(hits, all_hits, PROBES_SHARE, others)
        self._counts[check] = Count(hits, all_hits, before.of + 1, harm=max(before.harm, now), harm_now=now)

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

    What counts is what good news stands on: one user who sends nearly all requests tells little. Failures of bad luck
    have to be made up for as well.
    """
    if elapsed_seconds < NOT_BEFORE * limits.deadline_seconds:
        return False
    counted = evidence.count("failed").counted
    pace = (counted + RULE_OF_THREE) / elapsed_seconds
    by_then = counted + pace * max(0.0, limits.deadline_seconds - elapsed_seconds)
    slow_ms = {time: evidence.timing(time).slow_ms for time in TIMES}
    enough = ENOUGH_TIMES * requests_needed(limits, evidence.share, slow_ms)
    return by_then < max(enough, counted + good_ones_missing("failed", evidence, limits))


def probes_missing(evidence: Evidence, limits: Limits, elapsed_seconds: float, probed: Probed, at_most: int) -> int:
    """How many more prompts the candidate should be asked; none where users tell in time, or enough was asked."""
    if not at_most or not is_too_thin(evidence, limits, elapsed_seconds):
        return 0
    return max(0, min(answers_missing(evidence, limits, probed), at_most - probed.evidence.requests))


def seconds_between_rounds(limits: Limits, prompts: int, at_most: int) -> float:
    """From the beginning of one round of all prompts to the next one's."""
    return limits.deadline_seconds * SPREAD_OVER * prompts / at_most
