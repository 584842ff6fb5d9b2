"""Which engine a release is started with: all of it recorded, so that blocks may change behind its back."""

from dataclasses import replace

from prefect import get_run_logger

from blocks.errors import SkyferryError
from blocks.ports.fleet import EngineChoice, EngineSettings, ResolvedEngine
from blocks.service import Service
from blocks.stores.kept import ENGINES
from flows.policy.releases.ledger import ServiceRecord, earlier_builds, is_standing_unrecorded, opened_by, release_id
from flows.runtime.runs import own_run_id
from flows.tasks.fleet import keep_engine, resolve_engine


def resolve_settings(
    service: Service,
    repo: str,
    commit: str,
    settings: EngineSettings,
    choice: EngineChoice | None,
    record: ServiceRecord,
    *,
    keeps: bool,
) -> EngineSettings:
    """These settings with the engine that the release records; where it `keeps`, what that names is in the store.

    Without a choice it is the fleet's own. Refused, with nothing kept, where the fleet cannot have that engine, or its
    flags are not as they have to be.
    """
    if (own := opened_by(record, own_run_id(), repo, commit, settings)) is not None:
        return own.engine
    if choice is None and is_standing_unrecorded(record, release_id(service.name, repo, commit, settings)):
        return settings
    resolved = resolve_engine(service.fleet, choice or EngineChoice(), earlier_builds(record))
    for warning in resolved.warnings:
        get_run_logger().warning("%s.", warning)
    if keeps:
        keep_engine(service.store, resolved.texts)
        _keep_elsewhere(service, resolved)
    return replace(settings, build=resolved.build)


def _keep_elsewhere(service: Service, resolved: ResolvedEngine) -> None:
    """In the further stores too, one of which may be the fleet's; one that drops out is told, as with mirrors."""
    for store in service.further_stores if resolved.texts else ():
        try:
            keep_engine(store, resolved.texts)
        except SkyferryError as error:
            get_run_logger().warning("%s does not keep the engine: %s", store.url_of(ENGINES), error)
