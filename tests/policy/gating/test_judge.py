"""What a stage has shown: requests in one by one, evidence out."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, islice, product
from math import exp, log, prod
from random import Random
from zlib import crc32

import numpy as np
import pytest

from blocks.ports.gateway import Outcome, RequestKind, Slot
from flows.policy.gating.alpha import alpha_of_stage
from flows.policy.gating.decide import Ruling, rule
from flows.policy.gating.design_effect import UserWeights
from flows.policy.gating.e_values import log_mean
from flows.policy.gating.evidence import Count
from flows.policy.gating.judge import ROUND_REQUESTS, Carried, Judge
from flows.policy.gating.latency import LEARNED_FROM, CarriedLatency
from flows.policy.gating.non_inferiority import log_e_like_stable
from flows.policy.gating.outcomes import BUCKETS, NAMELESS, has_failed, has_refused, speaks
from tests import limits
from tests.gating import said, subjects

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
CHAT: frozenset[RequestKind] = frozenset({"chat"})
CELLS = {f"127.0.0.1:{number}": f"cell-{number}" for number in range(4)}


def judge(share: float = 0.05, **others: object) -> Judge:
    return Judge(LIMITS.model_copy(update=others), "green", weight=share, alpha=alpha_of_stage(0, 5))


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
    ruling = Ruling("hold")
    for _ in range(0, at_most, 20):
        judge.take(list(islice(requests, 20)), 10)
        ruling = rule(judge.evidence(), judge.limits, 10)
        if ruling.verdict != "hold" or ruling.bad_cells:
            break
    return ruling, judge.evidence().requests


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
        (replace(OUTCOME, status=429), True),
        (replace(OUTCOME, status=501), False),
        (replace(OUTCOME, status=501, retried=True), True),
        (replace(OUTCOME, error_status=500), True),
        (replace(OUTCOME, error_status=429), True),
        (replace(OUTCOME, error_status=400, cut_short=True, is_empty=True), False),
        (replace(OUTCOME, error_status=501), False),
        (replace(OUTCOME, error_status=200), True),
        (replace(OUTCOME, error_status=-1), True),
        (replace(OUTCOME, status=400, error_status=503), True),
        (replace(OUTCOME, user_left=True), False),
    ],
)
def test_what_counts_as_a_failure(outcome: Outcome, failed: bool) -> None:  # noqa: FBT001 - a parametrised flag
    """What a retry or a fallback hid counts; a refusal, and a user who left, do not."""
    one = judge()
    one.take([outcome], 10)
    assert has_failed(outcome) == failed
    assert not (failed and has_refused(outcome))
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
    assert subjects(ruling) == ["TTFT slower"]
    assert requests < 60


@pytest.mark.parametrize("seed", range(3))
def test_a_candidate_whose_tokens_come_half_as_fast_is_harm(seed: int) -> None:
    """Though its first tokens are as quick, and both are within the limit; where tokens are not judged it passes."""
    ruling, requests = play(judge(), users(seed, rate=0.002, token_times=2))
    assert ruling.verdict == "roll back"
    assert "TPOT slower" in subjects(ruling)
    assert requests < 60
    ruling, _ = play(judge(token_p95_ms=None), users(seed, rate=0.002, token_times=2))
    assert ruling.verdict == "promote"


def test_alone_tokens_are_judged_by_their_limit() -> None:
    """A fifth of the answers at more than 100 ms a token, at all traffic."""
    one = judge(share=1.0)
    one.take([replace(OUTCOME, per_token_ms=150 if number % 5 == 0 else 20) for number in range(200)], 10)
    ruling = rule(one.evidence(), LIMITS, 10)
    assert ruling.verdict == "roll back"
    assert subjects(ruling) == ["TPOT over limit"]


def test_a_promised_pace_of_which_nothing_was_seen_is_not_kept() -> None:
    """Answers of a few tokens each say nothing of it: no data is never a pass."""
    one = judge()
    one.take(
        [replace(outcome, per_token_ms=None) for _, outcome in zip(range(20_000), users(1, rate=0.0), strict=False)], 10
    )
    ruling = rule(one.evidence(), LIMITS, 10)
    assert ruling.verdict == "hold"
    assert subjects(ruling, "learning") == ["TPOT"]
    assert "0 of the 100 streamed answers of some tokens" in said(one.evidence(), LIMITS, 10)


def test_tokens_are_added_up_beside_requests() -> None:
    """One request in twenty can be a third of all tokens."""
    one = judge()
    seen: list[Outcome] = []
    for number in range(100):
        mine = number % 20 == 0
        seen.append(replace(OUTCOME, slot="green" if mine else "blue", tokens=190 if mine else 20))
    one.take(seen, 10)
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
        one.take([replace(OUTCOME, status=status if number % 4 == 3 else 200)], 10)
    assert rule(one.evidence(), LIMITS, 10).verdict == "roll back"


def test_a_user_counts_once() -> None:
    """One user whose every request fails is one failure; as many without a name are as many."""
    named, nameless = judge(), judge()
    for _ in range(50):
        named.take([replace(OUTCOME, status=500, user="always")], 10)
        nameless.take([replace(OUTCOME, status=500)], 10)
    assert (named.evidence().count("failed").hits, named.evidence().count("failed").of) == (1, 1)
    assert nameless.evidence().count("failed").hits == 50
    assert rule(named.evidence(), LIMITS, 10).verdict == "hold"
    assert rule(nameless.evidence(), LIMITS, 10).verdict == "roll back"


def test_few_users_are_little_good_news() -> None:
    """Five users with four hundred requests each count as 125, and that is no pass."""
    one = judge()
    one.take([replace(OUTCOME, user=str(number % 5)) for number in range(ROUND_REQUESTS)], 10)
    evidence = one.evidence()
    assert (evidence.requests, evidence.users, evidence.count("failed").counted) == (2000, 5, 125)
    assert rule(evidence, LIMITS, 10).verdict == "hold"


def test_old_users_whom_all_requests_fail_of_a_sudden_count_again() -> None:
    """All 160 users failed once, over hours; when everything fails, they are not passed over as known."""
    one = judge(share=0.5)
    seen: list[Outcome] = []
    for number in range(10 * ROUND_REQUESTS):
        first = number % 121 == 0  # all users in turn
        slot: Slot = "green" if number % 2 else "blue"
        seen.append(replace(OUTCOME, slot=slot, user=f"{slot}{number % 160}", status=500 if first else 200))
    one.take(seen, 10)
    assert rule(one.evidence(), LIMITS, 10).verdict != "roll back"
    one.take([replace(OUTCOME, user=f"green{number}", status=500) for number in range(1, 160, 2)], 10)
    ruling = rule(one.evidence(), LIMITS, 10)
    assert ruling.verdict == "roll back"
    assert subjects(ruling) == ["failed lately"]


def test_first_tokens_of_the_warm_up_are_not_judged_and_failures_are() -> None:
    """A request belongs to the warm-up by its own duration: no clock of another host is asked."""
    one = judge(warm_up_seconds=30)
    one.take([replace(OUTCOME, first_token_ms=900, total_ms=5000)], 32)
    assert one.evidence().count("TTFT over limit").of == 0
    one.take([replace(OUTCOME, first_token_ms=900, total_ms=1000)], 32)
    assert one.evidence().count("TTFT over limit").hits == 1
    one.take([replace(OUTCOME, status=500, first_token_ms=None)], 1)
    assert one.evidence().count("failed").hits == 1


def test_what_is_slow_is_learned_from_both_slots_and_follows_them() -> None:
    """The requests that it is learned from are judged by it too; a hundred later the lines are drawn anew."""
    one = judge()
    for number in range(LEARNED_FROM):
        assert not one.evidence().timing("TTFT").edges_ms
        one.take([replace(OUTCOME, slot="blue" if number % 10 else "green", first_token_ms=number + 1.0)], 10)
    evidence = one.evidence()
    assert evidence.timing("TTFT").edges_ms == (10, 25, 50, 75, 90, 97, 99)
    assert evidence.count("TTFT slower").all_hits == 9  # from 92 on; 91 is the candidate's, and within 1.1 times 90
    one.take([replace(OUTCOME, slot="blue", first_token_ms=1000.0 + number) for number in range(9 * LEARNED_FROM)], 10)
    lately = one.evidence().timing("TTFT").edges_ms
    assert min(lately) > 1000
    one.take([replace(OUTCOME, slot="blue", first_token_ms=5000)], 10)
    assert min(one.evidence().timing("TTFT").edges_ms) > min(lately)
    assert min(one.carried().latencies["TTFT"].edges_ms) > min(lately)


@pytest.mark.parametrize(("candidates_ms", "is_harm"), [(108.0, False), (125.0, True)])
def test_slower_within_the_margin_is_excused(candidates_ms: float, is_harm: bool) -> None:  # noqa: FBT001 - a row
    """Stable takes 100 ms each time: 108 is plainly slower and within the margin, 125 is not."""
    one = judge(share=0.2)
    seen: list[Outcome] = []
    for number in range(1000):
        mine = number % 5 == 0
        ms = candidates_ms if mine else 100.0
        seen.append(replace(OUTCOME, slot="green" if mine else "blue", first_token_ms=ms))
    one.take(seen, 10)
    slow = one.evidence().count("TTFT slower")
    assert slow.peak > log(10_000)
    assert slow.peak_beyond_margin is not None
    assert (slow.peak_beyond_margin > log(10_000)) == is_harm
    assert (rule(one.evidence(), LIMITS, 10).verdict == "roll back") == is_harm


@pytest.mark.parametrize(("candidates_ms", "is_harm"), [(3.9, False), (8.0, True)])
def test_what_a_token_takes_longer_within_the_margin_is_excused(candidates_ms: float, is_harm: bool) -> None:  # noqa: FBT001 - a row
    """Stable takes 1 ms a token, and 5 ms more are excused: four times as slow is nothing that a reader sees."""
    one = judge(share=0.2, token_margin_ms=5)
    seen: list[Outcome] = []
    for number in range(1000):
        mine = number % 5 == 0
        ms = candidates_ms if mine else 1.0
        seen.append(replace(OUTCOME, slot="green" if mine else "blue", per_token_ms=ms))
    one.take(seen, 10)
    assert one.evidence().count("TPOT slower").peak > log(10_000)
    assert (rule(one.evidence(), LIMITS, 10).verdict == "roll back") == is_harm


def two_stages(first: Sequence[Outcome], second: Sequence[Outcome], carried: Carried | None = None) -> Judge:
    """At 5 % and at 30 % of the traffic."""
    before = Judge(LIMITS, "green", weight=0.05, alpha=alpha_of_stage(0, 3), carried=carried)
    before.take(first, 10)
    judge = Judge(LIMITS, "green", weight=0.3, alpha=alpha_of_stage(1, 3), carried=before.carried())
    judge.take(second, 10)
    return judge


def test_bets_go_on_in_the_next_stage() -> None:
    """Two users who met failures at 5 % are no harm, and at 30 % two more are enough."""
    failures = [replace(OUTCOME, status=500, user=str(number)) for number in range(4)]
    fine = [OUTCOME] * 10
    ruling = rule(two_stages([*fine, *failures[:2]], [*fine, *failures[2:]]).evidence(), LIMITS, 10)
    assert ruling.verdict == "roll back"
    assert subjects(ruling, "cumulative harm") == ["failed"]
    assert rule(two_stages(fine, [*fine, *failures[2:]]).evidence(), LIMITS, 10).verdict == "hold"


def test_of_whom_it_is_known_that_he_is_the_candidates_nothing_is_bet() -> None:
    """He fails again in the next stage, and that is shown; who was stable's until now says more than a new user."""
    failure = replace(OUTCOME, status=500, user="one")
    stables, new = replace(OUTCOME, slot="blue", user="two"), replace(failure, user="two")

    def failed(first: Sequence[Outcome], second: Sequence[Outcome]) -> Count:
        return two_stages(first, second).evidence().count("failed")

    again = failed([failure], [failure] * 20)
    assert again.hits == 1
    assert again.cumulative_peak == failed([failure], [OUTCOME]).cumulative_peak
    assert (
        failed([failure, stables], [new]).cumulative_peak
        > failed([failure], [new]).cumulative_peak
        > again.cumulative_peak
    )


