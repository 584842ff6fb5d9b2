"""Scale down: drain and stop the replicas that nobody needs tonight."""

from datetime import UTC, datetime
from functools import partial

from prefect import get_run_logger
from pydantic import Field

from blocks.errors import Refused, Unavailable
from blocks.ports.fleet import Replica
from blocks.service import Service
from flows.boards.artifacts import show
from flows.boards.replicas import decisions_table
from flows.policy.releases.events import fleet_scaled
from flows.policy.releases.ledger import ServiceRecord, ask_for, begin_stopping, retire
from flows.policy.releases.scale import check_keep, kept_warm, spare_what_alone_answers, what_to_stop
from flows.runtime.events import emit
from flows.runtime.parameters import LateHours, Parameters, flow_with
from flows.runtime.runs import has_ended, see_that_it_is_not_late
from flows.steps.drain import healthy_replicas, stop_replicas
from flows.steps.service import open_service
from flows.steps.undo import traffic_to_live
from flows.tasks.fleet import list_replicas
from flows.tasks.gateway import list_servers, read_split
from flows.tasks.ledger import read_record, update_ledger


class ScaleDownParameters(Parameters):
    """Stop the replicas that are not needed."""

    replicas: int | None = Field(
        default=None,
        ge=0,
        title="Replicas left",
        description="How many replicas stay; without a number, the service's replicas at night.",
    )
    keep: tuple[str, ...] = Field(
        default=(), title="Keep", description="Names of replicas or releases that are left alone."
    )
    to_zero: bool = Field(
        default=False,
        title="Down to zero",
        description="Allow the last healthy replica to be stopped: users then get errors, or the outside provider.",
    )
    drain_timeout_seconds: float = Field(
        default=900,
        gt=0,
        title="Drain within (seconds)",
        description="A replica that is still busy, or cannot be asked, after this time is not stopped.",
    )
    even_if_busy: bool = Field(
        default=False,
        title="Even if busy",
        description="Stop such a replica all the same, for one that hangs would stay for ever; its requests are lost.",
    )
    dry_run: bool = Field(default=False, title="Dry run", description="Show what would be stopped, and stop nothing.")
    late_hours: LateHours = 2


@flow_with(
    ScaleDownParameters,
    name="scale-down",
    run_name=lambda given: f"scale-down-{given.service}",
)
def scale_down(given: ScaleDownParameters) -> tuple[Replica, ...]:
    """Stop the replicas that are not wanted, once nothing is in flight on them; returns those that were stopped."""
    service = open_service(given.service)
    see_that_it_is_not_late("scale-down", given.late_hours)
    wanted = service.night_replicas if given.replicas is None else given.replicas
    if wanted == 0 and not given.to_zero:
        raise Refused(f"0 replicas of {service.name!r} would leave its users with nothing; say so with to_zero")
    record, replicas = read_record(service.store, service.name), list_replicas(service.fleet, service.name)
    check_keep(given.keep, replicas, record)
    servers, healthy = list_servers(service.gateway, service.name), healthy_replicas(service)
    is_way_back = _has_a_candidate(service, record)
    decisions = what_to_stop(
        replicas,
        servers,
        record,
        wanted,
        given.keep,
        kept_warm(record, datetime.now(UTC), has_ended=has_ended),
        healthy=healthy,
        to_zero=given.to_zero,
        is_way_back=is_way_back,
    )
    may_end_the_last = given.to_zero or not record.has_users
    if not may_end_the_last:
        decisions = spare_what_alone_answers(decisions, servers, healthy)
    show(f"what-to-stop-{service.name}", lambda: decisions_table(decisions, dry_run=given.dry_run))
    if given.dry_run:
        return ()
    if record.in_progress is None:
        # What an ended release left behind must have no traffic when it goes.
        traffic_to_live(service, record)
    if is_way_back:
        get_run_logger().warning(
            "A candidate may have some of the traffic of %s, so the live release stays whole; run this again after it.",
            service.name,
        )
    else:
        # Before any of them goes: nobody brings back what goes by intent.
        update_ledger(service.store, service.name, partial(ask_for, replicas=wanted))
    chosen = tuple(decision.replica for decision in decisions if decision.stop)
    for release in {replica.release for replica in chosen}:
        update_ledger(service.store, service.name, partial(begin_stopping, release=release))
    stayed = stop_replicas(
        service,
        chosen,
        drain_timeout_seconds=given.drain_timeout_seconds,
        even_if_busy=given.even_if_busy,
        even_if_last=may_end_the_last,
    )
    _close_emptied_releases(service)
    gone = tuple(replica for replica in chosen if replica not in stayed)
    if gone:
        emit(fleet_scaled(read_record(service.store, service.name), service.name, stopped=gone))
    if stayed:
        raise Unavailable(
            f"{', '.join(replica.name for replica in stayed)} stayed: put back meanwhile, busy, or could not be asked"
        )
    return chosen


def _has_a_candidate(service: Service, record: ServiceRecord) -> bool:
    """Whether a release in progress has some of the traffic, or a run that may give it one at any moment."""
    candidate = record.in_progress
    if candidate is None or record.live is None:
        return False
    return read_split(service.gateway, service.name).weight_of(candidate.slot) > 0 or not has_ended(candidate.run_id)


def _close_emptied_releases(service: Service) -> None:
    running = {replica.release for replica in list_replicas(service.fleet, service.name)}
    record = read_record(service.store, service.name)
    staying = running | kept_warm(record, datetime.now(UTC), has_ended=has_ended)
    for release in record.replaced:
        if release.id not in staying:
            update_ledger(service.store, service.name, partial(begin_stopping, release=release.id))
            update_ledger(service.store, service.name, partial(retire, release=release.id))
