"""Which replicas stay, which go, and when must others start?"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta

from blocks.ports import Replica, Server
from flows.policy.ledger import ServiceRecord

FIRST_START_SECONDS = 900.0
"""How long a start is taken to last before one has been measured: a large model on a cold node."""
START_MARGIN = 1.5
"""The next start may be slower than the slowest measured, by this factor."""


@dataclass(frozen=True)
class Decision:
    replica: Replica
    stop: bool
    reason: str


def what_to_stop(
    replicas: Sequence[Replica],
    servers: Sequence[Server],
    record: ServiceRecord,
    wanted: int,
    keep: Collection[str],
    *,
    to_zero: bool,
) -> tuple[Decision, ...]:
    """Scale the live release down to `wanted` replicas and clear away what an ended release left behind.

    The last healthy replica stays unless `to_zero`; a release under way is left alone; what the ledger does not know
    is not ours to stop.
    """
    states = {release.id: release.state for release in record.releases}
    seen = {server.address: server for server in servers}
    live = [replica for replica in replicas if states.get(replica.release) == "live"]
    healthy = [replica for replica in live if (at := seen.get(replica.address)) is not None and at.state == "up"]
    staying = healthy[: max(wanted, 0 if to_zero else 1)]
    # While the last healthy ones are all needed, a replica that is only starting up, or down for a moment, is spare.
    staying += [replica for replica in live if replica not in healthy][: max(0, wanted - len(staying))]

    def decide(replica: Replica) -> Decision:
        state = states.get(replica.release)
        if replica.name in keep or replica.release in keep:
            return Decision(replica, stop=False, reason="on the keep list")
        if state is None:
            return Decision(replica, stop=False, reason="the ledger does not know its release")
        if state == "under way":
            return Decision(replica, stop=False, reason="its release is under way")
        if state != "live":
            return Decision(replica, stop=True, reason=f"its release is {state}")
        if replica in staying:
            words = "the last healthy replica" if wanted < 1 else f"one of the {wanted} wanted"
            return Decision(replica, stop=False, reason=words)
        return Decision(replica, stop=True, reason=f"more than the {wanted} wanted")

    return tuple(map(decide, replicas))


def next_time(of_day: time, now: datetime) -> datetime:
    """The next moment at which the clock shows that time, in now's time zone."""
    today = now.replace(hour=of_day.hour, minute=of_day.minute, second=of_day.second, microsecond=0)
    return today if today > now else today + timedelta(days=1)


def when_to_start(ready_by: datetime, start_seconds: Sequence[float]) -> datetime:
    """The latest moment from which replicas are ready in time, from what starting them took before."""
    slowest = max(start_seconds) * START_MARGIN if start_seconds else FIRST_START_SECONDS
    return ready_by - timedelta(seconds=slowest)
