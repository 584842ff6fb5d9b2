"""Copy a model from a hub to a store, every byte checked."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import cast
from uuid import uuid4

from blocks.errors import Conflict, Refused, Unavailable
from blocks.ports import MANIFEST, EngineSettings, Hub, Model, ModelFile, Objects, Records, Store, StoredObject
from flows.policy import gguf
from flows.policy.mirror import Manifest, MirroredFile
from flows.policy.sizing import Need, size_gguf, size_model
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


@act(task_run_name="size-up-{repo}")
def size_up(
    repo: str, files: Mapping[str, int], read: Callable[[str], Iterator[bytes]], engine: EngineSettings
) -> Need:
    """How much memory a replica of the model needs, from what its own files say; `files` are sizes in bytes by path.

    Refused where they do not say it: a model without config.json that is no single GGUF file.
    """
    if choices := [path for path in files if path.endswith(".gguf")]:
        if len(choices) > 1:
            raise Refused(f"{repo} holds {len(choices)} GGUF files, {', '.join(choices)}; choose a repository with one")
        wanted = min(gguf.ENOUGH_BYTES, files[choices[0]])
        header = _first(read(choices[0]), wanted)
        if len(header) < wanted:
            raise Unavailable(f"{choices[0]} of {repo} broke off after {len(header)} of the first {wanted} bytes")
        return size_gguf(header, files[choices[0]], engine)
    if CONFIG not in files:
        raise Refused(f"{repo} has no {CONFIG}, so nobody knows what it needs; choose a model that has one, or a GGUF")
    config = _parsed(repo, CONFIG, b"".join(read(CONFIG)))
    index = _parsed(repo, INDEX, b"".join(read(INDEX))) if INDEX in files else {}
    return size_model(config, tuple(files.items()), _total_bytes(index), engine)


CONFIG, INDEX = "config.json", "model.safetensors.index.json"


def _first(chunks: Iterator[bytes], size: int) -> bytes:
    """The beginning of a file, without reading the rest of it."""
    head = bytearray()
    for chunk in chunks:
        head += chunk
        if len(head) >= size:
            break
    return bytes(head)


def _total_bytes(index: Mapping[str, object]) -> int | None:
    """What a safetensors index says of the weights as they are loaded."""
    about = index.get("metadata")
    total = about.get("total_size") if isinstance(about, Mapping) else None
    return int(total) if isinstance(total, int | float) else None


def _parsed(repo: str, path: str, body: bytes) -> dict[str, object]:
    try:
        parsed = json.loads(body)
    except ValueError as error:
        raise Refused(f"{path} of {repo} is no JSON ({error}); mirror another revision") from error
    if not isinstance(parsed, dict):
        raise Refused(f"{path} of {repo} is no JSON object; mirror another revision")
    return cast("dict[str, object]", parsed)


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
