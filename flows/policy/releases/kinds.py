"""May a service get a model of another kind? Its users would be answered with errors, from the first stage on."""

from collections.abc import Mapping

from blocks.errors import Refused
from blocks.ports.fleet import ModelKind
from flows.policy.releases.ledger import Release

SERVED_BY: Mapping[ModelKind, frozenset[ModelKind]] = {
    "chat": frozenset({"chat", "completion"}),
    "completion": frozenset({"chat", "completion"}),
    "embedding": frozenset({"embedding"}),
    "rerank": frozenset({"rerank"}),
}
"""Which kinds may take over from each. Engines serve chats and completions of one model alike: whether its users are
answered the gates see."""


def check_kind(service: str, live: Release | None, kind: ModelKind) -> None:
    """Refused where nobody who is answered now would be answered by a model of that kind."""
    if live is not None and kind not in SERVED_BY[live.engine.kind]:
        raise Refused(
            f"service {service!r} has {live.id} live, of kind {live.engine.kind!r}, whose users a model of kind "
            f"{kind!r} cannot answer; give it a service of its own, or say kind={live.engine.kind}"
        )
