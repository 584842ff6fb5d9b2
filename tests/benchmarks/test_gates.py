"""The benchmark of the gates judges as production does, and its rivals as their documentation says."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from benchmarks.gates_rivals import Z_95_PERCENT, argo, flagger, kayenta, mann_whitney, told, until_first
from benchmarks.gates_stages import LOOK_EVERY, Held, batch_of, hold, hold_with_probes, outcomes
from benchmarks.gates_worlds import DRIFT_SECONDS, Borne, Harm, Rates, Stream, Traffic, World
from flows.policy.gating.alpha import alpha_of_stage
from flows.policy.gating.decide import rule
from flows.policy.gating.judge import Carried, Judge
from tests import limits

LIMITS = limits.LIMITS.model_copy(update={"token_p95_ms": 100, "minimum_seconds": 60, "deadline_seconds": 3600})
WORLDS = (
    World("nameless"),
    World("sticky", users=400, always_failing_percent_of_users=1, drifts=True, is_autocorrelated=True),
    World("uneven", users=4000, activity_tail=1.1, users_spread=0.7, has_an_outage=True, failing_percent=0.3),
)
HARMS = (Harm(), Harm("+1", more_failing_percent=1), Harm("x 1.3", slower=1.3), Harm("tokens x 1.5", slower_tokens=1.5))

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


def by_the_second(stream: Stream, harm: Harm, share: float, budget: float, carried: Carried, since: float) -> Held:
    """As a flow does it: a small batch, the evidence, and a ruling on it, again and again."""
    judge = Judge(LIMITS, "green", weight=share, alpha=budget, carried=carried)
    batch = batch_of(stream, stream.user_luck < share, harm, since)
    for end in range(LOOK_EVERY, len(stream) + 1, LOOK_EVERY):
        judge.take_batch(batch.some(slice(end - LOOK_EVERY, end)))
        ruling = rule(judge.evidence(), LIMITS, float(batch.began_seconds[end - 1]))
        if ruling.verdict != "hold":
            return Held(ruling.verdict, end, "", judge.carried() if ruling.verdict == "promote" else None)
    return Held("hold", len(stream), "", None)


@pytest.mark.parametrize(("world", "harm"), list(product(WORLDS, HARMS)), ids=lambda one: one.name or "harm")
def test_a_whole_stream_is_ruled_on_as_second_by_second(world: World, harm: Harm) -> None:
    """The same verdicts at the same requests, and as much is left to the next stage."""
    traffic, begin, carried = Traffic(world, 1), 0, Carried()
    for number, share in enumerate((0.05, 0.3, 1.0)):
        stream, budget = traffic.take(begin, 6000), alpha_of_stage(number, 3)
        since = float(stream.seconds[0])
        whole = hold(stream, harm, LIMITS, share=share, budget=budget, carried=carried, since=since)
        judged = by_the_second(stream, harm, share, budget, carried, since)
        assert (whole.verdict, whole.at) == (judged.verdict, judged.at)
        assert (whole.carried is None) == (judged.carried is None)
        if whole.carried is None or judged.carried is None:
            break
        assert (whole.carried.seen, whole.carried.owners) == (judged.carried.seen, judged.carried.owners)
        assert flat(whole.carried) == pytest.approx(flat(judged.carried), abs=1e-6)
        begin, carried = begin + whole.at, judged.carried


def flat(carried: Carried) -> list[float]:
    """All numbers in it."""
    numbers = [carried.alpha]
    for latency in carried.latencies.values():
        numbers += [*latency.edges_ms, *latency.harm, *latency.beyond_margin]
    for wealth in carried.wealth.values():
        numbers += [*wealth.harm, *wealth.over_ratio, *wealth.over_rate]
    return numbers


def test_a_batch_is_what_the_gateway_logs() -> None:
    """As a judge reads it from outcomes: the columns that the benchmark makes by itself."""
    stream = Traffic(WORLDS[2], 1).take(0, 500)
    is_candidate = stream.user_luck < 0.3
    by_columns, by_outcomes = (Judge(LIMITS, "green", weight=0.3) for _ in range(2))
    by_columns.take_batch(batch_of(stream, is_candidate, HARMS[1], float(stream.seconds[0])))
    by_outcomes.take(outcomes(stream, is_candidate, HARMS[1]), 10)
    ours, theirs = by_columns.evidence(), by_outcomes.evidence()
    assert (ours.requests, ours.counts["failed"].all_of) == (theirs.requests, theirs.counts["failed"].all_of)
    assert ours.timings == theirs.timings


def test_a_thin_stage_is_passed_by_probes_and_a_bad_candidate_is_not() -> None:
    """A hundred users at 2 a second: the candidate's few do not tell in an hour, and probes do."""
    stage: Any = {"share": 0.05, "budget": 0.75, "carried": Carried(), "since": 0.0}
    stream = Traffic(World("few users", requests_per_second=2, users=100), 2).take(0, 8000)
    alone = hold(stream, Harm(), LIMITS, **stage)
    assert (alone.verdict, alone.gate, alone.is_thin) == ("roll back", "deadline", True)
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