def test_a_request_that_began_before_the_stage_was_not_drawn_in_it() -> None:
    """It took longer than the stage stood: who was stable's by the share before may be the candidate's by this one."""
    late = replace(OUTCOME, slot="blue", user="one", total_ms=20_000)
    fails = replace(OUTCOME, status=500, user="one")

    def whole(stable: Outcome) -> float:
        before = two_stages([OUTCOME], [stable])
        judge = Judge(LIMITS, "green", weight=0.5, alpha=alpha_of_stage(2, 4), carried=before.carried())
        judge.take([fails], 10)
        return judge.evidence().count("failed").cumulative_peak

    assert whole(late) < whole(replace(late, total_ms=200))


def test_whom_a_cell_answered_that_is_held_back_is_known() -> None:
    """Requests that it still had in flight are judged by nobody, and their users are the candidate's."""
    before = Judge(LIMITS, "green", weight=0.05, alpha=alpha_of_stage(0, 3), cells=CELLS)
    before.drop(["cell-1"])
    before.take([replace(OUTCOME, address="127.0.0.1:1", user="one")], 10)
    judge = Judge(LIMITS, "green", weight=0.3, alpha=alpha_of_stage(1, 3), carried=before.carried())
    judge.take([replace(OUTCOME, status=500, user="one")], 10)
    assert judge.evidence().count("failed").hits == 1
    assert judge.evidence().count("failed").cumulative_peak == 0.0


