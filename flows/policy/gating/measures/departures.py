"""Users who left before an answer began, or in the middle of one, when nothing had failed."""

from flows.policy.gating.measures.base import EventMeasure

LEFT = EventMeasure(
    name="left",
    met="who gave up without an answer",
    seen="were given up without an answer",
    is_hit=lambda _, event: event == "left",
    is_trial=lambda _, event: event != "left midway",
    beside=0.005,
    alone=0.005,
)
LEFT_MIDWAY = EventMeasure(
    name="left midway",
    met="who left in the middle of an answer",
    seen="were left in the middle of the answer",
    is_hit=lambda _, event: event == "left midway",
    is_trial=lambda _, event: event != "left",
    beside=0.005,
    alone=0.005,
)
