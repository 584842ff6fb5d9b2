"""Requests that the slot failed, though a retry or a fallback may have hidden it from their users."""

from flows.policy.gating.measures.base import EventMeasure

FAILED = EventMeasure(
    name="failed",
    met="who met a failure",
    seen="failed",
    is_hit=lambda _, event: event == "failed",
    # What was refused was not answered, and is no news of whether answers fail.
    is_trial=lambda _, event: event in {"failed", "answered"},
    beside=0.56,
    alone=0.6,
    lately=(0.01, 0.08),
    limit=lambda limits: limits.error_percent / 100,
)
