"""A whole mirror without Prefect: what the flow does, in a process that can be killed."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from unittest.mock import patch

from pydantic import SecretStr

from blocks.hubs.hugging_face import HuggingFaceHub
from blocks.ports.hub import Hub, Model
from blocks.ports.store import Store
from blocks.stores.mirrors import Manifest, mirror_prefix
from blocks.stores.s3 import S3Store
from flows.runtime.retry_policy import RetryPolicy
from flows.tasks.mirror import survey, write_manifest
from flows.transfer.transfer import Target, Transfer

PART_BYTES = 5 << 20
"""The smallest part that S3 takes, so that files of several parts are soon copied."""
QUICK = RetryPolicy(first_wait_seconds=0.01, longest_wait_seconds=0.05)


def opened(store: Store, model: Model) -> Target:
    prefix = mirror_prefix(model.repo, model.commit)
    # Tried again as the flow's tasks are.
    found = QUICK.try_to("survey", lambda: survey.fn(store, model.files, prefix))
    return Target(
        store.url_of(""),
        store,
        mirror_prefix(model.repo, model.commit),
        manifest=found.manifest,
        lacks=found.lacks,
        there=found.there,
        held=found.held,
        unfinished=found.unfinished,
    )


def mirror(hub: Hub, stores: Sequence[Store], repo: str, revision: str = "main", *, workers: int = 4) -> list[Target]:
    """Raises what the hub says, and what a store says where none is left."""
    model = hub.look_up(repo, revision)
    targets = [opened(store, model) for store in stores]
    missing = [file for file in model.files if any(file.path in target.lacks for target in targets)]
    if not missing:
        return targets
    with (
        patch("flows.policy.mirrors.mirror.PART_BYTES", PART_BYTES),
        Transfer(hub, model, targets, patience=QUICK, workers=workers) as transfer,
        ThreadPoolExecutor(8) as pool,
    ):
        copied = {file.path: file for file in pool.map(transfer.copy, missing) if file is not None}
    named = {file.path: file for target in targets if target.manifest for file in target.manifest.files}
    files = tuple(copied.get(file.path) or named[file.path] for file in model.files)
    manifest = Manifest(
        repo=repo,
        commit=model.commit,
        license=model.license,
        files=files,
        source=hub.endpoint,
        mirrored_at=datetime.now(UTC),
        tool="tests",
    )
    for target in targets:
        if target.error is None:
            target.manifest = QUICK.try_to(
                "write the manifest", lambda target=target: write_manifest.fn(target.store, target.prefix, manifest)
            )
    return targets


if __name__ == "__main__":
    mirror(
        HuggingFaceHub(endpoint=os.environ["HUB"]),
        [
            S3Store(
                bucket=os.environ["BUCKET"],
                endpoint_url=os.environ["STORE"],
                access_key_id=os.environ["ACCESS_KEY_ID"],
                secret_access_key=SecretStr(os.environ["SECRET_ACCESS_KEY"]),
            )
        ],
        os.environ["REPO"],
    )


def manifest_of_nothing(prefix: str) -> bytes:
    """Of a whole mirror without files, below that prefix."""
    _, maker, name, commit, _ = prefix.split("/")
    manifest = Manifest(
        repo=f"{maker}/{name}",
        commit=commit,
        license=None,
        files=(),
        source="tests",
        mirrored_at=datetime(2026, 1, 1, tzinfo=UTC),
        tool="tests",
    )
    return manifest.model_dump_json().encode()
