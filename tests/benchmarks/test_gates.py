"""The benchmark of the gates judges as production does, and its rivals as their documentation says."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from benchmarks.gates_production import hold_with_probes
from benchmarks.gates_twin import LOOK_EVERY, Held, hold
from flows.policy.gating.gates import rule

from benchmarks.gates_rivals import Z_95_PERCENT, argo, flagger, kayenta, mann_whitney, told, until_first
from benchmarks.gates_worlds import DRIFT_SECONDS, Borne, Harm, Rates, Stream, Traffic, World
from blocks.ports.gateway import Outcome
from flows.policy.gating.judge import Carried, Judge
from flows.policy.gating.measures import EACH_TOKEN, FIRST_TOKEN, TIMES, UNPROMISED, Time, budget_of_stage
from tests import limits

LIMITS = limits.LIMITS.model_copy(update={"token_p95_ms": 100, "minimum_seconds": 60, "deadline_seconds": 3600})
WORLDS = (
    World("nameless"),
    World("sticky", users=400, always_failing_percent_of_users=1, drifts=True, is_autocorrelated=True),
    World("bursty", users=20_000, is_bursty=True, tail="Pareto", failing_percent=0.6),
    World("uneven", users=4000, activity_tail=1.1, users_spread=0.7, has_an_outage=True, failing_percent=0.3),
)
HARMS = (
    Harm(),
    Harm("+1", more_failing_percent=1),
    Harm("+30", more_failing_percent=30),
    Harm("x 1.3", slower=1.3),
    Harm("x 2", slower=2),
    Harm("tokens x 1.5", slower_tokens=1.5),
)
Lines = Mapping[Time, tuple[float, ...]]
KNOWN: Lines = {
    FIRST_TOKEN: (65.0, 86.0, 120.0, 170.0, 230.0, 310.0, 400.0),
    EACH_TOKEN: (17.0, 20.5, 25.0, 31.0, 38.0, 46.0, 54.0),
}

# Kayenta's own test data, to two digits.
TEN = np.array(
    [
        *(9.78, 10.59, 7.84, 9.32, 8.38, 8.94, 8.27, 9.75, 11.62, 9.28, 8.15, 10.56, 13.50, 11.05, 6.95),
        *(12.52, 9.02, 4.92, 11.25, 11.60, 8.44, 11.11, 10.70, 8.92, 10.09, 11.42, 9.38, 7.80, 10.62, 11.91),
    ]
)
TEN_TOO = np.array(
    [
        *(11.15, 9.96, 7.07, 7.30, 9.79, 9.60, 6.19, 12.35, 10.37, 8.61, 9.91, 10.36, 14.21, 10.95, 10.22),
        *(11.74, 10.91, 12.82, 8.10, 8.50, 12.11, 13.27, 10.11, 6.95, 6.21, 10.16, 8.35, 8.38, 7.00, 10.76),
    ]
)
TWENTY = np.array(
    [
        *(20.88, 21.79, 19.71, 15.86, 19.51, 19.39, 22.93, 17.16, 18.66, 23.42, 24.06, 22.63, 21.98, 21.66, 20.07),
        *(22.12, 16.44, 21.56, 21.00, 17.78, 17.81, 18.54, 20.56, 19.55, 21.77, 21.83, 20.96, 20.98, 19.11, 16.98),
    ]
)


def production(stream: Stream, harm: Harm, share: float, budget: float, carried: Carried) -> Held:
    judge = Judge(LIMITS, "green", share=share, budget=budget, carried=carried)
    mine = stream.user_luck < share
    failed = stream.failed(mine, harm)
    ms, token_ms = stream.first_token_ms(mine, harm), stream.token_ms(mine, harm)
    # A name for each hash, as the judge finds it again.
    names = {crc32(str(user).encode()): str(user) for user in range(20_000)}
    for index, (own, bad) in enumerate(zip(mine.tolist(), failed.tolist(), strict=True)):
        outcome = Outcome(
            id="",
            at=0,
            slot="green" if own else "blue",
            address="",
            status=500 if bad else 200,
            first_token_ms=None if bad else float(ms[index]),
            tokens=None,
            per_token_ms=None if bad else float(token_ms[index]),
            total_ms=0,
            user=names.get(int(stream.user[index])),
            retried=False,
            by_fallback=False,
            cut_short=False,
            is_empty=False,
            user_left=False,
        )
        elapsed = float(stream.seconds[index] - stream.seconds[0])
        judge.observe(outcome, elapsed)
        if (index + 1) % LOOK_EVERY == 0:
            ruling = rule(judge.evidence(), LIMITS, elapsed)
            if ruling.verdict != "hold":
                return Held(ruling.verdict, index + 1, "", judge.carried() if ruling.verdict == "promote" else None)
    return Held("hold", len(stream), "", None)


@pytest.mark.parametrize(("world", "harm"), list(product(WORLDS, HARMS)), ids=lambda one: one.name or "harm")
@pytest.mark.parametrize(("shares", "slow_ms"), [((0.05, 0.3, 1.0), {}), ((0.5, 1.0), KNOWN), ((1.0,), {})])
def test_the_twin_rules_as_production_does(world: World, harm: Harm, shares: tuple[float, ...], slow_ms: Lines) -> None:
    """The same streams, the same verdicts, at the same requests, and the same is left to the next stage."""
    for seed in range(2):
        traffic, begin, carried = Traffic(world, seed), 0, Carried(slow_ms=slow_ms)
        for number, share in enumerate(shares):
            stream, budget = traffic.take(begin, 6000), budget_of_stage(number, len(shares))
            since = float(stream.seconds[0])
            twin = hold(stream, harm, LIMITS, share=share, budget=budget, carried=carried, since=since)
            judged = production(stream, harm, share, budget, carried)
            assert (twin.verdict, twin.at) == (judged.verdict, judged.at)
            assert (twin.carried is None) == (judged.carried is None)
            if twin.carried is None or judged.carried is None:
                break
            assert flat(twin.carried) == pytest.approx(flat(judged.carried))
            assert (twin.carried.seen, twin.carried.owners) == (judged.carried.seen, judged.carried.owners)
            begin, carried = begin + twin.at, judged.carried


def flat(carried: Carried) -> list[float]:
    """All numbers in it, but for what is bet on measures that the world does not have."""
    numbers = [carried.budget]
    for time in TIMES:
        numbers += carried.slow_ms[time]
        for purses in carried.slowness.get(time, ()):
            numbers += purses
    for measure, purses in sorted(carried.purses.items()):
        if measure not in UNPROMISED:
            numbers += [*purses.harm, *purses.more, *purses.often]
    return numbers


def test_a_thin_stage_is_passed_by_probes_and_a_bad_candidate_is_not() -> None:
    """A hundred users at 2 a second: the candidate's few do not tell in an hour, and probes do."""
    stage: Any = {"share": 0.05, "budget": 0.75, "carried": Carried(), "since": 0.0}
    stream = Traffic(World("few users", requests_per_second=2, users=100), 2).take(0, 8000)
    twin = hold(stream, Harm(), LIMITS, **stage)
    assert (twin.verdict, twin.gate, twin.is_thin) == ("roll back", "deadline", True)
    assert hold_with_probes(stream, Harm(), LIMITS, **stage).verdict == "promote"
    bad = hold_with_probes(stream, Harm(more_failing_percent=30), LIMITS, **stage)
    assert (bad.verdict, bad.gate) == ("roll back", "with probes")


