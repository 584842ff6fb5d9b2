"""What a stage has shown: requests in one by one, evidence out."""

import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, product
from math import exp, log, prod
from random import Random
from typing import Any
from zlib import crc32

import pytest

from blocks.ports import Outcome, Slot
from flows.policy.bets import mean_of
from flows.policy.gates import Ruling, rule
from flows.policy.judge import PLACES, ROUND_REQUESTS, Carried, Judge, has_failed
from flows.policy.measures import FIRST_TOKEN, LEARNED_FROM, TIMES, Count, budget_of_stage
from tests import limits

LIMITS = limits.LIMITS.model_copy(
    update={"token_p95_ms": 100, "first_token_margin_ms": 0, "minimum_seconds": 0, "deadline_seconds": 3600}
)
OUTCOME = Outcome(
    id="1",
    at=0,
    slot="green",
    address="127.0.0.1:1",
    status=200,
    first_token_ms=100,
    tokens=50,
    per_token_ms=20.0,
    total_ms=200,
    user=None,
    retried=False,
    by_fallback=False,
    cut_short=False,
    is_empty=False,
    user_left=False,
)
CELLS = {f"127.0.0.1:{number}": f"cell-{number}" for number in range(4)}


def judge(share: float = 0.05, **others: object) -> Judge:
    return Judge(LIMITS.model_copy(update=others), "green", share=share, budget=budget_of_stage(0, 5))


def users(
    seed: int,
    *,
    rate: float,
    stables: float = 0.002,
    share: float = 0.05,
    times: float = 1.0,
    token_times: float = 1.0,
    count: int = 5000,
) -> Iterator[Outcome]:
    """Requests of many users, split by user, where the candidate fails at `rate` and takes so many times as long."""
    random, token_random = Random(seed), Random(-seed)  # noqa: S311 - the same each time, and no secret
    slots: dict[int, Slot] = {}
    while True:
        user = int(count * random.random() ** 2)  # some come far more often than others
        slot = slots.setdefault(user, "green" if random.random() < share else "blue")
        mine = slot == "green"
        yield replace(
            OUTCOME,
            slot=slot,
            address=f"127.0.0.1:{random.randrange(4)}" if mine else "127.0.0.1:9",
            user=str(user),
            status=500 if random.random() < (rate if mine else stables) else 200,
            first_token_ms=100 * random.lognormvariate(0, 0.5) * (times if mine else 1),
            per_token_ms=20 * token_random.lognormvariate(0, 0.3) * (token_times if mine else 1),
        )


def play(judge: Judge, requests: Iterator[Outcome], at_most: int = 100_000) -> tuple[Ruling, int]:
    for number, outcome in enumerate(requests, start=1):
        judge.observe(outcome, 10)
        if number % 20 == 0:
            ruling = rule(judge.evidence(), judge.limits, 10)
            if ruling.verdict != "hold" or ruling.bad_cells or number >= at_most:
                return ruling, judge.evidence().requests
    raise AssertionError


@pytest.mark.parametrize(
    ("outcome", "failed"),
    [
        (OUTCOME, False),
        (replace(OUTCOME, status=404), False),
        (replace(OUTCOME, status=503), True),
        (replace(OUTCOME, retried=True), True),
        (replace(OUTCOME, by_fallback=True), True),
        (replace(OUTCOME, cut_short=True), True),
        (replace(OUTCOME, is_empty=True), True),
        (replace(OUTCOME, user_left=True, status=-1), False),
        (replace(OUTCOME, user_left=True, status=503), True),
    ],
)
def test_what_counts_as_a_failure(outcome: Outcome, failed: bool) -> None:  # noqa: FBT001 - a parametrised flag
    """What a retry or a fallback hid counts; a refusal, and a user who left, do not."""
    one = judge()
    one.observe(outcome, 10)
    assert has_failed(outcome) == failed
    assert one.evidence().count("failed").hits == failed


@pytest.mark.parametrize("seed", range(3))
def test_a_candidate_like_stable_passes(seed: int) -> None:
    """Once it is plain that it does not fail twice as often as it may, nor is slow twice as often as stable."""
    ruling, requests = play(judge(), users(seed, rate=0.002))
    assert ruling.verdict == "promote"
    assert 172 <= requests < 1500


@pytest.mark.parametrize(("rate", "most"), [(0.03, 800), (0.1, 150), (0.5, 20)])
@pytest.mark.parametrize("seed", range(3))
def test_a_candidate_that_fails_is_harm(rate: float, most: int, seed: int) -> None:
    """After a handful of failures."""
    ruling, requests = play(judge(), users(seed, rate=rate))
    assert ruling.verdict == "roll back"
    assert requests <= most