def test_bets_that_go_on_are_worth_one_coin_on_average() -> None:
    """Over all ways of giving six users to the slots as the share rises, where two of them have one place."""
    names = ["a", "b", "c", "d"]
    twin = next(str(n) for n in count() if crc32(str(n).encode()) % BUCKETS == crc32(b"a") % BUCKETS)
    known = CarriedLatency((10.0, 20.0, 40.0, 60.0, 80.0, 90.0, 100.0))
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

        judge = two_stages(
            requests(0.05, first), requests(0.3, second), Carried(latencies={"TTFT": known, "TPOT": known})
        )
        left = judge.carried()
        failed += prod(places) * exp(log_mean(np.array(left.wealth["failed"].harm)))
        slow += prod(places) * exp(log_mean(np.array(left.latencies["TTFT"].harm)))
    assert failed == pytest.approx(1)
    assert slow == pytest.approx(1)


def test_a_log_with_a_gap_begins_anew() -> None:
    """What was seen before is forgotten; the edges are still known."""
    one = judge()
    one.take([replace(OUTCOME, status=500, first_token_ms=None)], 10)
    one.take([replace(OUTCOME, first_token_ms=number + 1.0) for number in range(LEARNED_FROM)], 10)
    one.begin_anew()
    assert one.evidence().requests == one.evidence().count("failed").hits == 0
    assert one.evidence().timing("TTFT").edges_ms == (10, 25, 50, 75, 90, 97, 99)


