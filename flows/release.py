"""Release a model: mirror, provision, promote, retire."""

from functools import partial

from pydantic import Field

from blocks.service import Service
from flows.boards.artifacts import show
from flows.boards.release import endpoint_page, release_report
from flows.boards.shown import Page
from flows.mirror import MirrorParameters, mirror_model
from flows.policy.gating.kinds import limits_for
from flows.policy.releases.differences import release_before
from flows.policy.releases.ledger import Release, ask_for, owned_by
from flows.promote import PromoteParameters, limits_of, promote_canary
from flows.provision import EngineParameters, FleetParameters, ProvisionParameters, open_in_ledger, provision_fleet
from flows.runtime.parameters import flow_with
from flows.runtime.runs import own_run_id
from flows.steps.place import start_replicas
from flows.steps.retire import retire_what_was_replaced
from flows.steps.service import open_service
from flows.steps.undo import RolledBack, rollback_on_error, traffic_to_live
from flows.tasks.ledger import read_record, update_ledger


class ReleaseParameters(MirrorParameters, FleetParameters, PromoteParameters, EngineParameters):
    """The whole chain: mirror, provision, promote, and retire what was there before.

    The form shows the bases' fields from the last base to the first: what is changed most often comes first.
    """

    keep_warm_seconds: float = Field(
        default=900,
        ge=0,
        title="Keep the old fleet warm (seconds)",
        description="The replaced release stays ready to take the traffic back for this long before it is stopped.",
    )


@flow_with(
    ReleaseParameters,
    name="release-model",
    run_name=lambda given: f"release-{given.model_in_short}-to-{given.service}",
)
def release_model(given: ReleaseParameters) -> Release:
    """Give a model to users one stage at a time; whatever fails, they keep the one they have."""
    service = open_service(given.service)
    # What would be refused then is refused before anything is spent.
    limits_for(given.kind, limits_of(service, given), given.limits)
    release = open_in_ledger(service, given)
    try:
        if release.state == "live":
            # It stands already; its replicas may not, after a restart of their machine, nor may its traffic, where the
            # run that made it live was killed or lost the ledger's answer.
            update_ledger(service.store, service.name, partial(ask_for, replicas=None))
            start_replicas(service, release, given.ready_timeout_seconds)
            if (record := read_record(service.store, service.name)).in_progress is None:
                traffic_to_live(service, record)
        else:
            with rollback_on_error(service):
                mirror_model(**given.part(MirrorParameters, revision=release.commit))
                # Rolled back meanwhile, it would be opened anew.
                owned_by(read_record(service.store, service.name), own_run_id())
                provision_fleet(**given.part(ProvisionParameters, revision=release.commit))
                promote_canary(**given.part(PromoteParameters))
        retire_what_was_replaced(service, given.keep_warm_seconds)
    except BaseException:
        report(service, release.id)
        raise
    release = read_record(service.store, service.name).release(release.id)
    report(service, release.id)
    if release.state != "live":
        raise RolledBack(f"release {release.id} was live and is {release.state}: {release.closing_reason}")
    return release


def report(service: Service, release: str) -> None:
    """Show how the release stands, and where users reach it."""

    def written() -> Page:
        record = read_record(service.store, service.name)
        standing = record.release(release)
        return release_report(standing, service.endpoint, release_before(record, standing))

    show(f"release-report-{service.name}", written)
    show(f"endpoint-{service.name}", lambda: endpoint_page(service.name, service.endpoint))
