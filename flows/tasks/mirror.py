"""Copy a model from a hub to a store, every byte checked."""

import hashlib
from collections.abc import Callable, Iterator
from uuid import uuid4

from blocks.errors import Conflict, Refused, Unavailable
from blocks.ports import MANIFEST, Hub, Model, ModelFile, Objects, Records, Store, StoredObject
from flows.policy.mirror import Manifest, MirroredFile
from flows.tasks import act


@act(task_run_name="look-up-{repo}")
def look_up(hub: Hub, repo: str, revision: str) -> Model:
    return hub.look_up(repo, revision)


@act(task_run_name="check-that-the-store-can-be-written")
def check_writable(store: Store) -> None:
    """Write and delete a tiny object; Refused where that may not be done."""
    key = f"probe/{uuid4()}"
    try:
        store.put(key, b"", replacing=None)
    except Conflict:
        pass  # nobody else has that name: this is our own, whose answer was lost
    finally:
        store.delete(key)


@act(task_run_name="read-manifest")
def read_manifest(records: Records, prefix: str) -> Manifest | None:
    found = records.get(prefix + MANIFEST)
    return None if found is None else Manifest.model_validate_json(found.body)


@act(task_run_name="list-mirror")
def list_mirror(objects: Objects, prefix: str) -> tuple[StoredObject, ...]:
    return tuple(objects.list(prefix))


@act(task_run_name="copy-{file.path}")
def copy_file(
    hub: Hub, objects: Objects, model: Model, file: ModelFile, key: str, progress: Callable[[int], None]
) -> MirroredFile:
    """The object exists only if size and hashes are what the hub says."""
    sha256 = hashlib.sha256()
    with objects.upload(key, file.size_bytes) as upload:
        for chunk in _verified(hub.read(model, file), file):
            sha256.update(chunk)
            upload.write(chunk)
            progress(len(chunk))
    return MirroredFile(path=file.path, size_bytes=file.size_bytes, sha256=sha256.hexdigest())


@act(task_run_name="write-manifest")
def write_manifest(records: Records, prefix: str, manifest: Manifest) -> None:
    """One that stands already is as good if it lists the same files: another run has written it."""
    try:
        records.put(prefix + MANIFEST, manifest.model_dump_json(indent=1).encode(), replacing=None)
    except Conflict as error:
        standing = records.get(prefix + MANIFEST)
        if standing is None or Manifest.model_validate_json(standing.body).files != manifest.files:
            raise Refused(
                f"{prefix}{MANIFEST} stands already and lists other files; delete that mirror first"
            ) from error


def _verified(chunks: Iterator[bytes], file: ModelFile) -> Iterator[bytes]:
    """Pass the chunks on; raise at the end, before the upload is completed, where they were not the file."""
    if file.sha256 is not None:
        digest, expected, name = hashlib.sha256(), file.sha256, "sha256"
    else:
        digest = hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)
        expected, name = file.git_sha1, "git sha1"
    size = 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
        yield chunk
    if size < file.size_bytes:
        raise Unavailable(f"{file.path}: the hub sent {size} of {file.size_bytes} bytes and stopped")
    if digest.hexdigest() != expected:
        raise Refused(
            f"{file.path}: {name} is {digest.hexdigest()} where the hub promises {expected}; "
            f"nothing was published; ask the hub's owner, or mirror another revision"
        )