def test_the_same_requests_give_the_same_evidence() -> None:
    """Nothing but the requests decides."""
    first, second = judge(), judge()
    for one in (first, second):
        one.take([outcome for outcome, _ in zip(users(7, rate=0.02), range(1000), strict=False)], 10)
    assert first.evidence() == second.evidence()


def test_the_trail_stays_short() -> None:
    """From one request to ten thousand, in order, with all failures so far."""
    one = judge()
    for begin in range(0, 10_000, 20):
        one.take(
            [replace(OUTCOME, status=500 if number % 1000 == 0 else 200) for number in range(begin, begin + 20)], 10
        )
    trail = one.evidence().trail
    assert 20 < len(trail) < 50
    assert list(trail) == sorted(trail)
    assert trail[-1][0] > 9000
    assert trail[-1][1] == 10


def test_what_asks_no_model_is_no_news_and_no_user() -> None:
    """Ten lists of models a second beside a chat that fails one time in twenty made it look well."""
    one, few = judge(), judge()
    for number in range(200):
        chat = replace(OUTCOME, slot="green" if number % 2 else "blue", status=500 if number % 20 == 1 else 200)
        one.take([chat], 10)
        few.take([chat], 10)
        for _ in range(10):
            one.take([replace(OUTCOME, kind="other", slot=chat.slot, user=f"monitor {number}")], 10)
            one.take([replace(OUTCOME, kind="other", slot=chat.slot, status=404, first_token_ms=None)], 10)
    assert one.evidence() == few.evidence()
    assert not speaks(replace(OUTCOME, kind="other"))


def test_what_an_sdk_sends_again_is_the_same_request() -> None:
    """It fails three times at 100 %, where the candidate has all traffic: one failure. It goes well: no good news."""
    one = judge(share=1.0)
    one.take([replace(OUTCOME, status=500)], 10)
    one.take([replace(OUTCOME, status=status, is_repeat=True) for status in (500, 503, 200)], 10)
    evidence = one.evidence()
    assert (evidence.requests, evidence.count("failed").hits, evidence.count("failed").counted) == (1, 1, 1)


