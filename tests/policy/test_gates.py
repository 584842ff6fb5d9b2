"""How a stage is judged, by data alone."""

from dataclasses import replace
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.ports import Outcome
from flows.policy.gates import Limits, Sample, _chance_of_at_least, _chance_of_share, judge, tally

LIMITS = Limits(
    error_percent=1,
    first_token_p95_ms=500,
    slower_than_stable=1.5,
    first_token_margin_ms=100,
    minimum_requests=20,
    minimum_seconds=10,
    deadline_seconds=100,
)
GOOD = Sample(requests=100, failed=0, refused=0, left=0, first_token_ms=(100.0,) * 100)
STABLE = Sample(requests=1000, failed=1, refused=2, left=0, first_token_ms=(100.0,) * 1000)
NOTHING = Sample(requests=0, failed=0, refused=0, left=0, first_token_ms=())
OUTCOME = Outcome(
    id="1",
    at=0,
    slot="green",
    address="127.0.0.1:1",
    status=200,
    first_token_ms=10,
    total_ms=20,
    user=None,
    retried=False,
    by_fallback=False,
    cut_short=False,
    user_left=False,
)


def test_a_candidate_like_stable_is_promoted_after_the_minimum_time() -> None:
    """Good news counts only once the stage was held for its minimum time."""
    assert judge(GOOD, STABLE, LIMITS, elapsed_seconds=5).verdict == "hold"
    assert judge(GOOD, STABLE, LIMITS, elapsed_seconds=10).verdict == "promote"


def test_no_data_is_never_a_pass() -> None:
    """A stage without requests holds, and is rolled back at its deadline."""
    assert judge(NOTHING, STABLE, LIMITS, elapsed_seconds=50).verdict == "hold"
    ruling = judge(NOTHING, STABLE, LIMITS, elapsed_seconds=100)
    assert ruling.verdict == "roll back"
    assert "0 of the 20 requests" in ruling.reason


def test_too_few_requests_hold() -> None:
    """One request fewer than the minimum is doubt."""
    few = Sample(requests=19, failed=0, refused=0, left=0, first_token_ms=(100.0,) * 19)
    assert judge(few, STABLE, LIMITS, elapsed_seconds=50).verdict == "hold"


def test_harm_outranks_too_little_data() -> None:
    """Five failures among eight requests end the stage at once, with the numbers in the reason."""
    ruling = judge(replace(NOTHING, requests=8, failed=5), NOTHING, LIMITS, elapsed_seconds=1)
    assert ruling.verdict == "roll back"
    assert "5 of 8 requests failed (62.5 %), limit 1 %" in ruling.reason


def test_one_failure_that_may_be_bad_luck_is_doubt() -> None:
    """One failure among 25 is over 1 %, and no proof of anything."""
    one = Sample(requests=25, failed=1, refused=0, left=0, first_token_ms=(100.0,) * 24)
    assert judge(one, NOTHING, LIMITS, elapsed_seconds=50).verdict == "hold"


def test_refusals_count_against_stable_only() -> None:
    """Users' nonsense, refused by both alike, harms nobody; prompts that only the candidate refuses do."""
    nonsense = replace(GOOD, refused=10)
    assert judge(nonsense, replace(STABLE, refused=100), LIMITS, elapsed_seconds=50).verdict == "promote"
    ruling = judge(nonsense, STABLE, LIMITS, elapsed_seconds=50)
    assert ruling.verdict == "roll back"
    assert "10 of 100 requests were refused" in ruling.reason


def test_users_who_give_up_waiting_count_against_stable() -> None:
    """A candidate that hangs loses its users before anything fails; stable's lose their patience less often."""
    ruling = judge(replace(GOOD, left=30), replace(STABLE, left=10), LIMITS, elapsed_seconds=50)
    assert ruling.verdict == "roll back"
    assert "30 of 130 requests were given up without an answer" in ruling.reason
    alike = judge(replace(GOOD, left=3), replace(STABLE, left=30), LIMITS, elapsed_seconds=50)
    assert alike.verdict == "promote"


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429])
def test_every_answer_in_the_four_hundreds_is_a_refusal(status: int) -> None:
    """An engine that does not know the model's name answers 404 to everybody."""
    sample = tally([replace(OUTCOME, status=status)] * 30, "green")
    assert judge(sample, STABLE, replace(LIMITS, first_token_p95_ms=None), 50).verdict == "roll back"


def test_large_samples_are_judged_like_small_ones() -> None:
    """A hundred thousand requests a stage: at the limit, and well over it."""
    large = Sample(requests=100_000, failed=1000, refused=0, left=0, first_token_ms=(100.0,) * 100_000)
    assert judge(large, large, LIMITS, elapsed_seconds=50).verdict == "promote"
    worse = replace(large, failed=1200)
    assert judge(worse, large, LIMITS, elapsed_seconds=50).verdict == "roll back"


