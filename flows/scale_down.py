"""Scale down: drain and stop the replicas that nobody needs tonight."""

from functools import partial

from prefect import flow, get_run_logger

from blocks.errors import Refused, Unavailable
from blocks.ports.fleet import Replica
from blocks.service import Service
from flows.boards.artifacts import show
from flows.boards.replicas import decisions_table
from flows.plans import ScaleDownPlan
from flows.policy.releases.ledger import ServiceRecord, ask_for, begin_stopping, retire
from flows.policy.releases.scale import check_keep, spare_what_alone_answers, what_to_stop
from flows.runtime.runs import has_ended, see_that_it_is_not_late
from flows.steps.drain import healthy_replicas, stop_replicas
from flows.steps.service import open_service
from flows.steps.undo import traffic_to_live
from flows.tasks.fleet import list_replicas
from flows.tasks.gateway import list_servers, read_split
from flows.tasks.ledger import read_record, update_ledger


@flow(name="scale-down", flow_run_name="scale-down-{plan.service}")
def scale_down(plan: ScaleDownPlan) -> tuple[Replica, ...]:
    """Stop the replicas that are not wanted, once nothing is in flight on them; returns those that were stopped."""
    service = open_service(plan.service)
    see_that_it_is_not_late("scale-down", plan.late_hours)
    wanted = service.night_replicas if plan.replicas is None else plan.replicas
    if wanted == 0 and not plan.to_zero:
        raise Refused(f"0 replicas of {service.name!r} would leave its users with nothing; say so with to_zero")
    record, replicas = read_record(service.store, service.name), list_replicas(service.fleet, service.name)
    check_keep(plan.keep, replicas, record)
    servers, healthy = list_servers(service.gateway, service.name), healthy_replicas(service)
    is_way_back = _has_a_candidate(service, record)
    decisions = what_to_stop(
        replicas,
        servers,
        record,
        wanted,
        plan.keep,
        _kept_warm(record),
        healthy=healthy,
        to_zero=plan.to_zero,
        is_way_back=is_way_back,
    )
    may_end_the_last = plan.to_zero or not record.has_users
    if not may_end_the_last:
        decisions = spare_what_alone_answers(decisions, servers, healthy)
    show(f"what-to-stop-{service.name}", lambda: decisions_table(decisions, dry_run=plan.dry_run))
    if plan.dry_run:
        return ()
    if record.in_progress is None:
        # What an ended release left behind must have no traffic when it goes.
        traffic_to_live(service, record)
    if is_way_back:
        get_run_logger().warning(
            "A candidate may have a share of %s, so the live release stays whole; run this again after it.",
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
        drain_timeout_seconds=plan.drain_timeout_seconds,
        even_if_busy=plan.even_if_busy,
        even_if_last=may_end_the_last,
    )
    _close_emptied_releases(service)
    if stayed:
        raise Unavailable(
            f"{', '.join(replica.name for replica in stayed)} stayed: put back meanwhile, busy, or could not be asked"
        )
    return chosen


def _has_a_candidate(service: Service, record: ServiceRecord) -> bool:
    """Whether a release in progress has a share of the traffic, or a run that may give it one at any moment."""
    candidate = record.in_progress
    if candidate is None or record.live is None:
        return False
    return read_split(service.gateway, service.name).weight_of(candidate.slot) > 0 or not has_ended(candidate.run_id)


def _kept_warm(record: ServiceRecord) -> set[str]:
    """The replaced release, while the run that replaced it still waits whether somebody wants it back."""
    if record.retiring is None or record.live is None or has_ended(record.live.run_id):
        return set()
    return {record.retiring.id}


def _close_emptied_releases(service: Service) -> None:
    running = {replica.release for replica in list_replicas(service.fleet, service.name)}
    kept_warm = _kept_warm(record := read_record(service.store, service.name))
    for release in record.replaced:
        if release.id not in running | kept_warm:
            update_ledger(service.store, service.name, partial(begin_stopping, release=release.id))
            update_ledger(service.store, service.name, partial(retire, release=release.id))
