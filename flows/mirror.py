"""Mirror a model: from the hub into every store of the service, every byte checked."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, cast

from prefect import flow, get_run_logger
from prefect.futures import wait
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from blocks.errors import SkyferryError
from blocks.ports.hub import Hub, Model
from blocks.ports.store import Store
from blocks.service import Service
from blocks.stores.mirrors import Manifest, MirroredFile, mirror_prefix
from flows.boards.artifacts import show
from flows.boards.mirror import mirror_report
from flows.boards.progress import TransferProgress
from flows.plans import MirrorPlan
from flows.policy.mirrors.mirror import Selection, traffic_words
from flows.steps.service import find_service
from flows.tasks.mirror import check_writable, choose_files, copy_file, look_up, survey, write_manifest
from flows.transfer.transfer import Target, Transfer

FILES_AT_ONCE = 8
"""Workers take parts of so many files in turn; more files at once need no more memory."""


@flow(
    name="mirror-model",
    flow_run_name="mirror-{plan.repo}-at-{plan.revision}",
    task_runner=cast("TaskRunner[Any]", ThreadPoolTaskRunner(max_workers=FILES_AT_ONCE)),  # typed too narrowly there
)
def mirror_model(plan: MirrorPlan) -> Manifest:
    """Copy a model, pinned to its commit, into the stores of a service; does nothing where it is there already.

    A further store that fails drops out and is named, and the others get the whole mirror. Without the service's own
    store the run fails; the next run fills what is missing.
    """
    service = find_service(plan.service)
    model = look_up(service.hub, plan.repo, plan.revision)
    wanted = choose_files(service.hub, model, **plan.wanted)
    model = replace(model, files=wanted.files)
    targets = [_open(store, model, keeps_ledger=store is service.store) for store in service.stores]
    own = targets[0]
    if own.error is None and (lacking := [target for target in targets if target.lacks]):
        words = traffic_words(model.size_bytes, plan.egress_dollars_per_gb)
        get_run_logger().info("Mirroring %.3f GB. %s", model.size_bytes / 1e9, words)
        _fill(service, model, wanted, lacking)
    for target in targets[1:]:
        if target.error is not None:
            get_run_logger().error("%s has no whole mirror: %s", target.name, target.error)
    if own.error is not None:
        raise own.error
    return cast("Manifest", own.manifest)  # a store without an error has one


def _open(store: Store, model: Model, *, keeps_ledger: bool) -> Target:
    """A store that cannot be asked, or written, has dropped out before the first byte."""
    target = Target(store.url_of("").rstrip("/"), store, mirror_prefix(model.repo, model.commit))
    try:
        found = survey(store, model.files, target.prefix)
        if found.lacks:
            check_writable(store, keeps_ledger=keeps_ledger)
    except SkyferryError as error:
        target.error = error
        return target
    for doubt in found.doubts:
        get_run_logger().warning("Another mirror is not copied from: %s", doubt)
    target.manifest, target.lacks, target.there = found.manifest, found.lacks, found.there
    target.held, target.unfinished = found.held, found.unfinished
    return target


def _fill(service: Service, model: Model, wanted: Selection, targets: Sequence[Target]) -> None:
    """Bring every file to where it is missing, and then write the manifests."""
    missing = [file for file in model.files if any(file.path in target.lacks for target in targets)]
    began = time.monotonic()
    with (
        TransferProgress(service.name, model, targets) as progress,
        Transfer(service.hub, model, targets, on_progress=progress.refresh) as transfer,
    ):
        copies = [copy_file.submit(transfer, file) for file in sorted(missing, key=lambda file: -file.size_bytes)]
        wait(copies)
        copied = {file.path: file for copy in copies if (file := copy.result()) is not None}
    for target in targets:
        _publish(service.hub, model, target, copied)
    took = time.monotonic() - began
    show(
        f"mirror-report-{service.name}",
        lambda: mirror_report(model, wanted, targets, took_seconds=took, retries=transfer.retries),
    )


def _publish(hub: Hub, model: Model, target: Target, copied: Mapping[str, MirroredFile]) -> None:
    if target.error is not None:
        return
    named = {} if target.manifest is None else {file.path: file for file in target.manifest.files}
    manifest = Manifest(
        repo=model.repo,
        commit=model.commit,
        license=model.license,
        files=tuple(named.get(file.path) or copied[file.path] for file in model.files),
        source=hub.endpoint,
        mirrored_at=datetime.now(UTC),
        tool=f"skyferry {version('skyferry')}",
    )
    try:
        target.manifest = write_manifest(target.store, target.prefix, manifest)
    except SkyferryError as error:
        target.error = error