@pytest.mark.parametrize("seed", range(3))
def test_a_candidate_that_is_half_as_fast_is_harm(seed: int) -> None:
    """Within the limit, and yet twice as slow as stable."""
    ruling, requests = play(judge(first_token_p95_ms=5000), users(seed, rate=0.002, times=2))
    assert ruling.verdict == "roll back"
    assert "first answers in this stage later than the p90 of both slots" in ruling.reason
    assert requests < 60


@pytest.mark.parametrize("seed", range(3))
def test_a_candidate_whose_tokens_come_half_as_fast_is_harm(seed: int) -> None:
    """Though its first tokens are as quick, and both are within the limit; where tokens are not judged it passes."""
    ruling, requests = play(judge(), users(seed, rate=0.002, token_times=2))
    assert ruling.verdict == "roll back"
    assert "first answers in this stage later a token than the p90 of both slots" in ruling.reason
    assert requests < 60
    ruling, _ = play(judge(token_p95_ms=None), users(seed, rate=0.002, token_times=2))
    assert ruling.verdict == "promote"


def test_alone_tokens_are_judged_by_their_limit() -> None:
    """A fifth of the answers at more than 100 ms a token, at all traffic."""
    one = judge(share=1.0)
    for number in range(200):
        one.observe(replace(OUTCOME, per_token_ms=150 if number % 5 == 0 else 20), 10)
    ruling = rule(one.evidence(), LIMITS, 10)
    assert ruling.verdict == "roll back"
    assert "streamed answers took more a token than 100 ms" in ruling.reason


def test_a_promised_pace_of_which_nothing_was_seen_is_not_kept() -> None:
    """Answers of a few tokens each say nothing of it: no data is never a pass."""
    one = judge()
    for _, outcome in zip(range(20_000), users(1, rate=0.0), strict=False):
        one.observe(replace(outcome, per_token_ms=None), 10)
    ruling = rule(one.evidence(), LIMITS, 10)
    assert ruling.verdict == "hold"
    assert "0 of the 100 streamed answers of some tokens that say what is slow" in ruling.reason


def test_tokens_are_added_up_beside_requests() -> None:
    """One request in twenty can be a third of all tokens."""
    one = judge()
    for number in range(100):
        mine = number % 20 == 0
        one.observe(replace(OUTCOME, slot="green" if mine else "blue", tokens=190 if mine else 20), 10)
    evidence = one.evidence()
    assert (evidence.requests, evidence.stable_requests) == (5, 95)
    assert (evidence.tokens, evidence.stable_tokens) == (950, 1900)


@pytest.mark.parametrize(
    ("share", "status", "users_hit"),
    [(0.05, 500, 3), (0.05, 404, 4), (0.15, 500, 4), (0.15, 404, 6), (0.3, 500, 6), (0.3, 404, 9), (0.5, 500, 10)],
)
def test_harm_takes_as_many_users_as_the_docs_say(share: float, status: int, users_hit: int) -> None:
    """Every fourth request meets it, and none of stable's does: the numbers in docs/gates.md."""
    one = judge(share=share)
    for number in range(4 * users_hit):
        assert rule(one.evidence(), LIMITS, 10).verdict == "hold"
        one.observe(replace(OUTCOME, status=status if number % 4 == 3 else 200), 10)
    assert rule(one.evidence(), LIMITS, 10).verdict == "roll back"


def test_a_user_counts_once() -> None:
    """One user whose every request fails is one failure; as many without a name are as many."""
    named, nameless = judge(), judge()
    for _ in range(50):
        named.observe(replace(OUTCOME, status=500, user="always"), 10)
        nameless.observe(replace(OUTCOME, status=500), 10)
    assert (named.evidence().count("failed").hits, named.evidence().count("failed").of) == (1, 1)
    assert nameless.evidence().count("failed").hits == 50
    assert rule(named.evidence(), LIMITS, 10).verdict == "hold"
    assert rule(nameless.evidence(), LIMITS, 10).verdict == "roll back"


def test_few_users_are_little_good_news() -> None:
    """Five users with four hundred requests each count as 125, and that is no pass."""
    one = judge()
    for number in range(ROUND_REQUESTS):
        one.observe(replace(OUTCOME, user=str(number % 5)), 10)
    evidence = one.evidence()
    assert (evidence.requests, evidence.users, evidence.count("failed").counted) == (2000, 5, 125)
    assert rule(evidence, LIMITS, 10).verdict == "hold"