def test_the_rival_judges_its_documented_examples() -> None:
    """Kayenta's own examples of Mann-Whitney: points around 10 and 10 pass, 20 and 10 are high, 10 and 20 low."""
    assert mann_whitney(TEN, TEN_TOO, 0.1, Z_95_PERCENT) == "pass"
    assert mann_whitney(TWENTY, TEN_TOO, 0.1, Z_95_PERCENT) == "high"
    assert mann_whitney(TEN, TWENTY, 0.1, Z_95_PERCENT) == "low"
    assert mann_whitney(TEN, TEN, 0.1, Z_95_PERCENT) == "pass"
    assert mann_whitney(np.array([]), TEN, 0.1, Z_95_PERCENT) == "no data"


def test_the_test_that_is_told_both_rates_needs_about_what_theory_says() -> None:
    """Failures of 3 % against 0.2 %: log(100) over the information of a request, 86, and some more for the last one."""
    world, harm = World("plain"), Harm(more_failing_percent=2.8)
    rates = Rates(0.0, 0.002, 0.03)
    taken = [told(Traffic(world, seed), harm, rates, 0.01).requests for seed in range(300)]
    assert 86 < np.mean(taken) < 86 + np.log(15) / rates.information


def test_the_test_that_is_told_is_not_set_off_by_the_hour_of_the_day() -> None:
    """Of answers beyond its line there are as many at high tide as at low tide, and of longer ones there are not."""
    traffic, slower = Traffic(World("tide", drifts=True, is_autocorrelated=True), 1), Harm(slower=1.5, is_of_speed=True)
    stream, nobody = traffic.take(0, 30_000), np.zeros(30_000, bool)
    line, tide = traffic.true_rates(slower).line, np.sin(2 * np.pi * stream.seconds / DRIFT_SECONDS)
    ms, over = stream.first_token_ms(nobody, slower), stream.harmed_ms(nobody, slower) > line
    high, low = tide > 0.5, tide < -0.5
    assert np.median(ms[high]) > 2 * np.median(ms[low])
    assert over[high].mean() == pytest.approx(over[low].mean(), abs=0.02)


