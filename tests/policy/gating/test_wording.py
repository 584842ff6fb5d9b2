"""What people are told of a ruling: first what users met and what was done, then what it stands on."""

from dataclasses import replace

import pytest

from blocks.ports.gateway import Outcome, Slot
from flows.policy.gating.decide import Ruling, rule
from flows.policy.gating.evidence import CellCount, Count, Evidence, Timing
from flows.policy.gating.judge import Judge
from flows.policy.gating.wording import words_of
from tests import limits
from tests.gating import said
from tests.policy.gating.test_judge import OUTCOME

LIMITS = limits.LIMITS.model_copy(update={"minimum_seconds": 0})
SLOW = Evidence(
    weight=0.5,
    alpha=0.6,
    requests=64,
    stable_requests=84,
    counts={"TTFT slower": Count(60, 66, 64, peak=9.12305, peak_beyond_margin=9.0)},
    timings={"TTFT": Timing(0, (50, 70, 100, 150, 200, 300, 400), (11600, 14000, 310, 400), (64, 84))},
)


def test_who_was_woken_up_reads_what_users_met_and_what_was_done() -> None:
    """In their units, beside stable; evidence and thresholds come after, by their standard names."""
    words = words_of(rule(SLOW, LIMITS, 20), SLOW, LIMITS, 20)
    assert words.first == (
        "Rolled back at 50 %: time to first token is 11.6 s at the median, 37 times stable's 0.31 s "
        "(64 and 84 answers)."
    )
    assert words.second == "If it were like stable: TTFT slower p ≤ 1/9,164 (threshold 1/490)."
    assert words.text == f"{words.first} {words.second}"


def test_a_tail_is_told_where_the_median_hides_it() -> None:
    """Where only the slowest answers are slower."""
    timing = Timing(0, (50, 70, 100, 150, 200, 300, 400), (101, 900, 100, 300), (64, 84))
    assert "is 900 ms at p95, 3 times stable's 300 ms" in said(replace(SLOW, timings={"TTFT": timing}), LIMITS, 20)


def test_failures_are_told_beside_stables() -> None:
    """How many of how many, of both slots."""
    counts = {"failed": Count(12, 15, 64, peak=20.0, peak_beyond_margin=20.0, all_of=1274)}
    words = words_of(rule(replace(SLOW, counts=counts), LIMITS, 20), replace(SLOW, counts=counts), LIMITS, 20)
    assert words.first == (
        "Rolled back at 50 %: 12 of 64 (18.8 %) requests failed, and 3 of 1,210 (0.2 %) of stable's; the limit is 1 %."
    )


def test_who_answers_nothing_is_told_as_failing_and_not_as_slow() -> None:
    """Its missing answers are none that are late."""
    slow = Count(0, 60, 0, peak=30.0, peak_beyond_margin=30.0)
    counts = {"failed": Count(30, 30, 30, peak=20.0, peak_beyond_margin=20.0, all_of=300), "TTFT slower": slow}
    timings = {"TTFT": Timing(0, (50, 70, 100, 150, 200, 300, 400), (None, None, 310, 400), (0, 84))}
    words = said(replace(SLOW, counts=counts, timings=timings), LIMITS, 20)
    assert "30 of 30 (100.0 %) requests failed" in words
    assert "TTFT" not in words
    assert "time to first token" not in words


def test_nothing_absurd_is_said_of_nothing() -> None:
    """No share of no requests, no odds of an event that did not happen, no time that nobody took."""
    nothing = Evidence(weight=0.05, alpha=0.6)
    for seconds in (5, 100):
        words = said(nothing, LIMITS.model_copy(update={"token_p95_ms": 100}), seconds)
        assert "0 of 0" not in words
        assert "p ≤" not in words
        assert "none of the candidate's streamed answers has told its time to first token" in words


def test_a_stage_that_waits_says_for_what_and_how_long() -> None:
    """At the pace so far."""
    few = replace(SLOW, weight=0.05, counts={"failed": Count(0, 1, 100, 100, all_of=2000)}, timings={}, requests=100)
    words = said(few, LIMITS.model_copy(update={"first_token_p95_ms": None}), 50)
    assert words == (
        "Held at 5 %: 0 of 100 (0.0 %) requests failed, and 1 of 1,900 (0.1 %) of stable's; the limit is 1 %: "
        "about 72 more good ones (36 s at this pace) will do."
    )
    assert said(few, LIMITS.model_copy(update={"first_token_p95_ms": None}), 130).startswith(
        "Rolled back at 5 %: not passed within 100 s: 0 of 100"
    )


def test_a_cell_that_is_held_back_and_a_way_back_that_is_blocked_are_said() -> None:
    """Neither is a verdict on the release."""
    cells = {name: CellCount(25, {"failed": 8} if name == "c" else {}) for name in "abcd"}
    evidence = replace(SLOW, counts={"failed": Count(8, 20, 100, 100, 8)}, cells=cells, requests=100)
    held = words_of(Ruling("hold", (), ("c",)), evidence, LIMITS, 5)
    assert held.first == (
        "Held at 50 %: cell c is held back: it has 25 % of the candidate's requests "
        "and 8 of all 8 that count as failed."
    )
    blocked = words_of(Ruling("hold", blockers="no replica of it is up"), evidence, LIMITS, 5)
    assert blocked.first == "Held at 50 %: stable could not take its traffic back now: no replica of it is up."


@pytest.mark.parametrize("began_before", [True, False])
def test_what_the_split_of_before_has_sent_is_no_news_beside_stable(began_before: bool) -> None:  # noqa: FBT001 - a row
    """Stable's answers that were under way when the stage began do not make the candidate's failures look rare."""
    judge = Judge(LIMITS, "green", weight=0.5)

    def ended(slot: Slot, status: int, total_ms: float) -> Outcome:
        return replace(OUTCOME, slot=slot, status=status, total_ms=total_ms, first_token_ms=None, per_token_ms=None)

    judge.take([ended("blue", 500, 20_000 if began_before else 10)] * 10, 5)
    judge.take([ended("green", 500, 10)] * 12, 5)
    failed = judge.evidence().count("failed")
    assert failed.all_hits == (12 if began_before else 22)
    assert (rule(judge.evidence(), LIMITS, 5).verdict == "roll back") == began_before