def test_old_users_whom_all_requests_fail_of_a_sudden_count_again() -> None:
    """All 160 users failed once, over hours; when everything fails, they are not passed over as known."""
    one = judge(share=0.5)
    for number in range(10 * ROUND_REQUESTS):
        first = number % 121 == 0  # all users in turn
        slot: Slot = "green" if number % 2 else "blue"
        one.observe(replace(OUTCOME, slot=slot, user=f"{slot}{number % 160}", status=500 if first else 200), 10)
    assert rule(one.evidence(), LIMITS, 10).verdict != "roll back"
    for number in range(1, 160, 2):
        one.observe(replace(OUTCOME, user=f"green{number}", status=500), 10)
    ruling = rule(one.evidence(), LIMITS, 10)
    assert ruling.verdict == "roll back"
    assert "met a failure lately" in ruling.reason


def test_first_tokens_of_the_warm_up_are_not_judged_and_failures_are() -> None:
    """A request belongs to the warm-up by its own duration: no clock of another host is asked."""
    one = judge(warm_up_seconds=30)
    one.observe(replace(OUTCOME, first_token_ms=900, total_ms=5000), 32)
    assert one.evidence().count("late").of == 0
    one.observe(replace(OUTCOME, first_token_ms=900, total_ms=1000), 32)
    assert one.evidence().count("late").hits == 1
    one.observe(replace(OUTCOME, status=500, first_token_ms=None), 1)
    assert one.evidence().count("failed").hits == 1


def test_what_is_slow_is_learned_from_both_slots_and_follows_them() -> None:
    """The requests that it is learned from are judged by it too; a hundred later the lines are drawn anew."""
    one = judge()
    for number in range(LEARNED_FROM):
        assert not one.evidence().slow_ms
        one.observe(replace(OUTCOME, slot="blue" if number % 10 else "green", first_token_ms=number + 1.0), 10)
    evidence = one.evidence()
    assert evidence.slow_ms == (10, 25, 50, 75, 90, 97, 99)
    assert evidence.count("slow").all_hits == 9  # from 92 on; 91 is the candidate's, and within 1.1 times 90
    for number in range(9 * LEARNED_FROM):
        one.observe(replace(OUTCOME, slot="blue", first_token_ms=1000.0 + number), 10)
    lately = one.evidence().slow_ms
    assert min(lately) > 1000
    one.observe(replace(OUTCOME, slot="blue", first_token_ms=5000), 10)
    assert min(one.evidence().slow_ms) > min(lately)
    assert min(one.carried().slow_ms[FIRST_TOKEN]) > min(lately)


@pytest.mark.parametrize(("candidates_ms", "is_harm"), [(108.0, False), (125.0, True)])
def test_slower_within_the_margin_is_excused(candidates_ms: float, is_harm: bool) -> None:  # noqa: FBT001 - a row
    """Stable takes 100 ms each time: 108 is plainly slower and within the margin, 125 is not."""
    one = judge(share=0.2)
    for number in range(1000):
        mine = number % 5 == 0
        ms = candidates_ms if mine else 100.0
        one.observe(replace(OUTCOME, slot="green" if mine else "blue", first_token_ms=ms), 10)
    slow = one.evidence().count("slow")
    assert slow.harm > log(10_000)
    assert slow.matters is not None
    assert (slow.matters > log(10_000)) == is_harm
    assert (rule(one.evidence(), LIMITS, 10).verdict == "roll back") == is_harm


@pytest.mark.parametrize(("candidates_ms", "is_harm"), [(3.9, False), (8.0, True)])
def test_what_a_token_takes_longer_within_the_margin_is_excused(candidates_ms: float, is_harm: bool) -> None:  # noqa: FBT001 - a row
    """Stable takes 1 ms a token, and 5 ms more are excused: four times as slow is nothing that a reader sees."""
    one = judge(share=0.2, token_margin_ms=5)
    for number in range(1000):
        mine = number % 5 == 0
        ms = candidates_ms if mine else 1.0
        one.observe(replace(OUTCOME, slot="green" if mine else "blue", per_token_ms=ms), 10)
    assert one.evidence().count("slow tokens").harm > log(10_000)
    assert (rule(one.evidence(), LIMITS, 10).verdict == "roll back") == is_harm


