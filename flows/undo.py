"""Whatever fails, users keep what they had, and what was started for the candidate is stopped."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from prefect import get_run_logger

from blocks.errors import SkyferryError, Unavailable
from blocks.service import Service
from flows.drain import put_in_slot, stop_release
from flows.policy.ledger import Release, ServiceRecord, back_out, what_to_back_out
from flows.policy.way_back import alone_answers
from flows.tasks.engine import who_is_healthy
from flows.tasks.fleet import list_replicas
from flows.tasks.gateway import give_share, list_servers
from flows.tasks.ledger import amend, read_record
from flows.tasks.runs import own_run_id

LAST_RESORT_SECONDS = 15.0
"""How long the busy replicas of a candidate may still take to finish: Prefect kills a cancelled run after 30 s."""


class RolledBack(SkyferryError):
    """The candidate did not pass, or a person said no; users are back on what they had."""


@contextmanager
def users_keep_what_they_had(service: Service) -> Iterator[None]:
    """On any error, cancellation too, undo the release under way if it is this run's, and raise the error again."""
    stable = read_record(service.store, service.name).live
    try:
        yield
    except BaseException as error:
        get_run_logger().warning("Users keep what they had: %s", error)
        try:
            record = read_record(service.store, service.name)
        except SkyferryError:
            # Without the ledger the release stays open for a retry or a roll-back, but no user waits for that.
            if stable is not None:
                give_share(service.gateway, service.name, stable.slot, 100)
            raise
        if record.under_way is None:
            # Somebody else has ended the release, maybe just before this run moved traffic once more.
            traffic_to_live(service, record)
        elif record.under_way.run_id == own_run_id():
            ended_from_outside = not isinstance(error, Exception)
            roll_back_to_stable(service, "its run was ended from outside" if ended_from_outside else str(error))
        raise


def roll_back_to_stable(service: Service, reason: str) -> ServiceRecord:
    """Give all traffic to the release that stays, record the decision, then stop the other's replicas.

    Unavailable where only those answer users: the gateway sends to them what the release that stays cannot take.
    """
    before = read_record(service.store, service.name)
    bad = what_to_back_out(before)
    if bad.state == "under way":
        traffic_to_live(service, before)
    # Where the live release goes, the ledger comes first: from then on nobody stops the warm one any more.
    record = amend(service.store, service.name, partial(back_out, release=bad.id, reason=reason))
    traffic_to_live(service, record)
    if record.live is not None and _alone_answers(service, bad, record.live):
        raise Unavailable(
            f"{reason}; no replica of {record.live.id} is up, so those of {bad.id} go on answering in its place: run "
            f"scale-up, which starts {record.live.id}'s, and then scale-down, which stops these"
        )
    stop_release(service, bad.id, even_if_busy=True, drain_timeout_seconds=LAST_RESORT_SECONDS)
    return record


def _alone_answers(service: Service, goes: Release, stays: Release) -> bool:
    placed = [replica for replica in list_replicas(service.fleet, service.name) if replica.address]
    healthy = who_is_healthy(service.engine, placed)
    return alone_answers(list_servers(service.gateway, service.name), healthy, goes.slot, stays.slot)


def traffic_to_live(service: Service, record: ServiceRecord) -> None:
    """Put the traffic where the ledger says that it stands while no release is under way; before the first, nowhere."""
    if record.live is None:
        return
    standing = [r for r in list_replicas(service.fleet, service.name) if r.release == record.live.id and r.address]
    put_in_slot(service, record.live.slot, record.live.id, standing)
    give_share(service.gateway, service.name, record.live.slot, 100)