@pytest.mark.parametrize(("hits", "of", "rate"), [(0, 10, 0.05), (3, 41, 0.05), (5, 100, 0.01), (20, 300, 0.05)])
def test_the_binomial_tail_is_exact(hits: int, of: int, rate: float) -> None:
    """As the sum of its definition gives it."""
    exact = sum(comb(of, k) * rate**k * (1 - rate) ** (of - k) for k in range(hits, of + 1))
    assert _chance_of_at_least(hits, of, rate) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("hits", "of", "others", "stable_of"), [(3, 8, 0, 67), (1, 20, 4, 380), (0, 5, 0, 5)])
def test_the_hypergeometric_tail_is_exact(hits: int, of: int, others: int, stable_of: int) -> None:
    """As the sum of its definition gives it."""
    total = hits + others
    ways = sum(comb(of, k) * comb(stable_of, total - k) for k in range(hits, min(of, total) + 1))
    assert _chance_of_share(hits, of, others, stable_of) == pytest.approx(ways / comb(of + stable_of, total), rel=1e-9)


def test_errors_within_the_limit_may_still_be_far_more_than_stable_has() -> None:
    """A limit of 20 % does not excuse 10 % where stable has 0.1 %."""
    limits = replace(LIMITS, error_percent=20)
    assert judge(replace(GOOD, failed=10), STABLE, limits, elapsed_seconds=50).verdict == "roll back"


def test_a_slow_first_token_is_harm() -> None:
    """Half of the answers beyond the limit are no p95 under it."""
    slow = replace(GOOD, first_token_ms=(100.0,) * 50 + (900.0,) * 50)
    ruling = judge(slow, NOTHING, LIMITS, elapsed_seconds=50)
    assert ruling.verdict == "roll back"
    assert "p95 first token 900 ms, limit 500 ms" in ruling.reason


def test_within_the_limit_but_slower_than_stable_is_harm() -> None:
    """Three times stable's time is too slow though the limit would allow it."""
    assert (
        judge(replace(GOOD, first_token_ms=(300.0,) * 100), STABLE, LIMITS, elapsed_seconds=50).verdict == "roll back"
    )


def test_a_difference_too_small_to_matter_is_none() -> None:
    """Three times as slow, and still within the margin."""
    quick = replace(STABLE, first_token_ms=(30.0,) * 1000)
    assert judge(replace(GOOD, first_token_ms=(90.0,) * 100), quick, LIMITS, elapsed_seconds=50).verdict == "promote"


def test_without_streams_a_promised_first_token_holds() -> None:
    """A promise that nothing was seen of is not kept; a service that promises none is not judged by it."""
    plain = replace(GOOD, first_token_ms=())
    assert judge(plain, STABLE, LIMITS, elapsed_seconds=50).verdict == "hold"
    assert judge(plain, STABLE, replace(LIMITS, first_token_p95_ms=None), elapsed_seconds=50).verdict == "promote"


@pytest.mark.parametrize(
    ("outcome", "failed", "requests"),
    [
        (OUTCOME, 0, 1),
        (replace(OUTCOME, status=503), 1, 1),
        (replace(OUTCOME, retried=True), 1, 1),
        (replace(OUTCOME, by_fallback=True), 1, 1),
        (replace(OUTCOME, cut_short=True), 1, 1),
        (replace(OUTCOME, user_left=True, status=-1), 0, 0),
        (replace(OUTCOME, user_left=True, status=503), 1, 1),
        (replace(OUTCOME, slot="blue", status=503), 0, 0),
    ],
)
def test_what_counts_as_a_failure(outcome: Outcome, failed: int, requests: int) -> None:
    """What a retry or a fallback hid counts; a user who left does not; the other slot's requests do not."""
    sample = tally([outcome], "green")
    assert (sample.failed, sample.requests) == (failed, requests)


@given(
    requests=st.integers(0, 300),
    share_failed=st.floats(0, 1),
    share_refused=st.floats(0, 1),
    elapsed=st.floats(0, 1000),
    times=st.lists(st.floats(0.1, 5000), max_size=60),
)
def test_every_sample_gets_a_ruling_with_a_reason(
    requests: int, share_failed: float, share_refused: float, elapsed: float, times: list[float]
) -> None:
    """Judging is total, and nothing under the minimum or over the limit is promoted."""
    sample = Sample(requests, int(requests * share_failed), int(requests * share_refused), 0, tuple(sorted(times)))
    ruling = judge(sample, STABLE, LIMITS, elapsed)
    assert ruling.reason
    if sample.requests < LIMITS.minimum_requests or sample.failed > sample.requests * LIMITS.error_percent / 100:
        assert ruling.verdict != "promote"
