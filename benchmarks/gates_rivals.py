"""What others would have ruled on the same users, written from their documentation; and a test that is told the truth.

Flagger (docs.flagger.app, "Metrics analysis" and its tutorials): one check a minute, five steps of 10 % up to 50 %,
then everything; success of 99 %, and a p99 under what the service promises; five failed checks roll back, and a check
without data is a failed one.

Argo Rollouts (docs/features/analysis.md): 20, 40, 60 and 80 % for ten minutes each, a measurement every five minutes in
the background, `failureLimit: 3`. Its example asks for 95 %; here it is 99 %, as of everybody. No data is no failure.

Kayenta (MannWhitneyClassifier, and its documented score): an hour at 5 % beside a baseline of the same size, one point
a minute and metric, confidence 98 %, tolerance 0.25 of the Hodges-Lehmann estimate; two metrics of equal weight, and 75
to pass.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np

from benchmarks.gates_worlds import Borne, Flags, Floats, Harm, Ints, Rates, Traffic, promised_ms

FIRST_SHARE = 0.05
PASSED, ROLLED_BACK = True, False
FLAGGER_WEIGHTS, FLAGGER_SECONDS, FLAGGER_FAILURES = (0.1, 0.2, 0.3, 0.4, 0.5), 60.0, 5
ARGO_WEIGHTS, ARGO_STEP_SECONDS, ARGO_SECONDS, ARGO_FAILURES = (0.2, 0.4, 0.6, 0.8), 600.0, 300.0, 3
KAYENTA_MINUTES, KAYENTA_TOLERANCE, KAYENTA_SCORE = 60, 0.25, 75
Z_98_PERCENT, Z_95_PERCENT = 2.3263, 1.96
SUCCESS = 0.99


@dataclass(frozen=True)
class Judged:
    """How a release ended, and what the candidate's users had to bear until then."""

    passed: bool
    users: int
    """Whom the candidate harmed."""
    users_in_the_hour: int
    """With those whom it harms once it has passed."""
    requests: int
    """Requests of the candidate."""


def flagger(traffic: Traffic, harm: Harm) -> Judged:
    """One check a minute, and five that fail are enough."""
    failures = step = check = 0
    borne = Borne(harm)
    while step < len(FLAGGER_WEIGHTS):
        window = traffic.within(check * FLAGGER_SECONDS, (check + 1) * FLAGGER_SECONDS)
        share = FLAGGER_WEIGHTS[step]
        mine, now = window.user_luck < share, harm.at(share)
        bad, slow = window.failed(mine, now)[mine], window.first_token_ms(mine, now)[mine]
        borne.take(window, mine, share)
        check += 1
        if len(bad) and 1 - bad.mean() >= SUCCESS and np.percentile(slow, 99) <= promised_ms(traffic.world):
            step += 1
            continue
        failures += 1
        if failures >= FLAGGER_FAILURES:
            return Judged(ROLLED_BACK, borne.users, borne.users, borne.requests)
    return Judged(PASSED, borne.users, borne.users_in_the_hour(traffic, check * FLAGGER_SECONDS), borne.requests)


