"""Requests that the slot says are at fault themselves, such as a prompt that is too long for its engine."""

from flows.policy.gating.measures.base import EventMeasure

REFUSED = EventMeasure(
    name="refused",
    met="who were refused",
    seen="were refused",
    is_hit=lambda _, event: event == "refused",
    is_trial=lambda _, event: event in {"failed", "refused", "answered"},
    beside=0.03,
    alone=0.01,
)
