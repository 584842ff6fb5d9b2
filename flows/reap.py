"""Reap: stop the replicas, and abort the uploads, that belong to nobody and would otherwise only show on the bill."""

import time
from dataclasses import dataclass

from prefect import get_run_logger
from pydantic import Field

from blocks.ports.fleet import Replica
from blocks.ports.store import MultipartUpload
from blocks.service import Service
from flows.boards.artifacts import show
from flows.boards.collect import uploads_table
from flows.boards.replicas import decisions_table
from flows.policy.mirrors.collect import which_are_orphans
from flows.policy.releases.reap import what_to_reap
from flows.policy.releases.scale import spare_what_alone_answers
from flows.runtime.parameters import OrphanedAfterHours, Parameters, flow_with
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


class ReapParameters(Parameters):
    """Stop the replicas, and abort the uploads, that belong to nobody."""

    grace_seconds: float = Field(
        default=3600,
        ge=0,
        title="Grace (seconds)",
        description="A replica that is younger than this is left alone, whatever the ledger says of it.",
    )
    orphaned_after_hours: OrphanedAfterHours = 48
    dry_run: bool = Field(
        default=True, title="Dry run", description="Show what would be stopped and aborted, and do neither."
    )


@flow_with(
    ReapParameters,
    name="reap-orphans",
    run_name=lambda given: f"reap-orphans-of-{given.service}",
)
def reap_orphans(given: ReapParameters) -> Orphans:
    """Show what belongs to nobody, and end it unless it is a dry run; replicas first, for they cost the most."""
    service = open_service(given.service)
    return Orphans(_reap_replicas(service, given), _reap_uploads(service, given))


def _reap_replicas(service: Service, given: ReapParameters) -> tuple[Replica, ...]:
    """Those of which the ledger knows nothing good."""
    record = read_record(service.store, service.name)
    decisions = what_to_reap(
        list_replicas(service.fleet, service.name), record, now=time.time(), grace_seconds=given.grace_seconds
    )
    if record.has_users:
        servers = list_servers(service.gateway, service.name)
        decisions = spare_what_alone_answers(decisions, servers, healthy_replicas(service))
    orphans = tuple(decision.replica for decision in decisions if decision.stop)
    show(f"orphans-{service.name}", lambda: decisions_table(decisions, dry_run=given.dry_run))
    if given.dry_run:
        return orphans
    for orphan in orphans:
        get_run_logger().warning("%s in %s belongs to nobody and is stopped.", orphan.name, orphan.cell)
    stop_replicas(
        service, orphans, drain_timeout_seconds=DRAIN_SECONDS, even_if_busy=True, even_if_last=not record.has_users
    )
    return orphans


def _reap_uploads(service: Service, given: ReapParameters) -> tuple[MultipartUpload, ...]:
    """Those of any of the service's stores that began too long ago for anybody to be at them."""
    now = time.time()
    found = [(store, upload) for store in service.stores for upload in list_uploads(store)]
    orphans = which_are_orphans((upload for _, upload in found), now, given.orphaned_after_hours * 3600)
    uploads = [(store.url_of(upload.key), upload) for store, upload in found]
    show(f"orphaned-uploads-{service.name}", lambda: uploads_table(uploads, orphans, now=now, dry_run=given.dry_run))
    if not given.dry_run:
        for store, upload in found:
            if upload in orphans:
                abort_upload(store, upload)
    return orphans