def argo(traffic: Traffic, harm: Harm) -> Judged:
    """A measurement every five minutes, and more than three that fail are enough."""
    failures, borne = 0, Borne(harm)
    for number in range(int(len(ARGO_WEIGHTS) * ARGO_STEP_SECONDS / ARGO_SECONDS)):
        begin = number * ARGO_SECONDS
        window = traffic.within(begin, begin + ARGO_SECONDS)
        share = ARGO_WEIGHTS[int(begin // ARGO_STEP_SECONDS)]
        mine = window.user_luck < share
        bad = window.failed(mine, harm.at(share))[mine]
        borne.take(window, mine, share)
        failures += bool(len(bad)) and 1 - bad.mean() < SUCCESS
        if failures > ARGO_FAILURES:
            return Judged(ROLLED_BACK, borne.users, borne.users, borne.requests)
    end = len(ARGO_WEIGHTS) * ARGO_STEP_SECONDS
    return Judged(PASSED, borne.users, borne.users_in_the_hour(traffic, end), borne.requests)


def kayenta(traffic: Traffic, harm: Harm) -> Judged:
    """An hour beside a baseline, and one ruling at its end."""
    points: list[list[float]] = [[], [], [], []]
    borne = Borne(harm)
    for minute in range(KAYENTA_MINUTES):
        window = traffic.within(minute * 60.0, minute * 60.0 + 60)
        mine = window.user_luck < FIRST_SHARE
        baseline = ~mine & (window.user_luck < 2 * FIRST_SHARE)
        now = harm.at(FIRST_SHARE)
        bad, ms = window.failed(mine, now), window.first_token_ms(mine, now)
        borne.take(window, mine, FIRST_SHARE)
        for series, value, group in ((0, bad, mine), (1, bad, baseline), (2, ms, mine), (3, ms, baseline)):
            if group.any():
                points[series].append(float(value[group].mean()))
    rulings = [
        mann_whitney(np.array(experiment), np.array(control), KAYENTA_TOLERANCE, Z_98_PERCENT)
        for experiment, control in ((points[0], points[1]), (points[2], points[3]))
    ]
    known = [ruling for ruling in rulings if ruling != "no data"]
    score = 100 * sum(ruling != "high" for ruling in known) / len(known) if known else 0
    return Judged(score >= KAYENTA_SCORE, borne.users, borne.users, borne.requests)


def mann_whitney(experiment: Floats, control: Floats, tolerance: float, z: float) -> str:
    """`high`, `low`, `pass` or `no data`: the interval of the Hodges-Lehmann estimate beside a part of the estimate."""
    n, m = len(experiment), len(control)
    if not n or not m:
        return "no data"
    if n == m and (experiment == control).all():
        return "pass"
    differences = np.sort((experiment[:, None] - control[None, :]).ravel())
    rank = int(max(0, n * m / 2 - z * sqrt(n * m * (n + m + 1) / 12)))
    lower, upper, estimate = differences[rank], differences[-1 - rank], float(np.median(differences))
    critical = tolerance * abs(estimate)
    if lower > critical:
        return "high"
    return "low" if upper < -critical else "pass"


def told(traffic: Traffic, harm: Harm, rates: Rates, alarm: float, *, each_user_once: bool = False) -> Judged:
    """Wald's test, told the true rates of both slots: the fewest users that anybody can do with, at 5 % of the traffic.

    Of a harm of speed it is told the true share of answers beyond stable's true p50, p90 or p99, whichever says most,
    and the level that the times of all users have just then: or drift alone would set it off. It takes the requests of
    one user for as many draws, which they are here, and which nobody can know; `each_user_once` is the same without
    that: of a user only the requests until the first failure count, or the first answer.
    """
    begin, total, size = 0, 0.0, 16384
    borne, known = Borne(harm), np.array([], np.int64)
    while begin < size << 6:
        stream = traffic.take(begin, size)
        mine = stream.user_luck < FIRST_SHARE
        hits = stream.harmed_ms(mine, harm) > rates.line if harm.is_of_speed else stream.failed(mine, harm)
        steps = np.where(hits, np.log(rates.bad / rates.good), np.log((1 - rates.bad) / (1 - rates.good)))
        counts = mine
        if each_user_once:
            settled = mine if harm.is_of_speed else mine & hits
            counts = mine & until_first(stream.user, settled) & ~np.isin(stream.user, known)
            known = np.union1d(known, stream.user[settled])
        worth = total + np.cumsum(np.where(counts, steps, 0.0))
        over = np.flatnonzero(worth >= -np.log(alarm))
        if over.size:
            end = int(over[0]) + 1
            borne.take(stream.between(0, end), mine[:end], FIRST_SHARE)
            return Judged(ROLLED_BACK, borne.users, borne.users, borne.requests)
        begin, total = begin + size, float(worth[-1])
        borne.take(stream, mine, FIRST_SHARE)
    return Judged(PASSED, borne.users, borne.users, borne.requests)


def until_first(user: Ints, settled: Flags) -> Flags:
    """Each user's requests until the first that is settled, and that one."""
    at = np.flatnonzero(settled)
    users, first = np.unique(user[at], return_index=True)
    found = np.searchsorted(users, user)
    known = np.isin(user, users)
    last = np.full(len(user), len(user))
    last[known] = at[first[found[known]]]
    return np.arange(len(user)) <= last