@pytest.mark.parametrize("share", [0.05, 1.0])
@pytest.mark.parametrize("status", [400, 404, 405, 501])
def test_what_no_chat_model_can_do_is_not_held_against_one(share: float, status: int) -> None:
    """Nameless embeddings asked of it: four of them, or forty, in its first stage, its last, or its only one."""
    asked = replace(OUTCOME, kind="embedding", status=status, first_token_ms=None)
    for carried in (None, Carried(answered=frozenset({"chat"}), shown={"refused": (3, 4000)})):
        one = Judge(LIMITS, "green", weight=share, carried=carried)
        one.take([asked for _ in range(40)], 10)
        assert rule(one.evidence(), LIMITS, 10).verdict == "hold"
        assert one.evidence().requests == one.evidence().count("refused").hits == 0


def test_an_unknown_kind_that_fails_speaks_beside_stable_and_not_alone() -> None:
    """Beside stable it would come to both. A first and only stage has nothing else to tell what is to be answered."""
    fails = replace(OUTCOME, kind="transcription", status=500, first_token_ms=None)
    known = Carried(answered=frozenset({"chat"}))

    def failed(share: float, carried: Carried | None, requests: Sequence[Outcome] = (fails,)) -> int:
        one = Judge(LIMITS, "green", weight=share, carried=carried)
        one.take(requests, 10)
        return one.evidence().count("failed").hits

    assert failed(0.05, known) == failed(1.0, None) == 1
    assert failed(1.0, known) == 0
    assert failed(1.0, known, [replace(fails, status=200), fails]) == 1
    assert failed(1.0, known, [replace(fails, kind="chat")]) == 1


def test_what_no_model_of_its_kind_answers_holds_no_stage() -> None:
    """Nameless embeddings that fail in both slots, beside good chats: they break no promise, and are bet on."""
    one, random = judge(token_p95_ms=None), Random(5)  # noqa: S311 - the same each time, and no secret
    seen: list[Outcome] = []
    for number, outcome in zip(range(8000), users(5, rate=0.0, stables=0.0), strict=False):
        seen.append(outcome)
        if number % 20 == 0:
            slot: Slot = "green" if random.random() < 0.05 else "blue"
            seen.append(replace(OUTCOME, kind="embedding", slot=slot, status=500, first_token_ms=None))
    one.take(seen, 10)
    evidence = one.evidence()
    assert rule(evidence, one.limits, 10).verdict == "promote"
    assert (evidence.count("failed").counted_hits, evidence.count("failed").set_aside) == (0, 0)
    one.take([replace(OUTCOME, kind="embedding", status=500, first_token_ms=None) for _ in range(40)], 10)
    assert rule(one.evidence(), one.limits, 10).verdict == "roll back"


def test_what_was_answered_is_known_after_a_crash() -> None:
    """A flow that takes the release up at 100 % does not hold nameless embeddings that fail against a chat model."""
    before = judge()
    before.take([replace(OUTCOME, slot="blue")], 10)
    fails = replace(OUTCOME, kind="embedding", status=500, first_token_ms=None)
    for carried in (before.carried(), Carried.after([before.evidence()])):
        one = Judge(LIMITS, "green", weight=1.0, alpha=alpha_of_stage(4, 5), carried=carried)
        one.take([fails for _ in range(40)], 10)
        assert rule(one.evidence(), LIMITS, 10).verdict == "hold"


def test_a_refusal_speaks_once_somebody_was_answered() -> None:
    """A model that embeds at stable and not at the candidate is missed by whoever embeds."""
    one = judge()
    refused = replace(OUTCOME, kind="embedding", status=501, first_token_ms=None)
    one.take([refused], 10)
    assert one.evidence().count("refused").hits == 0
    one.take([replace(OUTCOME, kind="embedding", slot="blue", first_token_ms=None)], 10)
    one.take([refused for _ in range(4)], 10)
    ruling = rule(one.evidence(), LIMITS, 10)
    assert (ruling.verdict, one.evidence().count("refused").hits) == ("roll back", 4)


def test_refusals_are_no_good_news_of_failures() -> None:
    """Ten a second that anybody can have refused do not make a candidate that fails one in twenty look well."""
    one = judge()
    seen: list[Outcome] = []
    for number in range(2000):
        seen.append(OUTCOME if number % 10 == 0 else replace(OUTCOME, status=400, slot="blue"))
        seen.append(replace(OUTCOME, status=400))
    one.take(seen, 10)
    count = one.evidence().count("failed")
    assert (count.of, count.counted) == (200, 200)


