"""Which replicas stay, which go, and when must others start?"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta

from blocks.errors import Refused
from blocks.ports.fleet import Replica
from blocks.ports.gateway import Server
from flows.policy.placement.attempts import FIRST_START_SECONDS
from flows.policy.releases.ledger import ServiceRecord
from flows.policy.releases.rollback import alone_answering

TOO_LATE = timedelta(hours=12)
START_MARGIN = 1.5
"""The next start may be slower than the slowest measured, by this factor."""


@dataclass(frozen=True)
class Decision:
    replica: Replica
    stop: bool
    reason: str


def kept_warm(record: ServiceRecord, now: datetime, *, has_ended: Callable[[str], bool]) -> frozenset[str]:
    """The replaced release, while somebody may still want it back; `has_ended` says it of a run by its id."""
    old = record.retiring
    if old is None or record.live is None:
        return frozenset()
    is_warm = not has_ended(record.live.run_id) if old.warm_until is None else now < old.warm_until
    return frozenset({old.id}) if is_warm else frozenset()


def check_keep(keep: Collection[str], replicas: Sequence[Replica], record: ServiceRecord) -> None:
    """Refused where a name is nobody's, so that what was meant by it is not stopped.

    One of a replica that has died, or of a release that has ended, is somebody's: a schedule says the same each night.
    """
    releases = {*(release.id for release in record.releases), *(replica.release for replica in replicas)}
    known = releases | {replica.name for replica in replicas}
    if unknown := sorted(k for k in keep if k not in known and not _is_numbered(k, releases)):
        raise Refused(
            f"keep has {', '.join(map(repr, unknown))}, which no replica and no release is called; there are "
            f"{', '.join(sorted(known)) or 'none'}"
        )


def _is_numbered(name: str, releases: Collection[str]) -> bool:
    release, _, number = name.rpartition("-")
    return release in releases and number.isascii() and number.isdecimal()


def what_to_stop(
    replicas: Sequence[Replica],
    servers: Sequence[Server],
    record: ServiceRecord,
    wanted: int,
    keep: Collection[str],
    warm: Collection[str],
    *,
    healthy: Collection[str],
    to_zero: bool,
    is_way_back: bool = False,
) -> tuple[Decision, ...]:
    """Scale the live release down to `wanted` replicas and clear away what an ended release left behind.

    `warm` are the replaced releases that are still kept ready, and `healthy` the addresses whose engines say that they
    are. The last healthy replica stays unless `to_zero`; a release in progress is left alone, and so is all of the live
    one while it `is_way_back`, the only place that a candidate's users could go back to; what the ledger does not know
    is not ours to stop.
    """
    states = {release.id: release.state for release in record.releases}
    live = [replica for replica in replicas if states.get(replica.release) == "live"]
    answering = {server.address for server in servers if server.state == "up"} & set(healthy)
    well = [replica for replica in live if replica.address in answering]
    staying = well[: max(wanted, 0 if to_zero else 1)]
    # While the last healthy ones are all needed, a replica that is only starting up, or down for a moment, is spare.
    staying += [replica for replica in live if replica not in well][: max(0, wanted - len(staying))]

    def decide(replica: Replica) -> Decision:
        state = states.get(replica.release)
        reasons_to_keep = (
            (replica.name in keep or replica.release in keep, "on the keep list"),
            (replica.release in warm, "kept warm after it was replaced"),
            (state is None, "the ledger does not know its release"),
            (state == "in progress", "its release is in progress"),
            (is_way_back and state == "live", "a candidate's users could go back to no other, so it stays whole"),
            (replica in staying, f"one of the {wanted} wanted" if wanted else "the last healthy replica"),
        )
        for applies, reason in reasons_to_keep:
            if applies:
                return Decision(replica, stop=False, reason=reason)
        more = f"more than the {wanted} wanted"
        return Decision(replica, stop=True, reason=more if state == "live" else f"its release is {state}")

    return tuple(map(decide, replicas))


def spare_what_alone_answers(
    decisions: Sequence[Decision], servers: Sequence[Server], healthy: Collection[str]
) -> tuple[Decision, ...]:
    """Whatever its release is: where nobody else answers users, it stays."""
    alone = alone_answering(servers, healthy, {decision.replica.address for decision in decisions if decision.stop})
    return tuple(
        replace(decision, stop=False, reason=f"nobody else answers users, though {decision.reason}")
        if decision.stop and decision.replica.address in alone
        else decision
        for decision in decisions
    )


def next_time(of_day: time, now: datetime) -> datetime:
    """The moment that is meant: the next one, or one of the last hours where a run comes too late; in now's zone."""
    today = now.replace(hour=of_day.hour, minute=of_day.minute, second=of_day.second, microsecond=0)
    return today if today > now - TOO_LATE else today + timedelta(days=1)


def when_to_start(ready_by: datetime, start_seconds: Sequence[float]) -> datetime:
    """The latest moment from which replicas are ready in time, from what starting them took before."""
    slowest = max(start_seconds) * START_MARGIN if start_seconds else FIRST_START_SECONDS
    # In UTC: on two nights a year the clock on the wall has an hour more or less between the two.
    return (ready_by.astimezone(UTC) - timedelta(seconds=slowest)).astimezone(ready_by.tzinfo)
