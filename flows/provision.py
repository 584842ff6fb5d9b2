"""Provision a fleet: the replicas of a release, ready and known to the gateway, without traffic."""

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from prefect import flow

from blocks.errors import Refused
from blocks.ports.fleet import EngineSettings
from blocks.ports.hub import Hub, Model
from blocks.service import Service
from blocks.stores.mirrors import mirror_prefix
from flows.plans import FleetPlan, MirrorPlan, ProvisionPlan
from flows.policy.placement.plan import Placement
from flows.policy.releases.installation import check_nobody_else_serves
from flows.policy.releases.kinds import check_kind
from flows.policy.releases.ledger import Release, ServiceRecord, open_release, release_id
from flows.runtime.runs import ended_run_of, own_run_id
from flows.steps.engine import resolve_settings
from flows.steps.place import plan_fleet, start_replicas
from flows.steps.service import open_service
from flows.steps.undo import rollback_on_error
from flows.tasks.gateway import list_servers, read_split
from flows.tasks.ledger import read_record, update_ledger
from flows.tasks.mirror import check_writable, choose_files, look_up, read_manifest


@flow(name="provision-fleet", flow_run_name="provision-{plan.repo}-for-{plan.service}")
def provision_fleet(plan: ProvisionPlan) -> Release | Placement:
    """Open a release in the service's free slot and start its replicas where that is best; they get no traffic yet."""
    service = open_service(plan.service, only_looks=plan.plan_only)
    if plan.plan_only:
        model = look_up(service.hub, plan.repo, plan.revision)
        record = read_record(service.store, service.name)
        engine = _settings_of(service, plan, model, record, keeps=False)
        return plan_fleet(service, model, engine, plan.placement, is_only_a_plan=True)
    release = open_in_ledger(service, plan, needs_mirror=True)
    if release.state == "live":
        return release
    with rollback_on_error(service):
        start_replicas(service, release, plan.ready_timeout_seconds)
    return release


def _as_mirrored(hub: Hub, model: Model, plan: FleetPlan) -> Model:
    """With the files alone that a release's plan would have mirrored."""
    if not isinstance(plan, MirrorPlan):
        return model
    return replace(model, files=choose_files(hub, model, **plan.wanted).files)


def _settings_of(
    service: Service, plan: FleetPlan, model: Model, record: ServiceRecord, *, keeps: bool
) -> EngineSettings:
    choice = service.choose_engine(plan.engine_version, plan.engine_flags, plan.engine_environment)
    return resolve_settings(service, plan.repo, model.commit, plan.engine, choice, record, keeps=keeps)


def open_in_ledger(service: Service, plan: FleetPlan, *, needs_mirror: bool = False) -> Release:
    """The release that the plan describes: begun now, taken over from a run that died, or live already.

    Refused, with nothing begun, where what the plan asks for cannot be; where it `needs_mirror`, also without one.
    """
    check_writable(service.store)
    model = look_up(service.hub, plan.repo, plan.revision)
    # A gateway that is down would only be missed once the replicas run.
    read_split(service.gateway, service.name)
    record = read_record(service.store, service.name)
    check_nobody_else_serves(record, service.name, list_servers(service.gateway, service.name))
    check_kind(service.name, record.live, plan.engine.kind)
    engine = _settings_of(service, plan, model, record, keeps=True)
    wanted = release_id(service.name, plan.repo, model.commit, engine)
    is_live = record.live is not None and record.live.id == wanted
    is_on_its_way = record.in_progress is not None and record.in_progress.id == wanted and record.in_progress.stages
    if not is_live and not is_on_its_way:
        # What no cell can hold, or the caps do not allow, would only be found out once the model is mirrored; and of a
        # release that stands ready already, it would be found out by the guard, which ends it.
        as_mirrored = _as_mirrored(service.hub, model, plan)
        plan_fleet(service, as_mirrored, engine, plan.placement, release=wanted, is_only_a_plan=False)
    prefix = mirror_prefix(model.repo, model.commit)
    if needs_mirror and read_manifest(service.store, prefix) is None:
        raise Refused(f"{prefix} is no complete mirror; run mirror-model for {model.repo} first")
    ended = ended_run_of(record.in_progress)
    step = partial(
        open_release,
        service=service.name,
        repo=plan.repo,
        commit=model.commit,
        engine=engine,
        placement=plan.placement,
        run_id=own_run_id(),
        ended_run_id=ended,
        now=datetime.now(UTC),
        installation=service.installation,
    )
    return update_ledger(service.store, service.name, step).release(wanted)