def alone(shown: tuple[int, int] | None, requests: Sequence[Outcome]) -> tuple[Judge, Ruling]:
    """At 100 %, after stages that have shown so many refusals and departures of so many requests."""
    seen: dict[str, tuple[int, int]] = {} if shown is None else dict.fromkeys(("refused", "left", "left midway"), shown)
    one = Judge(LIMITS, "green", weight=1.0, alpha=alpha_of_stage(4, 5), carried=Carried(shown=seen, answered=CHAT))
    one.take(requests, 10)
    return one, rule(one.evidence(), LIMITS, 10)


LATELY_REFUSED = replace(OUTCOME, status=404, first_token_ms=None)
STALLED = replace(OUTCOME, user_left=True)
GAVE_UP = replace(OUTCOME, user_left=True, status=-1, first_token_ms=None)


def test_alone_any_history_can_be_gone_on_from() -> None:
    """Where all was refused, or left, or all but one, nothing more can be harm; and no number is beyond a float."""
    requests = [LATELY_REFUSED, STALLED, GAVE_UP] * 200
    for shown in ((1, 1), (500, 500), (499, 500), (99_999, 100_000), (0, 1)):
        assert not subjects(alone(shown, requests)[1], "harm")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (LATELY_REFUSED, "(90.0 %) requests were refused; 10 % are excused by what earlier stages have shown"),
        (replace(OUTCOME, error_status=400), "(90.0 %) requests were refused"),
        (STALLED, "(90.0 %) requests were left in the middle of the answer"),
        (GAVE_UP, "(90.0 %) requests were given up without an answer"),
    ],
)
def test_alone_what_nobody_promised_is_judged_by_what_was_shown(bad: Outcome, words: str) -> None:
    """Nine of ten refused, or left, at all traffic, where it was one in a thousand, by named users and others."""
    requests = [bad if number % 10 else OUTCOME for number in range(500)]
    for some in (requests, [replace(one, user=str(number)) for number, one in enumerate(requests)]):
        one, ruling = alone((4, 4000), some)
        assert ruling.verdict == "roll back"
        assert words in said(one.evidence(), LIMITS, 10)
    # Where it was so before, it is what users ask, and where nothing was shown, nothing is known.
    assert not subjects(alone((450, 500), requests)[1], "harm")
    assert alone(None, requests)[1].verdict != "roll back"


def test_alone_a_strangers_handful_rolls_nothing_back() -> None:
    """Twenty nameless requests that are refused or left, before anybody else comes; then users are answered."""
    for bad in (LATELY_REFUSED, STALLED, GAVE_UP):
        one, ruling = alone((4, 4000), [bad] * 20)
        assert ruling.verdict == "hold"
        for _ in range(300):
            one.take([OUTCOME], 10)
            assert rule(one.evidence(), LIMITS, 10).verdict != "roll back"
        assert rule(one.evidence(), LIMITS, 10).verdict == "promote"


def test_a_good_release_is_refused_as_often_alone_as_before() -> None:
    """Three in a hundred, as in all stages; in the last one it is six of a hundred for a while."""
    requests = [LATELY_REFUSED if number % (16 if number < 200 else 33) == 0 else OUTCOME for number in range(1000)]
    assert alone((120, 4000), requests)[1].verdict == "promote"


def test_streams_that_stall_are_harm_beside_stable() -> None:
    """Users leave four of five answers of the candidate in the middle, and one in fifty of stable's."""
    one = judge()
    seen: list[Outcome] = []
    for number in range(2000):
        mine = number % 20 == 0
        leaves = number // 20 % 5 > 0 if mine else number % 50 == 1
        slot: Slot = "green" if mine else "blue"
        seen.append(replace(OUTCOME, slot=slot, user=str(number), user_left=leaves))
    one.take(seen, 10)
    ruling = rule(one.evidence(), LIMITS, 10)
    assert ruling.verdict == "roll back"
    assert "left midway" in subjects(ruling)
    assert "80 of 100 (80.0 %) requests were left in the middle of the answer" in said(one.evidence(), LIMITS, 10)


