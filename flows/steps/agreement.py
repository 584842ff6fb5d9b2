"""Before a model that embeds or ranks gets its first user: does it answer as the live one does?"""

from collections.abc import Sequence

from prefect import get_run_logger

from blocks.ports.fleet import POOLING, Replica
from blocks.service import Service
from flows.policy.gating.agreement import disagreement, were_compared
from flows.policy.releases.ledger import Release
from flows.steps.undo import RolledBack
from flows.tasks.engine import probe


def check_agreement(
    service: Service, release: Release, live: Release, candidates: Sequence[Replica], stables: Sequence[Replica]
) -> None:
    """Put the golden prompts to both, past the gateway; RolledBack where nobody could use the one's answers for the
    other's.

    The gateway, through which users' answers pass, does not look into vectors: no gate would find it.
    """
    kind = release.engine.kind
    if kind not in POOLING:
        return
    is_same_model = (release.repo, release.commit) == (live.repo, live.commit)
    if kind == "embedding" and not is_same_model:
        get_run_logger().warning(
            "%s is another model than %s, and vectors of two models cannot be compared with each other: users who "
            "search an index that the one has made with the other's vectors find nothing of use, and no gate sees it.",
            release.id,
            live.id,
        )
    if not candidates or not stables:
        get_run_logger().warning("No replica of %s runs to compare %s with.", live.id, release.id)
        return
    pairs = probe(
        service.engine_client,
        service.prompts_for(kind),
        candidates,
        stables,
        release=release.id,
        round_number=0,
        is_over=lambda: False,
    )
    for pair in pairs:
        if words := disagreement(pair.prompt, pair.own, pair.its, is_same_model=is_same_model):
            raise RolledBack(f"Rolled back before it got any traffic: {words}")
    if not were_compared((pair.own, pair.its) for pair in pairs):
        raise RolledBack(
            f"Rolled back before it got any traffic: of {len(pairs)} golden prompts none was answered by both "
            f"{release.id} and {live.id}, so nobody knows whether they answer alike; look at the logs of their replicas"
        )
