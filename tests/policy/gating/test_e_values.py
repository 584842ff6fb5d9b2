"""E-values against a claim, held against numbers that are known from elsewhere."""

from math import exp, log
from random import Random
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.policy.gating.e_values import confidence_interval, log_e_value, part_of_hits

TIMES = (2, 4, 8, 16)


def test_under_one_percent_with_95_percent_takes_299_clean_requests() -> None:
    """The rule of three, as every textbook has it: an e-value on a rate of nothing is 20 at the 299th request."""
    assert log_e_value(0, 298, (0.01, (1e-15,))) < log(20) <= log_e_value(0, 299, (0.01, (1e-15,)))


def test_an_e_value_on_the_true_rate_takes_as_long_as_walds() -> None:
    """Wald 1945: log(100) over a request's information, 86 at 3 % against 0.2 %, and what the last one overshoots."""
    information = 0.03 * log(0.03 / 0.002) + 0.97 * log(0.97 / 0.998)
    assert log(100) / information == pytest.approx(86, abs=1)
    random = Random(1)  # noqa: S311 - the same each time, and no secret
    taken = [_until(random, 0.03, null=0.002, others=[0.03], e_value=100) for _ in range(1000)]
    assert 86 < mean(taken) < 86 + log(15) / information


@pytest.mark.parametrize(("rate", "failures"), [(0.022, 5), (0.05, 4), (0.30, 3)])
def test_the_prototypes_failures_before_the_verdict_are_reproduced(rate: float, failures: int) -> None:
    """Stable 0.2 %, 5 % of the traffic, budget 1 %: the median number of failures that the candidate's users see."""
    random = Random(2)  # noqa: S311 - the same each time, and no secret
    seen = sorted(_failures_until(random, rate, 0.002, 0.05, e_value=100) for _ in range(101))
    assert abs(seen[50] - failures) <= 1


def test_a_true_claim_is_hardly_ever_beaten_however_often_one_looks() -> None:
    """Ville: of 1,000 sequences at the limit exactly, looked at after each of 1,000 requests, at most 1 % reach 100."""
    random = Random(3)  # noqa: S311 - the same each time, and no secret
    others = [0.01 * times for times in TIMES]
    beaten = sum(_until(random, 0.01, 0.01, others, e_value=100, at_most=1000) < 1000 for _ in range(1000))
    assert beaten <= 10 + 3 * 10**0.5


@given(hits=st.integers(0, 50), misses=st.integers(0, 5000), null=st.floats(0.001, 0.4))
def test_the_next_request_is_worth_nothing_on_average_where_the_claim_is_true(
    hits: int, misses: int, null: float
) -> None:
    """What makes it a martingale: today's e-value is the mean of tomorrow's."""
    others = [min(2 * null, 0.9), min(4 * null, 0.95)]
    now = log_e_value(hits, hits + misses, (null, tuple(others)))
    hit, miss = (log_e_value(hits + more, hits + misses + 1, (null, tuple(others))) - now for more in (1, 0))
    assert null * exp(hit) + (1 - null) * exp(miss) == pytest.approx(1, rel=1e-6)


def test_the_interval_holds_the_true_rate_at_all_looks_together() -> None:
    """Of 400 sequences, looked at after every tenth of 500 requests, at most 5 % ever leave the true rate outside."""
    random = Random(4)  # noqa: S311 - the same each time, and no secret
    missed = 0
    for _ in range(400):
        hits, inside = 0, True
        for of in range(1, 501):
            hits += random.random() < 0.05
            if of % 10 == 0:
                low, high = confidence_interval(hits, of, 0.05)
                inside = inside and low <= 0.05 <= high
        missed += not inside
    assert missed <= 20 + 3 * 20**0.5


def test_the_interval_closes_in() -> None:
    """Without a failure it reaches down to nothing, and with more requests it is narrower."""
    assert confidence_interval(0, 0, 0.05) == (0, 1)
    assert confidence_interval(0, 100, 0.05)[0] == 0
    assert confidence_interval(0, 1000, 0.05)[1] < confidence_interval(0, 100, 0.05)[1] / 5
    assert confidence_interval(100, 100, 0.05)[1] == 1


def test_the_candidates_part_follows_its_rate() -> None:
    """Alike, it is the share; at 19 times stable's rate, 5 % of the traffic have half of the failures."""
    assert part_of_hits(0.05, 1) == pytest.approx(0.05)
    assert part_of_hits(0.05, 19) == pytest.approx(0.5)


def _until(
    random: Random, rate: float, null: float, others: list[float], e_value: float, at_most: int = 1 << 30
) -> int:
    """How many requests until the e-value is so large."""
    hits = 0
    for of in range(1, at_most + 1):
        if random.random() < rate:
            hits += 1
            if log_e_value(hits, of, (null, tuple(others))) >= log(e_value):
                return of
    return at_most


def _failures_until(random: Random, rate: float, stables: float, share: float, e_value: float) -> int:
    mine = theirs = 0
    others = [part_of_hits(share, times) for times in TIMES]
    while log_e_value(mine, mine + theirs, (share, tuple(others))) < log(e_value):
        candidate = random.random() < share
        failed = random.random() < (rate if candidate else stables)
        mine, theirs = mine + (candidate and failed), theirs + (failed and not candidate)
    return mine