def two_stages(first: Sequence[Outcome], second: Sequence[Outcome], carried: Carried | None = None) -> Judge:
    """At 5 % and at 30 % of the traffic."""
    before = Judge(LIMITS, "green", share=0.05, budget=budget_of_stage(0, 3), carried=carried)
    for outcome in first:
        before.observe(outcome, 10)
    judge = Judge(LIMITS, "green", share=0.3, budget=budget_of_stage(1, 3), carried=before.carried())
    for outcome in second:
        judge.observe(outcome, 10)
    return judge


def test_bets_go_on_in_the_next_stage() -> None:
    """Two users who met failures at 5 % are no harm, and at 30 % two more are enough."""
    failures = [replace(OUTCOME, status=500, user=str(number)) for number in range(4)]
    fine = [OUTCOME] * 10
    ruling = rule(two_stages([*fine, *failures[:2]], [*fine, *failures[2:]]).evidence(), LIMITS, 10)
    assert ruling.verdict == "roll back"
    assert "if it were like stable, what all stages so far have shown would be bad luck of 1 in" in ruling.reason
    assert rule(two_stages(fine, [*fine, *failures[2:]]).evidence(), LIMITS, 10).verdict == "hold"


def test_of_whom_it_is_known_that_he_is_the_candidates_nothing_is_bet() -> None:
    """He fails again in the next stage, and that is shown; who was stable's until now says more than a new user."""
    failure = replace(OUTCOME, status=500, user="one")
    stables, new = replace(OUTCOME, slot="blue", user="two"), replace(failure, user="two")

    def failed(first: Sequence[Outcome], second: Sequence[Outcome]) -> Count:
        return two_stages(first, second).evidence().count("failed")

    again = failed([failure], [failure] * 20)
    assert again.hits == 1
    assert again.whole == failed([failure], [OUTCOME]).whole
    assert failed([failure, stables], [new]).whole > failed([failure], [new]).whole > again.whole


def test_a_request_that_began_before_the_stage_was_not_drawn_in_it() -> None:
    """It took longer than the stage stood: who was stable's by the share before may be the candidate's by this one."""
    late = replace(OUTCOME, slot="blue", user="one", total_ms=20_000)
    fails = replace(OUTCOME, status=500, user="one")

    def whole(stable: Outcome) -> float:
        before = two_stages([OUTCOME], [stable])
        judge = Judge(LIMITS, "green", share=0.5, budget=budget_of_stage(2, 4), carried=before.carried())
        judge.observe(fails, 10)
        return judge.evidence().count("failed").whole

    assert whole(late) < whole(replace(late, total_ms=200))


def test_whom_a_cell_answered_that_is_held_back_is_known() -> None:
    """Requests that it still had in flight are judged by nobody, and their users are the candidate's."""
    before = Judge(LIMITS, "green", share=0.05, budget=budget_of_stage(0, 3), cells=CELLS)
    before.drop(["cell-1"])
    before.observe(replace(OUTCOME, address="127.0.0.1:1", user="one"), 10)
    judge = Judge(LIMITS, "green", share=0.3, budget=budget_of_stage(1, 3), carried=before.carried())
    judge.observe(replace(OUTCOME, status=500, user="one"), 10)
    assert judge.evidence().count("failed").hits == 1
    assert judge.evidence().count("failed").whole == 0.0


def test_bets_that_go_on_are_worth_one_coin_on_average() -> None:
    """Over all ways of giving six users to the slots as the share rises, where two of them have one place."""
    names = ["a", "b", "c", "d"]
    twin = next(str(n) for n in count() if crc32(str(n).encode()) % PLACES == crc32(b"a") % PLACES)
    lines: Any = dict.fromkeys(TIMES, (10.0, 20.0, 40.0, 60.0, 80.0, 90.0, 100.0))
    first = [("a", 500, 5), ("b", 200, 95), (twin, 200, 30), ("c", 200, 70), ("a", 200, 85)]
    second = [("a", 500, 99), ("b", 500, 99), ("c", 200, 5), ("d", 500, 200), (twin, 500, 7), ("d", 200, 1)]
    failed = slow = 0.0
    for places in product((0.05, 0.25, 0.7), repeat=len(names) + 1):
        luck = dict(zip([*names, twin], ({0.05: 0.01, 0.25: 0.1, 0.7: 0.9}[one] for one in places), strict=True))

        def requests(share: float, rows: Sequence[tuple[str, int, int]]) -> list[Outcome]:
            slots: dict[str, Slot] = {user: "green" if luck[user] < share else "blue" for user in luck}  # noqa: B023 - used at once
            return [
                replace(OUTCOME, user=user, slot=slots[user], status=status, first_token_ms=ms, per_token_ms=None)
                for user, status, ms in rows
            ]

        judge = two_stages(requests(0.05, first), requests(0.3, second), Carried(slow_ms=lines))
        left = judge.carried()
        failed += prod(places) * exp(mean_of(left.purses["failed"].harm))
        slow += prod(places) * exp(mean_of(left.slowness[FIRST_TOKEN][0]))
    assert failed == pytest.approx(1)
    assert slow == pytest.approx(1)


