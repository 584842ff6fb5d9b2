"""Verify a mirror: read it back and compare it with its manifest."""

from dataclasses import replace
from typing import Any, cast

from prefect import flow, get_run_logger
from prefect.futures import PrefectFuture, wait
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from blocks.errors import Refused, SkyferryError, Unavailable
from blocks.ports.store import Store
from blocks.stores.mirrors import MIRRORS
from flows.boards.artifacts import show
from flows.boards.verify import findings_table
from flows.plans import VerifyPlan
from flows.policy.mirrors.verify import Finding, what_is_unread, what_is_wrong, which_to_verify, words_of
from flows.steps.service import find_service
from flows.tasks.mirror import find_mirrors, verify_file

FILES_AT_ONCE = 4


@flow(
    name="verify-mirror",
    flow_run_name="verify-{plan.repo}",
    task_runner=cast("TaskRunner[Any]", ThreadPoolTaskRunner(max_workers=FILES_AT_ONCE)),  # typed too narrowly there
)
def verify_mirror(plan: VerifyPlan) -> tuple[Finding, ...]:
    """Read the mirrors of a model in every store of the service, whole or a sample, from their manifests alone.

    Every file is looked at, whatever is found in another. Refused where a byte is wrong, a file is missing, or a store
    has no mirror of it; Unavailable where all that is wrong is that something could not be read.
    """
    service = find_service(plan.service)
    readings = list[tuple[Finding, PrefectFuture[Finding]]]()
    findings = list[Finding]()
    for store in service.stores:
        mirrors, unreadable = find_mirrors(store, plan.repo, plan.commit)
        findings += unreadable
        if not mirrors and not unreadable:
            findings.append(_none_of(store, plan))
        for prefix, manifest in mirrors.items():
            for file in which_to_verify(manifest, plan.sample_percent, str(flow_run.id)):
                unread = Finding(store.url_of(""), prefix + file.path, file.sha256, "", is_unread=True)
                readings.append((unread, verify_file.submit(store, prefix + file.path, file)))
    wait([reading for _, reading in readings])
    findings += [_found(unread, reading) for unread, reading in readings]
    show(f"verification-{service.name}", lambda: findings_table(findings))
    wrong, unread = what_is_wrong(findings), what_is_unread(findings)
    if wrong or unread:
        raise (Refused if wrong else Unavailable)(words_of(wrong, unread, len(findings)))
    get_run_logger().info("%d files are what was mirrored.", len(findings))
    return tuple(findings)


def _none_of(store: Store, plan: VerifyPlan) -> Finding:
    prefix = f"{MIRRORS}{plan.repo}/{plan.commit or ''}"
    return Finding(store.url_of(""), prefix, "a mirror", "there is none: mirror it first")


def _found(unread: Finding, reading: PrefectFuture[Finding]) -> Finding:
    """One object that cannot be read, however often it was tried, keeps nobody from reading the others."""
    found = reading.result(raise_on_failure=False)
    if isinstance(found, Finding):
        return found
    if isinstance(found, SkyferryError):
        return replace(unread, found=str(found))
    raise found
