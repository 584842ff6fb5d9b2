"""Scale down: drain and stop the replicas that nobody needs tonight."""

from functools import partial

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from blocks.errors import Refused, Unavailable
from blocks.ports import Replica
from blocks.service import Service
from flows.boards import decision_table
from flows.drain import stop_replicas
from flows.plans import ScaleDownPlan
from flows.policy.ledger import ServiceRecord, begin_stopping, retire
from flows.policy.scale import what_to_stop
from flows.tasks.fleet import list_replicas
from flows.tasks.gateway import list_servers
from flows.tasks.ledger import amend, read_record
from flows.tasks.runs import has_ended
from flows.tasks.service import open_service
from flows.undo import traffic_to_live


@flow(name="scale-down", flow_run_name="scale-down-{plan.service}")
def scale_down(plan: ScaleDownPlan) -> tuple[Replica, ...]:
    """Stop the replicas that are not wanted, once nothing is in flight on them; returns those that were stopped."""
    service = open_service(plan.service)
    wanted = service.night_replicas if plan.replicas is None else plan.replicas
    if wanted == 0 and not plan.to_zero:
        raise Refused(f"0 replicas of {service.name!r} would leave its users with nothing; say so with to_zero")
    record = read_record(service.store, service.name)
    decisions = what_to_stop(
        list_replicas(service.fleet, service.name),
        list_servers(service.gateway, service.name),
        record,
        wanted,
        plan.keep,
        _kept_warm(record),
        to_zero=plan.to_zero,
    )
    create_markdown_artifact(
        decision_table(decisions, dry_run=plan.dry_run),
        key=f"what-to-stop-{service.name}",
        description="Which replicas go, and why",
    )
    if plan.dry_run:
        return ()
    if record.under_way is None:
        # What an ended release left behind must have no traffic when it goes.
        traffic_to_live(service, record)
    chosen = tuple(decision.replica for decision in decisions if decision.stop)
    for release in {replica.release for replica in chosen}:
        amend(service.store, service.name, partial(begin_stopping, release=release))
    stayed = stop_replicas(
        service, chosen, drain_timeout_seconds=plan.drain_timeout_seconds, even_if_busy=plan.even_if_busy
    )
    _close_emptied_releases(service)
    if stayed:
        raise Unavailable(f"{', '.join(replica.name for replica in stayed)} stayed: busy, or could not be asked")
    return chosen


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
            amend(service.store, service.name, partial(begin_stopping, release=release.id))
            amend(service.store, service.name, partial(retire, release=release.id))