def test_what_was_shown_goes_on_and_comes_back_from_a_ledger() -> None:
    """Hits of both slots, of the requests of both: of what stages a flow saw, or reads of those before it took over."""
    first = judge()
    for number in range(100):
        slot: Slot = "green" if number % 4 == 0 else "blue"
        first.take([replace(LATELY_REFUSED if number % 25 == 24 else OUTCOME, slot=slot)], 10)
    second = Judge(LIMITS, "green", weight=0.3, carried=first.carried())
    for outcome in [OUTCOME] * 50 + [LATELY_REFUSED]:
        second.take([outcome], 10)
    again = Carried.after([first.evidence(), second.evidence()])
    shown = {"failed": (0, 146), "refused": (5, 151), "left": (0, 151), "left midway": (0, 151)}
    assert again.shown == second.carried().shown == shown
    assert second.carried().answered == {"chat"}
    older = replace(first.evidence(), counts={"refused": Count(hits=1, all_hits=4, of=25)})
    assert not Carried.after([older]).shown
    last = Judge(LIMITS, "green", weight=1.0, carried=second.carried())
    last.begin_anew()
    allowed = last.evidence().count("refused").allowed
    assert allowed is not None
    assert 2 * 5 / 151 < allowed < 0.3


def outage(share: float, *, stable_too: bool) -> Judge:
    """200 good requests of many users, 200 of which 60 % fail, in both slots or the candidate's; then all is well."""
    one, random = judge(share=share, first_token_p95_ms=None, token_p95_ms=None), Random(4)  # noqa: S311 - no secret
    seen: list[Outcome] = []
    for number in range(6000):
        mine = random.random() < share
        bad = 200 <= number < 400 and random.random() < 0.6 and (mine or stable_too)
        seen.append(replace(OUTCOME, slot="green" if mine else "blue", user=str(number), status=500 if bad else 200))
    one.take(seen, 10)
    return one


def test_what_fails_while_stable_fails_alike_costs_no_good_news() -> None:
    """A thing that both need was away for a while: it says nothing of the limit, and the words say so."""
    evidence = outage(0.05, stable_too=True).evidence()
    count = evidence.count("failed")
    assert (count.hits, count.counted_hits, count.set_aside_hits) == (4, 0, 4)
    assert count.counted == evidence.requests - count.set_aside
    promises_no_times = LIMITS.model_copy(update={"first_token_p95_ms": None, "token_p95_ms": None})
    ruling = rule(evidence, promises_no_times, 10)
    assert ruling.verdict == "promote"
    assert f"4 of {count.set_aside} while stable broke it as well are left out" in said(evidence, promises_no_times, 10)


def test_what_fails_while_stable_does_not_is_the_candidates() -> None:
    """The same of the candidate alone is set aside by nobody."""
    evidence = outage(0.05, stable_too=False).evidence()
    count = evidence.count("failed")
    assert (count.counted_hits, count.set_aside) == (count.hits, 0)
    assert rule(evidence, LIMITS, 10).verdict == "roll back"


def test_whom_an_outage_met_counts_again_as_good_news() -> None:
    """What he met was no failure of his slot's own; whom the candidate fails in good times has failed for good."""
    one = judge(share=0.5)
    seen: list[Outcome] = []
    for number in range(400):
        slot: Slot = "green" if number % 2 else "blue"
        seen.append(replace(OUTCOME, slot=slot, user=f"{slot} {number % 40}", status=500 if number < 200 else 200))
    one.take(seen, 10)
    count = one.evidence().count("failed")
    assert (count.hits, count.counted, count.counted_hits, count.set_aside) == (20, 100, 0, 100)


def test_as_good_news_a_user_weighs_as_twenty_answers_at_most() -> None:
    """One who asks long questions all day does not make a slot slow, and hundreds of answers of one are no evidence."""
    weights = UserWeights()
    for number in range(1000):
        rows = ((7, True, number % 2 == 0), (8, False, True), (NAMELESS, False, number < 3))
        weights.take(*(np.array(column) for column in zip(*rows, strict=True)))
    weighed = weights.weighed
    assert weighed.of == pytest.approx(20, abs=0.4)
    assert weighed.hits == pytest.approx(10, abs=0.2)
    assert weighed.all_hits == pytest.approx(10 + 20 + 3, abs=0.6)


