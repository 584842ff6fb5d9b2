"""Collect garbage: mirrors that no release needs, and uploads that nobody is at."""

import time
from functools import partial

from prefect import flow, get_run_logger

from blocks.stores.mirrors import MIRRORS
from flows.boards.artifacts import show
from flows.boards.collect import mirrors_table
from flows.plans import CollectPlan
from flows.policy.mirrors.collect import Verdict, what_to_collect, which_are_orphans
from flows.steps.service import find_service
from flows.tasks.mirror import abort_upload, delete_mirror, look_what_is_there, read_needed


@flow(name="collect-mirrors", flow_run_name="collect-mirrors-of-{plan.service}")
def collect_mirrors(plan: CollectPlan) -> tuple[Verdict, ...]:
    """Delete what no ledger in the service's stores refers to, but for the newest few; by default only show it."""
    service = find_service(plan.service)
    needed = read_needed(service.stores)
    verdicts = list[Verdict]()
    for store in service.stores:
        mirrors, unfinished, doubts = look_what_is_there(store)
        for doubt in doubts:
            get_run_logger().warning("Nothing of that mirror is deleted: %s", doubt)
        orphans = which_are_orphans(unfinished, time.time(), plan.orphaned_after_hours * 3600)
        in_progress = {
            mirror.prefix
            for mirror in mirrors
            if any(upload.key.startswith(mirror.prefix) for upload in unfinished if upload not in orphans)
        }
        ruled = what_to_collect(mirrors, needed, in_progress, keep_newest=plan.keep_newest)
        home = store.url_of(MIRRORS)
        show(
            f"garbage-{service.name}-{home}",
            partial(mirrors_table, home, ruled, orphans, dry_run=plan.dry_run),
        )
        if not plan.dry_run:
            for verdict in ruled:
                if verdict.delete and not delete_mirror(store, service.stores, verdict.mirror):
                    get_run_logger().info("%s is kept: a release needs it now.", verdict.mirror.prefix)
            for upload in orphans:
                abort_upload(store, upload)
        verdicts += ruled
    return tuple(verdicts)
