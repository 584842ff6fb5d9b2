"""Reap: stop the replicas, and abort the uploads, that belong to nobody and would otherwise only show on the bill."""

import time
from dataclasses import dataclass

from prefect import flow, get_run_logger

from blocks.ports.fleet import Replica
from blocks.ports.store import MultipartUpload
from blocks.service import Service
from flows.boards.artifacts import show
from flows.boards.collect import uploads_table
from flows.boards.replicas import decisions_table
from flows.plans import ReapPlan
from flows.policy.mirrors.collect import which_are_orphans
from flows.policy.releases.reap import what_to_reap
from flows.policy.releases.scale import spare_what_alone_answers
from flows.steps.drain import healthy_replicas, stop_replicas
from flows.steps.service import open_service
from flows.tasks.fleet import list_replicas
from flows.tasks.gateway import list_servers
from flows.tasks.ledger import read_record
from flows.tasks.mirror import abort_upload, list_uploads

DRAIN_SECONDS = 15.0
"""Nobody sends requests to a replica that belongs to nobody; one that cannot be asked must not stay for that."""


@dataclass(frozen=True)
class Orphans:
    replicas: tuple[Replica, ...]
    uploads: tuple[MultipartUpload, ...]


@flow(name="reap-orphans", flow_run_name="reap-orphans-of-{plan.service}")
def reap_orphans(plan: ReapPlan) -> Orphans:
    """Show what belongs to nobody, and end it unless it is a dry run; replicas first, for they cost the most."""
    service = open_service(plan.service)
    return Orphans(_reap_replicas(service, plan), _reap_uploads(service, plan))


def _reap_replicas(service: Service, plan: ReapPlan) -> tuple[Replica, ...]:
    """Those of which the ledger knows nothing good."""
    record = read_record(service.store, service.name)
    decisions = what_to_reap(
        list_replicas(service.fleet, service.name), record, now=time.time(), grace_seconds=plan.grace_seconds
    )
    if record.has_users:
        servers = list_servers(service.gateway, service.name)
        decisions = spare_what_alone_answers(decisions, servers, healthy_replicas(service))
    orphans = tuple(decision.replica for decision in decisions if decision.stop)
    show(f"orphans-{service.name}", lambda: decisions_table(decisions, dry_run=plan.dry_run))
    if plan.dry_run:
        return orphans
    for orphan in orphans:
        get_run_logger().warning("%s in %s belongs to nobody and is stopped.", orphan.name, orphan.cell)
    stop_replicas(
        service, orphans, drain_timeout_seconds=DRAIN_SECONDS, even_if_busy=True, even_if_last=not record.has_users
    )
    return orphans


def _reap_uploads(service: Service, plan: ReapPlan) -> tuple[MultipartUpload, ...]:
    """Those of any of the service's stores that began too long ago for anybody to be at them."""
    now = time.time()
    found = [(store, upload) for store in service.stores for upload in list_uploads(store)]
    orphans = which_are_orphans((upload for _, upload in found), now, plan.orphaned_after_hours * 3600)
    uploads = [(store.url_of(upload.key), upload) for store, upload in found]
    show(f"orphaned-uploads-{service.name}", lambda: uploads_table(uploads, orphans, now=now, dry_run=plan.dry_run))
    if not plan.dry_run:
        for store, upload in found:
            if upload in orphans:
                abort_upload(store, upload)
    return orphans
