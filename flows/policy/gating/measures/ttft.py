"""Time to first token, of streamed answers."""

from flows.policy.gating.measures.base import GENERATING, LatencyMeasure

TTFT = LatencyMeasure(
    name="TTFT",
    phrase="time to first token",
    over="began after",
    ms=lambda outcome: outcome.first_token_ms,
    limit_ms=lambda limits: limits.first_token_p95_ms,
    margin_ms=lambda limits: limits.first_token_margin_ms,
    kinds=GENERATING,
    answers="streamed answers",
)
