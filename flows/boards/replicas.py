"""Which replicas are stopped, and why each goes or stays."""

from collections.abc import Sequence

from flows.boards.shown import Table
from flows.policy.releases.scale import Decision


def decisions_table(decisions: Sequence[Decision], *, dry_run: bool) -> Table:
    """What is stopped comes first."""
    stopped = [decision for decision in decisions if decision.stop]
    kept = [decision for decision in decisions if not decision.stop]
    return Table(
        f"{len(stopped)} of {len(decisions)} replicas are stopped"
        f"{' (dry run: nothing was stopped)' if dry_run else ''}",
        [
            {
                "replica": decision.replica.name,
                "cell": decision.replica.cell,
                "decision": "stop" if decision.stop else "keep",
                "why": decision.reason,
            }
            for decision in (*stopped, *kept)
        ],
    )
