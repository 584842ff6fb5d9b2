"""Which replicas belong to nobody?"""

from collections.abc import Sequence

from blocks.ports.fleet import Replica
from flows.policy.releases.ledger import ENDED, ServiceRecord
from flows.policy.releases.scale import Decision


def what_to_reap(
    replicas: Sequence[Replica], record: ServiceRecord, *, now: float, grace_seconds: float
) -> tuple[Decision, ...]:
    """Those whose release the ledger does not know, or knows as ended, once they are older than the grace time.

    One that is younger may be of a run whose ledger is being mended; one of unknown age counts as young.
    """
    states = {release.id: release.state for release in record.releases}

    def decide(replica: Replica) -> Decision:
        state = states.get(replica.release)
        if state is not None and state not in ENDED:
            return Decision(replica, stop=False, reason=f"its release {replica.release} is {state}")
        whose = f"its release {replica.release} is {state or 'unknown to the ledger'}"
        if replica.launched_at is None:
            return Decision(replica, stop=False, reason=f"{whose}, and nobody knows since when it runs")
        age = now - replica.launched_at
        if age < grace_seconds:
            return Decision(replica, stop=False, reason=f"{whose}, for {age:.0f} of {grace_seconds:g} s of grace")
        return Decision(replica, stop=True, reason=f"{whose}, and it has run for {age:.0f} s")

    return tuple(map(decide, replicas))