def test_each_user_once_is_until_the_first_failure() -> None:
    """Two users: what came after the first of each that settles it does not count."""
    user, settled = np.array([1, 1, 2, 1, 2, 3]), np.array([False, True, False, True, True, False])
    assert until_first(user, settled).tolist() == [True, True, True, False, True, True]


def test_a_user_is_harmed_once() -> None:
    """Whoever meets five failures is one, and only the candidate's are."""
    traffic = Traffic(World("few", users=5, always_failing_percent_of_users=100), 1)
    borne, stream = Borne(Harm()), traffic.take(0, 200)
    borne.take(stream, stream.user_luck < 0.5, 0.5)
    mine = {user for user, luck in zip(stream.user.tolist(), stream.user_luck.tolist(), strict=True) if luck < 0.5}
    assert borne.users == len(mine) > 0
    assert borne.requests == int((stream.user_luck < 0.5).sum())


def test_a_harm_that_begins_later_harms_nobody_before() -> None:
    """What a rival lets through at half of the traffic harms until the hour is over."""
    world, late = World("plain", requests_per_second=2), Harm(more_failing_percent=50, from_share=0.5)
    judged = flagger(Traffic(world, 1), late)
    assert judged.users == judged.users_in_the_hour > 0
    assert not judged.passed
    through = kayenta(Traffic(world, 1), late)
    assert (through.passed, through.users, through.users_in_the_hour) == (True, 0, 0)
    let_go = argo(Traffic(world, 1), replace(late, more_failing_percent=1))
    assert let_go.passed
    assert let_go.users_in_the_hour > let_go.users > 0


def test_a_failed_check_a_minute_is_enough_for_the_first_rival() -> None:
    """With a third of the requests failing, five checks of a minute go by at 10 %."""
    judged = flagger(Traffic(World("plain"), 1), Harm(more_failing_percent=33))
    assert not judged.passed
    assert 450 < judged.requests < 750
    assert flagger(Traffic(World("plain", failing_percent=0.0001), 1), Harm()).passed
