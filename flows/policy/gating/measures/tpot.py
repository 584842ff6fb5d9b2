"""Time per output token after the first, of streamed answers that are long enough to tell."""

from flows.policy.gating.measures.base import GENERATING, LatencyMeasure

TPOT = LatencyMeasure(
    name="TPOT",
    phrase="time per output token",
    over="took more a token than",
    ms=lambda outcome: outcome.per_token_ms,
    limit_ms=lambda limits: limits.token_p95_ms,
    margin_ms=lambda limits: limits.token_margin_ms,
    # Where an engine sends several tokens in one event, it cannot be compared: no promise, no gate.
    is_judged=lambda limits: limits.token_p95_ms is not None,
    digits=1,
    kinds=GENERATING,
    answers="streamed answers of some tokens",
)
