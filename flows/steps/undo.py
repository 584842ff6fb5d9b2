"""Whatever fails, users keep what they had, and what was started for the candidate is stopped."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

from prefect import get_run_logger

from blocks.errors import SkyferryError
from blocks.ports.fleet import Replica
from blocks.service import Service
from flows.policy.releases.ledger import Release, ServiceRecord, back_out, replica_orders, what_to_back_out
from flows.runtime.runs import own_run_id
from flows.runtime.sleep import done_by
from flows.steps.drain import LastToAnswer, put_in_slot, stop_replicas
from flows.tasks.fleet import list_replicas
from flows.tasks.gateway import set_weight
from flows.tasks.ledger import read_record, update_ledger

LAST_RESORT_SECONDS = 15.0
"""How long the busy replicas of a candidate may still take to finish."""
KILLED_AFTER_SECONDS = 30.0
"""From SIGTERM to SIGKILL: so long Prefect leaves a run that was cancelled, and so long its guard has for all it does.
"""
STOPPING_SECONDS = 8.0
"""Of those, what is kept for the fleet to hear of every replica that is to stop, and for the run to say how it ended.
"""


class RolledBack(SkyferryError):
    """The candidate did not pass, or a person said no; users are back on what they had."""


@contextmanager
def rollback_on_error(service: Service) -> Iterator[None]:
    """On any error, cancellation too, undo the release in progress if it is this run's, and raise the error again."""
    stable = read_record(service.store, service.name).live
    try:
        yield
    except BaseException as error:
        ended_from_outside = not isinstance(error, Exception)
        killed_at = time.monotonic() + KILLED_AFTER_SECONDS
        deadline = killed_at if ended_from_outside else None
        get_run_logger().warning("Users keep what they had: %s", error)
        try:
            # Users are with the candidate: no store that wants to be left alone keeps them there.
            with done_by(killed_at - STOPPING_SECONDS):
                record = read_record(service.store, service.name)
        except SkyferryError:
            # Without the ledger the release stays open for a retry or a roll-back, but no user waits for that.
            if stable is not None:
                set_weight(service.gateway, service.name, stable.slot, 100)
            raise
        if record.in_progress is None:
            # Somebody else has ended the release, maybe just before this run moved traffic once more.
            traffic_to_live(service, record)
        elif record.in_progress.run_id == own_run_id():
            reason = "its run was ended from outside" if ended_from_outside else str(error)
            with nullcontext() if deadline is None else done_by(deadline - STOPPING_SECONDS):
                roll_back_to_stable(service, record, reason, deadline=deadline)
        raise


def roll_back_to_stable(
    service: Service, before: ServiceRecord, reason: str, *, deadline: float | None = None
) -> ServiceRecord:
    """Give all traffic to the release that stays, record the decision, then stop the other's replicas.

    `before` is how the ledger stands: nothing is asked of anybody before the traffic has moved. What still starts is
    stopped by its name: from the ledger's word on, each start that is done stops its own replica.
    `deadline`, on the monotonic clock, is when this process will be killed. LastToAnswer where only those that would
    be stopped answer users: the gateway sends to them what the release that stays cannot take.
    """
    bad = what_to_back_out(before)
    if bad.state == "in progress" and before.live is not None:
        # No more than one word to the gateway comes before the ledger's: asking a cloud for its machines takes time.
        set_weight(service.gateway, service.name, before.live.slot, 100)
    # Where the live release goes, the ledger comes first: from then on nobody stops the warm one any more.
    record = update_ledger(service.store, service.name, partial(back_out, release=bad.id, reason=reason))
    traffic_to_live(service, record)
    left = None if deadline is None else max(0.0, deadline - time.monotonic() - STOPPING_SECONDS)
    try:
        stop_replicas(
            service,
            _launched_or_to_be(service, bad),
            even_if_busy=True,
            even_if_last=not record.has_users,
            drain_timeout_seconds=LAST_RESORT_SECONDS if left is None else min(LAST_RESORT_SECONDS, left),
            within_seconds=None if left is None else left + STOPPING_SECONDS / 2,
        )
    except LastToAnswer as last:
        stays = record.live.id if record.live else service.name
        raise LastToAnswer(
            f"{reason}; no replica of {stays} is up, so those of {bad.id} go on answering in its place: run "
            f"scale-up, which starts {stays}'s, and then scale-down, which stops these"
        ) from last
    return record


def _launched_or_to_be(service: Service, release: Release) -> list[Replica]:
    """Its replicas as the fleet lists them, and those that may be on their way without being listed yet."""
    listed = [r for r in list_replicas(service.fleet, service.name) if r.release == release.id]
    names = {replica.name for replica in listed}
    orders = [order for order in replica_orders(release, service.replicas) if order.name not in names]
    return [*listed, *(Replica(order.name, order.service, order.release, cell="", address="") for order in orders)]


def traffic_to_live(service: Service, record: ServiceRecord) -> None:
    """Put the traffic where the ledger has it while no release is in progress; before the first, nowhere."""
    if record.live is None:
        return
    standing = [r for r in list_replicas(service.fleet, service.name) if r.release == record.live.id and r.address]
    put_in_slot(service, record.live.slot, record.live.id, standing)
    set_weight(service.gateway, service.name, record.live.slot, 100)
