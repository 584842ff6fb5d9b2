"""The limits that gates are tested by; a test that needs others says in which they differ."""

from flows.policy.gating.limits import Limits

LIMITS = Limits(
    error_percent=1,
    first_token_p95_ms=500,
    slower_than_stable=1.1,
    first_token_margin_ms=20,
    more_than_stable=1.1,
    error_margin_percent=0.25,
    false_alarm_percent=1,
    missed_harm_percent=5,
    minimum_requests=100,
    warm_up_seconds=0,
    minimum_seconds=10,
    deadline_seconds=100,
)
