"""Copy a model from a hub to a store, every byte checked."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast
from uuid import uuid4

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.errors import Conflict, Refused, Unavailable
from blocks.ports import MANIFEST, EngineSettings, Hub, Model, ModelFile, Records, Store, Unfinished
from flows.policy import gguf
from flows.policy.collect import Mirror, manifest_keys, mirrors_in
from flows.policy.ledger import LEDGERS, MIRRORS, ServiceRecord
from flows.policy.mirror import Manifest, MirroredFile, what_to_copy, what_to_resume
from flows.policy.sizing import Need, size_gguf, size_model
from flows.policy.verify import Finding
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
    config = _parsed(repo, CONFIG, _whole(repo, CONFIG, files[CONFIG], read))
    index = _parsed(repo, INDEX, _whole(repo, INDEX, files[INDEX], read)) if INDEX in files else {}
    if QUANTISATION in files and config.get("quantization_config") is None:
        config["quantization_config"] = _parsed(
            repo, QUANTISATION, _whole(repo, QUANTISATION, files[QUANTISATION], read)
        )
    return size_model(config, tuple(files.items()), _total_bytes(index), engine)


CONFIG, INDEX = "config.json", "model.safetensors.index.json"
QUANTISATION = "hf_quant_config.json"
"""Where older versions of ModelOpt say how a model is quantised; vLLM reads it where config.json says nothing."""


LARGEST_TEXT_BYTES = 64 << 20
"""Of what is read into memory to understand it; the largest index of an open model has a few megabytes."""


def _first(chunks: Iterator[bytes], size: int) -> bytes:
    """The beginning of a file, without reading the rest of it."""
    head = bytearray()
    for chunk in chunks:
        head += chunk
        if len(head) >= size:
            break
    return bytes(head[:size])


def _whole(repo: str, path: str, size_bytes: int, read: Callable[[str], Iterator[bytes]]) -> bytes:
    """A small file, to its declared size and no further: who sends more than that may send for ever."""
    if size_bytes > LARGEST_TEXT_BYTES:
        raise Refused(
            f"{path} of {repo} has {size_bytes} bytes, where {LARGEST_TEXT_BYTES} are the most that are read; "
            f"mirror another revision"
        )
    body = _first(read(path), size_bytes)
    if len(body) < size_bytes:
        raise Unavailable(f"{path} of {repo} broke off after {len(body)} of {size_bytes} bytes; try again later")
    return body


def _total_bytes(index: Mapping[str, object]) -> int | None:
    """What a safetensors index says of the weights as they are loaded."""
    about = index.get("metadata")
    total = about.get("total_size") if isinstance(about, Mapping) else None
    # A number that is none, or infinite, says nothing: then the files count.
    try:
        return int(total) if isinstance(total, int | float) and not isinstance(total, bool) else None
    except (ValueError, OverflowError):
        return None  # NaN and infinity


def _parsed(repo: str, path: str, body: bytes) -> dict[str, object]:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path} of {repo} is no JSON ({error}); mirror another revision") from error
    if not isinstance(parsed, dict):
        raise Refused(f"{path} of {repo} is no JSON object; mirror another revision")
    return cast("dict[str, object]", parsed)


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


@act(task_run_name="find-mirrors-of-{repo}")
def find_mirrors(store: Store, repo: str, commit: str | None) -> dict[str, Manifest]:
    """Manifests by prefix; of every commit where none is given."""
    home = f"{MIRRORS}{repo}/{commit or ''}"
    keys = [found.key for found in store.list(home) if found.key.endswith(f"/{MANIFEST}")]
    found = {key.removesuffix(MANIFEST): store.get(key) for key in keys}
    return {prefix: Manifest.model_validate_json(body.body) for prefix, body in found.items() if body is not None}


@act(task_run_name="verify-{key}")
def verify_file(store: Store, key: str, expected_sha256: str) -> Finding:
    """Read the whole object back and hash it."""
    digest = hashlib.sha256()
    try:
        for chunk in store.read(key):
            digest.update(chunk)
    except Refused as error:
        return Finding(store.url_of(""), key, expected_sha256, str(error))
    return Finding(store.url_of(""), key, expected_sha256, digest.hexdigest())


@act(task_run_name="look-what-is-needed")
def look_what_is_there(store: Store) -> tuple[tuple[Mirror, ...], tuple[Unfinished, ...]]:
    """Every mirror of the store, and every upload that is no object yet."""
    there = tuple(store.list(MIRRORS))
    with ThreadPoolExecutor(MANIFESTS_AT_ONCE) as pool:
        keys = manifest_keys(there)
        read = zip(keys, pool.map(store.get, keys), strict=True)
        dates = {
            key.removesuffix(MANIFEST): Manifest.model_validate_json(found.body).mirrored_at.timestamp()
            for key, found in read
            if found is not None
        }
    return mirrors_in(there, dates), store.unfinished(MIRRORS)


@act(task_run_name="read-what-releases-need")
def read_needed(stores: Sequence[Store]) -> frozenset[str]:
    """The prefixes of the mirrors that any release of any ledger in these stores refers to."""
    return _needed(stores)


@act(task_run_name="delete-{mirror.prefix}")
def delete_mirror(store: Store, stores: Sequence[Store], mirror: Mirror) -> bool:
    """The manifest first, so that there is no mirror any more; False where a release has come to need it meanwhile."""
    if mirror.prefix in _needed(stores):
        return False
    store.delete(mirror.prefix + MANIFEST)
    for found in mirror.objects:
        store.delete(found.key)
    return True


@act(task_run_name="list-uploads")
def list_uploads(store: Store) -> tuple[Unfinished, ...]:
    """Every upload of a mirror that is no object yet, the oldest first."""
    return store.unfinished(MIRRORS)


@act(task_run_name="abort-{upload.key}")
def abort_upload(store: Store, upload: Unfinished) -> None:
    store.abort(upload)


def _needed(stores: Sequence[Store]) -> frozenset[str]:
    """A ledger that cannot be read is an error: then nobody knows what is needed."""
    needed = set[str]()
    for store in stores:
        for ledger in store.list(LEDGERS):
            if (found := store.get(ledger.key)) is not None:
                record = ServiceRecord.model_validate_json(found.body)
                needed.update(release.mirror_prefix for release in record.releases)
    return frozenset(needed)


def _written(manifest: Manifest) -> bytes:
    return manifest.model_dump_json(indent=1).encode()