def test_one_heavy_user_does_not_hold_a_stage() -> None:
    """A third of the candidate's answers go to someone who always waits long, as in stable he would."""
    one = judge(share=0.2, first_token_p95_ms=5000)
    seen: list[Outcome] = []
    for number, outcome in zip(range(8000), users(3, rate=0.0, stables=0.0, share=0.2), strict=False):
        heavy = outcome.slot == "green" and number % 3 == 0
        seen.append(replace(outcome, user="heavy", first_token_ms=400.0) if heavy else outcome)
    one.take(seen, 10)
    later = one.evidence().count("TTFT later than p90")
    weighed = later.weighed
    assert weighed is not None
    assert log_e_like_stable(weighed.hits, weighed.all_hits, weighed.of, 0.2) > log(20)
    assert log_e_like_stable(later.hits, later.all_hits, later.counted, 0.2) < 0


def test_requests_of_no_slot_and_of_nobody_change_nothing() -> None:
    """Where the split had nowhere to send it, no slot is to blame."""
    one = judge()
    one.take([replace(OUTCOME, slot=None, status=503)], 10)
    assert one.evidence() == judge().evidence()


@pytest.mark.parametrize("status", [-1, 200])
def test_a_cell_that_hangs_until_its_users_leave_is_held_back(status: int) -> None:
    """They leave before its answers begin, or in the middle of them: it has nothing but departures."""
    one = Judge(LIMITS, "green", weight=0.2, alpha=0.6, cells=CELLS)

    def with_a_cell_that_hangs() -> Iterator[Outcome]:
        for outcome in users(3, rate=0.0, share=0.2):
            hangs = outcome.address == "127.0.0.1:2"
            yield replace(outcome, status=status, user_left=True) if hangs else outcome

    ruling, _ = play(one, with_a_cell_that_hangs())
    assert (ruling.verdict, ruling.bad_cells) == ("hold", ("cell-2",))


@pytest.mark.parametrize("seed", range(5))
def test_one_bad_cell_of_four_is_held_back_and_the_rest_goes_on(seed: int) -> None:
    """A fifth of its answers fail: it is named, its address is given back, and without it the stage is passed."""
    one = Judge(LIMITS, "green", weight=0.2, alpha=0.6, cells=CELLS)

    def with_bad_cell() -> Iterator[Outcome]:
        random = Random(seed)  # noqa: S311 - the same each time, and no secret
        for outcome in users(seed, rate=0.002, share=0.2):
            bad = outcome.address == "127.0.0.1:2" and random.random() < 0.2
            yield replace(outcome, status=500) if bad else outcome

    ruling, _ = play(one, with_bad_cell())
    assert ruling.bad_cells == ("cell-2",)
    assert one.drop(ruling.bad_cells) == ("127.0.0.1:2",)
    assert one.evidence().dropped == ("cell-2",)
    ruling, _ = play(one, with_bad_cell())
    assert ruling.verdict == "promote"
    assert not ruling.bad_cells


@pytest.mark.parametrize("seed", range(5))
def test_a_model_that_is_bad_everywhere_is_no_cells_fault(seed: int) -> None:
    """Harm in all cells rolls the release back."""
    one = Judge(LIMITS, "green", weight=0.2, alpha=0.6, cells=CELLS)
    ruling, _ = play(one, users(seed, rate=0.1, share=0.2))
    assert ruling.verdict == "roll back"


def room_of(thing: object) -> int:
    """The bytes of all arrays, and the number of all else, in it."""
    if isinstance(thing, np.ndarray):
        return thing.nbytes
    if isinstance(thing, dict):
        return sum(map(room_of, thing.values()))
    if isinstance(thing, list | tuple | deque):
        return sum(map(room_of, thing))
    is_ours = type(thing).__module__.startswith("flows.policy.gating") and hasattr(thing, "__dict__")
    return room_of(vars(thing)) if is_ours else 1


def test_a_million_requests_take_no_more_room_than_ten_thousand() -> None:
    """And each takes far less than 50 microseconds of one core; the bound here is wide, for tests share theirs."""

    def room(of: Judge) -> int:
        return room_of(vars(of))

    one = judge()
    stream = users(1, rate=0.002, count=20_000)
    requests = [next(stream) for _ in range(30_000)]
    one.take(requests[:10_000], 10)
    before, begun = room(one), time.process_time()
    one.take(requests, 10)
    assert (time.process_time() - begun) / len(requests) < 200e-6
    assert room(one) <= before + 1000 < 300 * BUCKETS


def test_the_budget_of_all_stages_is_one() -> None:
    """Whatever their number, and the first has the largest part."""
    for of in range(1, 8):
        parts = [alpha_of_stage(number, of) for number in range(of)]
        assert sum(parts) == pytest.approx(1)
        assert parts[0] == max(parts)
