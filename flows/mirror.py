"""Mirror a model: from the hub into the service's store, every byte checked."""

from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, cast

from prefect import flow, get_run_logger
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from blocks.ports import Model
from blocks.service import Service
from flows.plans import MirrorPlan
from flows.policy.ledger import mirror_prefix
from flows.policy.mirror import Manifest, MirroredFile, what_to_copy
from flows.tasks.artifacts import TransferProgress
from flows.tasks.mirror import check_writable, copy_file, list_mirror, look_up, read_manifest, write_manifest
from flows.tasks.service import open_service

FILES_AT_ONCE = 4
"""Each file in transfer may hold several parts in memory."""


@flow(
    name="mirror-model",
    flow_run_name="mirror-{plan.repo}-at-{plan.revision}",
    task_runner=cast("TaskRunner[Any]", ThreadPoolTaskRunner(max_workers=FILES_AT_ONCE)),  # typed too narrowly there
)
def mirror_model(plan: MirrorPlan) -> Manifest:
    """Copy a model, pinned to its commit, into the store of a service; does nothing where it is there already."""
    service = open_service(plan.service)
    model = look_up(service.hub, plan.repo, plan.revision)
    prefix = mirror_prefix(model.repo, model.commit)
    if (standing := read_manifest(service.store, prefix)) is not None:
        get_run_logger().info("The mirror %s is complete already.", prefix)
        return standing
    check_writable(service.store)
    files = _copy(service, model, prefix)
    manifest = Manifest(
        repo=model.repo,
        commit=model.commit,
        license=model.license,
        files=files,
        source=service.hub.endpoint,
        mirrored_at=datetime.now(UTC),
        tool=f"skyferry {version('skyferry')}",
    )
    write_manifest(service.store, prefix, manifest)
    return manifest


def _copy(service: Service, model: Model, prefix: str) -> tuple[MirroredFile, ...]:
    missing = what_to_copy(model, list_mirror(service.store, prefix), prefix)
    with TransferProgress(model, sum(file.size_bytes for file in missing)) as progress:
        futures = [
            copy_file.submit(service.hub, service.store, model, file, prefix + file.path, progress.add)
            for file in missing
        ]
        copied = {future.result().path: future.result() for future in futures}
    return tuple(
        copied.get(file.path) or MirroredFile(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256 or "")
        for file in model.files
    )
