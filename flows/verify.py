"""Verify a mirror: read it back and compare it with its manifest."""

from typing import Any, cast

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.futures import wait
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from blocks.errors import Refused
from flows.boards import verification_table
from flows.plans import VerifyPlan
from flows.policy.verify import Finding, what_is_wrong, which_to_verify
from flows.tasks.artifacts import only_for_show
from flows.tasks.mirror import find_mirrors, verify_file
from flows.tasks.service import find_service

FILES_AT_ONCE = 4


@flow(
    name="verify-mirror",
    flow_run_name="verify-{plan.repo}",
    task_runner=cast("TaskRunner[Any]", ThreadPoolTaskRunner(max_workers=FILES_AT_ONCE)),  # typed too narrowly there
)
def verify_mirror(plan: VerifyPlan) -> tuple[Finding, ...]:
    """Read the mirrors of a model in every store of the service, whole or a sample, from their manifests alone.

    Refused where a byte is wrong, a file is missing, or a store has no mirror of it.
    """
    service = find_service(plan.service)
    readings = []
    for store in service.stores:
        mirrors = find_mirrors(store, plan.repo, plan.commit)
        if not mirrors:
            raise Refused(f"{store.url_of('')} has no mirror of {plan.repo} {plan.commit or ''}; mirror it first")
        for prefix, manifest in mirrors.items():
            chosen = which_to_verify(manifest, plan.sample_percent, str(flow_run.id))
            readings += [verify_file.submit(store, prefix + file.path, file.sha256) for file in chosen]
    wait(readings)
    findings = tuple(reading.result() for reading in readings)
    with only_for_show():
        create_markdown_artifact(verification_table(findings), key=f"verification-{service.name}")
    if wrong := what_is_wrong(findings):
        named = "; ".join(f"{one.store}{one.key}: {one.found} where the manifest says {one.expected}" for one in wrong)
        raise Refused(
            f"{len(wrong)} of {len(findings)} files are not what was mirrored: {named}; delete and mirror anew"
        )
    get_run_logger().info("%d files are what was mirrored.", len(findings))
    return findings
