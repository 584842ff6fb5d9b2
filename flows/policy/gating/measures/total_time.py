"""Total time of an answer, of models that stream none: what they are asked differs far less than how long chats are."""

from flows.policy.gating.measures.base import LatencyMeasure

TOTAL_TIME = LatencyMeasure(
    name="total time",
    phrase="total time of an answer",
    over="took longer than",
    ms=lambda outcome: outcome.total_ms,
    limit_ms=lambda limits: limits.total_p95_ms,
    margin_ms=lambda limits: limits.total_margin_ms,
    digits=1,
    kinds=frozenset({"embedding", "rerank"}),
)