def test_a_log_with_a_gap_begins_anew() -> None:
    """What was seen before is forgotten; what is slow is still known."""
    one = judge()
    for number in range(LEARNED_FROM):
        one.observe(replace(OUTCOME, first_token_ms=number + 1.0, status=500 if number == 5 else 200), 10)
    one.begin_anew()
    assert one.evidence().requests == one.evidence().count("failed").hits == 0
    assert one.evidence().slow_ms == (10, 25, 50, 75, 90, 97, 99)


def test_the_same_requests_give_the_same_evidence() -> None:
    """Nothing but the requests decides."""
    first, second = judge(), judge()
    for one in (first, second):
        for outcome, _ in zip(users(7, rate=0.02), range(1000), strict=False):
            one.observe(outcome, 10)
    assert first.evidence() == second.evidence()


def test_the_trail_stays_short() -> None:
    """From one request to ten thousand, in order, with all failures so far."""
    one = judge()
    for number in range(10_000):
        one.observe(replace(OUTCOME, status=500 if number % 1000 == 0 else 200), 10)
    trail = one.evidence().trail
    assert 20 < len(trail) < 50
    assert list(trail) == sorted(trail)
    assert trail[-1][0] > 9000
    assert trail[-1][1] == 10


def test_requests_of_no_slot_and_of_nobody_change_nothing() -> None:
    """Where the split had nowhere to send it, no slot is to blame."""
    one = judge()
    one.observe(replace(OUTCOME, slot=None, status=503), 10)
    assert one.evidence() == judge().evidence()


@pytest.mark.parametrize("seed", range(5))
def test_one_bad_cell_of_four_is_held_back_and_the_rest_goes_on(seed: int) -> None:
    """A fifth of its answers fail: it is named, its address is given back, and without it the stage is passed."""
    one = Judge(LIMITS, "green", share=0.2, budget=0.6, cells=CELLS)

    def with_bad_cell() -> Iterator[Outcome]:
        random = Random(seed)  # noqa: S311 - the same each time, and no secret
        for outcome in users(seed, rate=0.002, share=0.2):
            bad = outcome.address == "127.0.0.1:2" and random.random() < 0.2
            yield replace(outcome, status=500) if bad else outcome

    ruling, _ = play(one, with_bad_cell())
    assert ruling.bad_cells == ("cell-2",)
    assert "cell-2 is held back" in ruling.reason
    assert one.drop(ruling.bad_cells) == ("127.0.0.1:2",)
    assert one.evidence().dropped == ("cell-2",)
    ruling, _ = play(one, with_bad_cell())
    assert ruling.verdict == "promote"
    assert not ruling.bad_cells


@pytest.mark.parametrize("seed", range(5))
def test_a_model_that_is_bad_everywhere_is_no_cells_fault(seed: int) -> None:
    """Harm in all cells rolls the release back."""
    one = Judge(LIMITS, "green", share=0.2, budget=0.6, cells=CELLS)
    ruling, _ = play(one, users(seed, rate=0.1, share=0.2))
    assert ruling.verdict == "roll back"


def test_a_million_requests_take_no_more_room_than_ten_thousand() -> None:
    """And each takes far less than 50 microseconds of one core; the bound here is wide, for tests share theirs."""

    def room(of: Judge) -> int:
        return len(pickle.dumps(of))

    one = judge()
    stream = users(1, rate=0.002, count=20_000)
    requests = [next(stream) for _ in range(30_000)]
    for outcome in requests[:10_000]:
        one.observe(outcome, 10)
    before, begun = room(one), time.process_time()
    for outcome in requests:
        one.observe(outcome, 10)
    assert (time.process_time() - begun) / len(requests) < 200e-6
    assert room(one) <= before + 1000 < 120 * PLACES


def test_the_budget_of_all_stages_is_one() -> None:
    """Whatever their number, and the first has the largest part."""
    for of in range(1, 8):
        parts = [budget_of_stage(number, of) for number in range(of)]
        assert sum(parts) == pytest.approx(1)
        assert parts[0] == max(parts)
