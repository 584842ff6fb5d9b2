"""Provision a fleet: the replicas of a release, ready and known to the gateway, without traffic."""

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pydantic import Field

from blocks.errors import Refused
from blocks.ports.fleet import EngineSettings, ModelKind
from blocks.ports.hub import Hub, Model
from blocks.service import Service
from blocks.stores.mirrors import mirror_prefix
from flows.mirror import MirrorParameters
from flows.policy.placement.plan import Placement, PlacementRules
from flows.policy.releases.installation import check_nobody_else_serves
from flows.policy.releases.kinds import check_kind
from flows.policy.releases.ledger import Release, ServiceRecord, open_release, release_id
from flows.runtime.parameters import ModelParameters, ReadyTimeout, flow_with
from flows.runtime.runs import ended_run_of, own_run_id
from flows.steps.engine import resolve_settings
from flows.steps.place import plan_fleet, start_replicas
from flows.steps.service import open_service
from flows.steps.undo import rollback_on_error
from flows.tasks.gateway import list_servers, read_split
from flows.tasks.ledger import read_record, update_ledger
from flows.tasks.mirror import check_writable, choose_files, look_up, read_manifest


class EngineParameters(ModelParameters):
    """What each replica of a release runs."""

    context_tokens: int = Field(
        default=4096,
        ge=1,
        title="Context window (tokens)",
        description="The longest prompt plus answer that one request may have.",
    )
    parallel_requests: int = Field(
        default=4,
        ge=1,
        title="Parallel requests",
        description="How many requests one replica answers at the same time; further ones wait.",
    )
    kind: ModelKind = Field(
        default="chat",
        title="Kind of model",
        description="What the model is for: chat, completion (it goes on with a text), embedding, or rerank. It is "
        "started, probed and judged as that, and a kind that the model cannot be is refused.",
    )
    ready_timeout_seconds: ReadyTimeout = 1800
    engine_version: str = Field(
        default="",
        title="Engine's version",
        description="For this release, in place of that of the service's engine, such as 0.34.0.",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9.+!_-]*)?$",
    )
    engine_flags: dict[str, Any] = Field(
        default={},
        title="Engine's flags",
        description='For this release, over those of the service\'s engine, such as {"max-num-batched-tokens": 8192}; '
        "null takes one away.",
    )
    engine_environment: dict[str, str] = Field(
        default={},
        title="Engine's environment",
        description="For this release, over that of the service's engine; never a secret, for ledgers show it.",
    )

    @property
    def engine(self) -> EngineSettings:
        return EngineSettings(self.context_tokens, self.parallel_requests, self.kind)


class FleetParameters(PlacementRules, EngineParameters):
    """The replicas of a release: what they run, and where they may, on what, and for how much."""

    @property
    def placement(self) -> PlacementRules:
        return PlacementRules(**self.part(PlacementRules))


class ProvisionParameters(FleetParameters):
    """Start the replicas of a release."""

    plan_only: bool = Field(
        default=False,
        title="Only plan",
        description="Show where the replicas would run and what they would cost, from what the hub says of the model; "
        "start nothing.",
    )


@flow_with(
    ProvisionParameters,
    name="provision-fleet",
    run_name=lambda given: f"provision-{given.model_in_short}-for-{given.service}",
)
def provision_fleet(given: ProvisionParameters) -> Release | Placement:
    """Open a release in the service's free slot and start its replicas where that is best; they get no traffic yet."""
    service = open_service(given.service, only_looks=given.plan_only)
    if given.plan_only:
        model = look_up(service.hub, given.repo, given.revision)
        record = read_record(service.store, service.name)
        engine = _settings_of(service, given, model, record, keeps=False)
        return plan_fleet(service, model, engine, given.placement, is_only_a_plan=True)
    release = open_in_ledger(service, given, needs_mirror=True)
    if release.state == "live":
        return release
    with rollback_on_error(service):
        start_replicas(service, release, given.ready_timeout_seconds)
    return release


def _as_mirrored(hub: Hub, model: Model, given: FleetParameters) -> Model:
    """With the files alone that a release has mirrored."""
    if not isinstance(given, MirrorParameters):
        return model
    return replace(model, files=choose_files(hub, model, **given.wanted).files)


def _settings_of(
    service: Service, given: FleetParameters, model: Model, record: ServiceRecord, *, keeps: bool
) -> EngineSettings:
    choice = service.choose_engine(given.engine_version, given.engine_flags, given.engine_environment)
    return resolve_settings(service, given.repo, model.commit, given.engine, choice, record, keeps=keeps)


def open_in_ledger(service: Service, given: FleetParameters, *, needs_mirror: bool = False) -> Release:
    """The release that is described: begun now, taken over from a run that died, or live already.

    Refused, with nothing begun, where what is asked for cannot be; where it `needs_mirror`, also without one.
    """
    check_writable(service.store)
    model = look_up(service.hub, given.repo, given.revision)
    # A gateway that is down would only be missed once the replicas run.
    read_split(service.gateway, service.name)
    record = read_record(service.store, service.name)
    check_nobody_else_serves(record, service.name, list_servers(service.gateway, service.name))
    check_kind(service.name, record.live, given.engine.kind)
    engine = _settings_of(service, given, model, record, keeps=True)
    wanted = release_id(service.name, given.repo, model.commit, engine)
    is_live = record.live is not None and record.live.id == wanted
    is_on_its_way = record.in_progress is not None and record.in_progress.id == wanted and record.in_progress.stages
    if not is_live and not is_on_its_way:
        # What no cell can hold, or the caps do not allow, would only be found out once the model is mirrored; and of a
        # release that stands ready already, it would be found out by the guard, which ends it.
        as_mirrored = _as_mirrored(service.hub, model, given)
        plan_fleet(service, as_mirrored, engine, given.placement, release=wanted, is_only_a_plan=False)
    prefix = mirror_prefix(model.repo, model.commit)
    if needs_mirror and read_manifest(service.store, prefix) is None:
        raise Refused(f"{prefix} is no complete mirror; run mirror-model for {model.repo} first")
    ended = ended_run_of(record.in_progress)
    step = partial(
        open_release,
        service=service.name,
        repo=given.repo,
        commit=model.commit,
        engine=engine,
        placement=given.placement,
        run_id=own_run_id(),
        ended_run_id=ended,
        now=datetime.now(UTC),
        installation=service.installation,
    )
    return update_ledger(service.store, service.name, step).release(wanted)
