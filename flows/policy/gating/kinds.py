"""Which requests and which limits is a release judged by? That goes by the kind of its model."""

from collections.abc import Collection, Mapping

from blocks.errors import Refused
from blocks.ports.fleet import POOLING, ModelKind
from blocks.ports.gateway import Outcome, RequestKind
from flows.policy.gating.limits import Limits

HAS_TO_ANSWER: Mapping[ModelKind, frozenset[RequestKind]] = {
    "embedding": frozenset({"embedding"}),
    "rerank": frozenset({"rerank", "score"}),
}
"""Of kinds that are asked for one thing. What models that generate can do beside words shows in what they answer."""

OF_TOKENS = frozenset({"first_token_p95_ms", "token_p95_ms", "first_token_margin_ms", "token_margin_ms"})
"""Limits that say nothing of an answer without tokens."""


def concerns(kind: ModelKind, outcome: Outcome) -> bool:
    """Whether a release of that kind has to answer such a request.

    A chat that is sent to an embedding model fails on any engine, with whatever status that has for it, and says
    nothing of the release.
    """
    return kind not in HAS_TO_ANSWER or outcome.kind in HAS_TO_ANSWER[kind]


def limits_for(kind: ModelKind, limits: Limits, named: Collection[str]) -> Limits:
    """Of its service's limits those that a release of that kind can keep.

    Refused where the release itself is given one, among those `named`, that it cannot.
    """
    if kind not in POOLING:
        return limits
    if contradicting := sorted(OF_TOKENS.intersection(named)):
        raise Refused(
            f"limits has {', '.join(contradicting)}, and a model of kind {kind!r} has no tokens to time; leave it out"
        )
    return limits.model_copy(update={"first_token_p95_ms": None, "token_p95_ms": None})
