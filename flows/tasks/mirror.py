"""Copy a model from a hub to a store, every byte checked."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import uuid4

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.errors import Conflict
from blocks.ports import MANIFEST, Hub, Model, ModelFile, Records, Store, Unfinished
from flows.policy.ledger import MIRRORS
from flows.policy.mirror import Manifest, MirroredFile, what_to_copy, what_to_resume
from flows.tasks import act
from flows.tasks.transfer import Transfer

MANIFESTS_AT_ONCE = 8


@act(task_run_name="look-up-{repo}")
def look_up(hub: Hub, repo: str, revision: str) -> Model:
    return hub.look_up(repo, revision)


@act(task_run_name="check-that-the-store-can-be-written")
def check_writable(store: Store) -> None:
    """Write and delete a tiny object; Refused where that may not be done."""
    key = f"probe/{uuid4()}"
    try:
        # Nobody else has that name: a conflict is with our own, whose answer was lost.
        with suppress(Conflict):
            store.put(key, b"", replacing=None)
    finally:
        store.delete(key)


@act(task_run_name="read-manifest")
def read_manifest(records: Records, prefix: str) -> Manifest | None:
    found = records.get(prefix + MANIFEST)
    return None if found is None else Manifest.model_validate_json(found.body)


@dataclass(frozen=True)
class Survey:
    """What a store has of a model, and of what can be made the model."""

    manifest: Manifest | None
    lacks: frozenset[str] = frozenset()
    """Paths."""
    held: Mapping[str, str] = field(default_factory=dict)
    """Keys of other mirrors' objects by the sha256 of their content."""
    unfinished: Mapping[str, Unfinished] = field(default_factory=dict)
    """Uploads to go on with, by key."""


@act(task_run_name="survey-{prefix}")
def survey(store: Store, files: Iterable[ModelFile], prefix: str) -> Survey:
    """Find out what is missing; abort uploads that nobody goes on with.

    What the manifest names is there: it was written last.
    """
    found = store.get(prefix + MANIFEST)
    manifest = None if found is None else Manifest.model_validate_json(found.body)
    named = set() if manifest is None else {file.path for file in manifest.files}
    files = [file for file in files if file.path not in named]
    if not files:
        return Survey(manifest)
    there = tuple(store.list(MIRRORS))
    lacking = what_to_copy(files, there, prefix)
    resumption = what_to_resume(store.unfinished(prefix), {prefix + file.path for file in lacking})
    for orphan in resumption.abort:
        store.abort(orphan)
    sizes = {found.key: found.size_bytes for found in there}
    others = [key for key in sizes if key.endswith(f"/{MANIFEST}") and key != prefix + MANIFEST]
    wanted = {file.sha256 for file in lacking if file.sha256 is not None}
    with ThreadPoolExecutor(MANIFESTS_AT_ONCE) as pool:
        manifests = pool.map(store.get, others if wanted else ())
        held = {
            file.sha256: home + file.path
            for home, found in zip((key.removesuffix(MANIFEST) for key in others), manifests, strict=False)
            for file in (Manifest.model_validate_json(found.body).files if found else ())
            if file.sha256 in wanted and sizes.get(home + file.path) == file.size_bytes
        }
    return Survey(
        manifest=manifest,
        lacks=frozenset(file.path for file in lacking),
        held=held,
        unfinished={upload.key: upload for upload in resumption.go_on},
    )


# The transfer tries each part again itself: a second round of the same tries would only be late.
@task(task_run_name="copy-{file.path}", cache_policy=NO_CACHE)
def copy_file(transfer: Transfer, file: ModelFile) -> MirroredFile | None:
    """An object exists only if size and hashes are what the hub says; None where it has been there before."""
    return transfer.copy(file)


@act(task_run_name="write-manifest")
def write_manifest(records: Records, prefix: str, manifest: Manifest) -> Manifest:
    """One that stands already is made larger by what it lacks: another run has written it. Returns what stands."""
    key = prefix + MANIFEST
    try:
        records.put(key, _written(manifest), replacing=None)
    except Conflict:
        standing = records.get(key)
        if standing is None:
            raise
        known = Manifest.model_validate_json(standing.body)
        joined = manifest.joined_with(known)
        if {file.path for file in joined.files} == {file.path for file in known.files}:
            return known
        records.put(key, _written(joined), replacing=standing.etag)
        return joined
    return manifest


def _written(manifest: Manifest) -> bytes:
    return manifest.model_dump_json(indent=1).encode()
