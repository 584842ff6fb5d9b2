"""Provision a fleet: the replicas of a release, ready and known to the gateway, without traffic."""

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from prefect import flow

from blocks.ports import Hub, Model
from blocks.service import Service
from flows.place import plan_fleet, start_replicas
from flows.plans import FleetPlan, MirrorPlan, ProvisionPlan
from flows.policy.installation import check_nobody_else_serves
from flows.policy.ledger import Release, open_release, release_id
from flows.policy.placement import Placement
from flows.tasks.gateway import list_servers, read_split
from flows.tasks.ledger import amend, read_record
from flows.tasks.mirror import check_writable, choose_files, look_up
from flows.tasks.runs import ended_run_of, own_run_id
from flows.tasks.service import open_service
from flows.undo import users_keep_what_they_had


@flow(name="provision-fleet", flow_run_name="provision-{plan.repo}-for-{plan.service}")
def provision_fleet(plan: ProvisionPlan) -> Release | Placement:
    """Open a release in the service's free slot and start its replicas where that is best; they get no traffic yet."""
    service = open_service(plan.service, only_looks=plan.plan_only)
    if plan.plan_only:
        model = look_up(service.hub, plan.repo, plan.revision)
        return plan_fleet(service, model, plan.engine, plan.placement, is_only_a_plan=True)
    release = open_in_ledger(service, plan)
    if release.state == "live":
        return release
    with users_keep_what_they_had(service):
        start_replicas(service, release, plan.ready_timeout_seconds)
    return release


def _as_mirrored(hub: Hub, model: Model, plan: FleetPlan) -> Model:
    """With the files alone that a release's plan would have mirrored."""
    if not isinstance(plan, MirrorPlan):
        return model
    return replace(model, files=choose_files(hub, model, **plan.wanted).files)


def open_in_ledger(service: Service, plan: FleetPlan) -> Release:
    """The release that the plan describes: begun now, taken over from a run that died, or live already."""
    check_writable(service.store)
    model = look_up(service.hub, plan.repo, plan.revision)
    # A gateway that is down would only be missed once the replicas run.
    read_split(service.gateway, service.name)
    record = read_record(service.store, service.name)
    check_nobody_else_serves(record, service.name, list_servers(service.gateway, service.name))
    wanted = release_id(service.name, plan.repo, model.commit, plan.engine)
    if wanted not in {release.id for release in (record.live, record.under_way) if release is not None}:
        # What no cell can hold, or the caps do not allow, would only be found out once the model is mirrored.
        plan_fleet(service, _as_mirrored(service.hub, model, plan), plan.engine, plan.placement, is_only_a_plan=False)
    ended = ended_run_of(record.under_way)
    step = partial(
        open_release,
        service=service.name,
        repo=plan.repo,
        commit=model.commit,
        engine=plan.engine,
        placement=plan.placement,
        run_id=own_run_id(),
        ended_run_id=ended,
        now=datetime.now(UTC),
    )
    return amend(service.store, service.name, step).release(wanted)
