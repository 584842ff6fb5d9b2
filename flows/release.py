"""Release a model: mirror, provision, promote, retire."""

from functools import partial

from prefect import flow, get_run_logger

from blocks.service import Service
from flows.boards.artifacts import show
from flows.boards.release import endpoint_page, release_report
from flows.boards.shown import Page
from flows.mirror import mirror_model
from flows.plans import MirrorPlan, PromotePlan, ProvisionPlan, ReleasePlan
from flows.policy.gating.kinds import limits_for
from flows.policy.releases.differences import release_before
from flows.policy.releases.ledger import Release, ask_for, begin_stopping, owned_by, retire
from flows.promote import limits_of, promote_canary
from flows.provision import open_in_ledger, provision_fleet
from flows.runtime.runs import own_run_id
from flows.runtime.sleep import sleep
from flows.steps.drain import stop_release
from flows.steps.place import start_replicas
from flows.steps.service import open_service
from flows.steps.undo import RolledBack, rollback_on_error, traffic_to_live
from flows.tasks.ledger import read_record, update_ledger

DRAIN_TIMEOUT_SECONDS = 900.0
"""The longest answer that a replaced replica may still be giving."""


@flow(name="release-model", flow_run_name="release-{plan.repo}-at-{plan.revision}-to-{plan.service}")
def release_model(plan: ReleasePlan) -> Release:
    """Give a model to users one stage at a time; whatever fails, they keep the one they have."""
    service = open_service(plan.service)
    # What would be refused then is refused before anything is spent.
    limits_for(plan.kind, limits_of(service, plan), plan.limits)
    release = open_in_ledger(service, plan)
    pinned = plan.model_copy(update={"revision": release.commit})
    try:
        if release.state == "live":
            # It stands already; its replicas may not, after a restart of their machine, nor may its traffic, where the
            # run that made it live was killed or lost the ledger's answer.
            update_ledger(service.store, service.name, partial(ask_for, replicas=None))
            start_replicas(service, release, plan.ready_timeout_seconds)
            if (record := read_record(service.store, service.name)).in_progress is None:
                traffic_to_live(service, record)
        else:
            with rollback_on_error(service):
                mirror_model(pinned.part(MirrorPlan))
                # Rolled back meanwhile, it would be opened anew.
                owned_by(read_record(service.store, service.name), own_run_id())
                provision_fleet(pinned.part(ProvisionPlan))
                promote_canary(pinned.part(PromotePlan))
        retire_the_old(service, plan.keep_warm_seconds)
    except BaseException:
        report(service, release.id)
        raise
    release = read_record(service.store, service.name).release(release.id)
    report(service, release.id)
    if release.state != "live":
        raise RolledBack(f"release {release.id} was live and is {release.state}: {release.closing_reason}")
    return release


def retire_the_old(service: Service, keep_warm_seconds: float) -> None:
    """Stop what the release has replaced, after a time in which a roll-back would find it ready."""
    old = read_record(service.store, service.name).retiring
    if old is not None:
        get_run_logger().info("%s stays warm for %g s.", old.id, keep_warm_seconds)
        sleep(keep_warm_seconds)
        update_ledger(service.store, service.name, partial(begin_stopping, release=old.id))
    for replaced in read_record(service.store, service.name).replaced:
        if replaced.state == "stopping":
            stop_release(service, replaced.id, drain_timeout_seconds=DRAIN_TIMEOUT_SECONDS)
            update_ledger(service.store, service.name, partial(retire, release=replaced.id))


def report(service: Service, release: str) -> None:
    """Show how the release stands, and where users reach it."""

    def written() -> Page:
        record = read_record(service.store, service.name)
        standing = record.release(release)
        return release_report(standing, service.endpoint, release_before(record, standing))

    show(f"release-report-{service.name}", written)
    show(f"endpoint-{service.name}", lambda: endpoint_page(service.name, service.endpoint))
