"""Provision a fleet: the replicas of a release, ready and known to the gateway, without traffic."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

from prefect import flow, unmapped
from prefect.artifacts import create_markdown_artifact
from prefect.futures import wait

from blocks.errors import Refused
from blocks.ports import EngineSettings
from blocks.service import Service
from flows.boards import placement_table
from flows.plans import ProvisionPlan
from flows.policy.ledger import Release, note_start, open_release, release_id, replica_orders
from flows.tasks.fleet import Started, list_replicas, start_replica
from flows.tasks.gateway import attach, detach, list_servers, read_split
from flows.tasks.ledger import amend, read_record
from flows.tasks.mirror import check_writable, look_up, read_manifest
from flows.tasks.runs import ended_run_of, own_run_id
from flows.tasks.service import open_service
from flows.undo import traffic_to_live, users_keep_what_they_had


@flow(name="provision-fleet", flow_run_name="provision-{plan.repo}-for-{plan.service}")
def provision_fleet(plan: ProvisionPlan) -> Release:
    """Open a release in the service's free slot and start its replicas; they get no traffic yet."""
    service = open_service(plan.service)
    release = open_in_ledger(service, plan)
    if release.state == "live":
        return release
    with users_keep_what_they_had(service):
        if read_manifest(service.store, release.mirror_prefix) is None:
            raise Refused(f"{release.mirror_prefix} is no complete mirror; run mirror-model for {plan.repo} first")
        started = start_replicas(service, release, plan.ready_timeout_seconds)
    create_markdown_artifact(
        placement_table(release, started),
        key=f"placement-{service.name}",
        description=f"Where the replicas of {release.id} run",
    )
    return release


def open_in_ledger(service: Service, plan: ProvisionPlan) -> Release:
    """The release that the plan describes: begun now, taken over from a run that died, or live already."""
    check_writable(service.store)
    commit = look_up(service.hub, plan.repo, plan.revision).commit
    engine = EngineSettings(plan.context_tokens, plan.parallel_requests)
    # A gateway that is down would only be missed once the replicas run.
    read_split(service.gateway, service.name)
    ended = ended_run_of(read_record(service.store, service.name).under_way)
    step = partial(
        open_release,
        service=service.name,
        repo=plan.repo,
        commit=commit,
        engine=engine,
        run_id=own_run_id(),
        ended_run_id=ended,
        now=datetime.now(UTC),
    )
    record = amend(service.store, service.name, step)
    return record.release(release_id(service.name, plan.repo, commit, engine))


def start_replicas(service: Service, release: Release, timeout_seconds: float) -> Sequence[Started]:
    """All replicas of a release by day, ready and in its slot, and nothing in that slot that runs no more."""
    if release.state == "under way" and not release.stages:
        # Whatever an earlier release left in the split, this one begins without traffic.
        traffic_to_live(service, read_record(service.store, service.name))
    orders = replica_orders(release, service.replicas)
    futures = start_replica.map(
        unmapped(service.fleet), unmapped(service.engine), unmapped(service.store), orders, unmapped(timeout_seconds)
    )
    # All of them, also where one has failed: what is still starting would be nobody's.
    wait(futures)
    started = [future.result() for future in futures if future.state.is_completed()]
    addresses = {one.replica.address for one in started}
    known = {replica.address for replica in list_replicas(service.fleet, service.name)}
    for server in list_servers(service.gateway, service.name):
        if server.slot == release.slot and server.address not in addresses | known:
            detach(service.gateway, service.name, server.slot, server.address)
    for address in sorted(addresses & known):
        attach(service.gateway, service.name, release.slot, address)
    for one in started:
        if not one.was_running:
            amend(service.store, service.name, partial(note_start, seconds=one.seconds))
    return futures.result()
