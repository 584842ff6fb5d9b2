"""Reap: stop the replicas that belong to nobody, which would otherwise only show on the bill."""

import time

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from blocks.ports import Replica
from flows.boards import decision_table
from flows.drain import stop_replicas
from flows.plans import ReapPlan
from flows.policy.reap import what_to_reap
from flows.tasks.fleet import list_replicas
from flows.tasks.ledger import read_record
from flows.tasks.service import open_service

DRAIN_SECONDS = 15.0
"""Nobody sends requests to a replica that belongs to nobody; one that cannot be asked must not stay for that."""


@flow(name="reap-orphans", flow_run_name="reap-orphans-of-{plan.service}")
def reap_orphans(plan: ReapPlan) -> tuple[Replica, ...]:
    """List the service's replicas of which the ledger knows nothing good, and stop them unless it is a dry run."""
    service = open_service(plan.service)
    decisions = what_to_reap(
        list_replicas(service.fleet, service.name),
        read_record(service.store, service.name),
        now=time.time(),
        grace_seconds=plan.grace_seconds,
    )
    orphans = tuple(decision.replica for decision in decisions if decision.stop)
    create_markdown_artifact(
        decision_table(decisions, dry_run=plan.dry_run),
        key=f"orphans-{service.name}",
        description=f"{len(orphans)} of {len(decisions)} replicas belong to nobody",
    )
    if plan.dry_run:
        return orphans
    for orphan in orphans:
        get_run_logger().warning("%s in %s belongs to nobody and is stopped.", orphan.name, orphan.cell)
    stop_replicas(service, orphans, drain_timeout_seconds=DRAIN_SECONDS, even_if_busy=True)
    return orphans
