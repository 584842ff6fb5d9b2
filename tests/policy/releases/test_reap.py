"""Which replicas belong to nobody."""

import pytest

from blocks.ports.fleet import Replica
from flows.policy.releases.ledger import ServiceRecord, State
from flows.policy.releases.reap import what_to_reap
from tests.policy.releases.test_scale import release

NOW = 10_000.0


def replica(of: str, launched_at: float | None) -> Replica:
    return Replica(f"{of}-0", "chat", of, "slurm/alpha", "127.0.0.1:9000", launched_at=launched_at)


@pytest.mark.parametrize(
    ("of", "launched_at", "stop", "reason"),
    [
        ("unheard-of", 0, True, "unknown to the ledger, and it has run for 10000 s"),
        ("unheard-of", NOW - 60, False, "60 of 3600 s of grace"),
        ("unheard-of", None, False, "nobody knows since when"),
        ("bad", 0, True, "is rolled back"),
        ("gone", 0, True, "is retired"),
        ("live", 0, False, "is live"),
        ("new", 0, False, "is in progress"),
        ("old", 0, False, "is retiring"),
        ("stops", 0, False, "is stopping"),
    ],
)
def test_what_the_ledger_does_not_account_for_is_reaped(
    of: str, launched_at: float | None, *, stop: bool, reason: str
) -> None:
    """A release that is unknown or has ended has no replicas, but for those that are too young to tell."""
    states: dict[str, State] = {
        "live": "live",
        "old": "retiring",
        "stops": "stopping",
        "new": "in progress",
        "bad": "rolled back",
        "gone": "retired",
    }
    record = ServiceRecord(releases=tuple(release(name, state) for name, state in states.items()))
    (decision,) = what_to_reap([replica(of, launched_at)], record, now=NOW, grace_seconds=3600)
    assert decision.stop is stop
    assert reason in decision.reason
