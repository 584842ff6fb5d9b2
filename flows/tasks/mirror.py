"""Copy a model from a hub to a store, every byte checked."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import cast
from uuid import uuid4

from prefect import task
from prefect.cache_policies import NO_CACHE

from blocks.errors import Conflict, Refused, Unavailable, Unsupported
from blocks.ports.fleet import EngineSettings
from blocks.ports.hub import Hub, Model, ModelFile
from blocks.ports.store import MANIFEST, MultipartUpload, Store
from blocks.stores.mirrors import MIRRORS, Manifest, MirroredFile, is_manifest, manifest_in, manifest_of
from flows.policy.mirrors.collect import Mirror, mirrors_in
from flows.policy.mirrors.mirror import Selection, what_is_there, what_to_mirror, what_to_resume
from flows.policy.mirrors.verify import Finding
from flows.policy.mirrors.weights import code_named_in, may_name_code
from flows.policy.releases.ledger import LEDGERS, ServiceRecord
from flows.policy.sizing import gguf, mistral
from flows.policy.sizing.sizing import Need, size_gguf, size_model
from flows.runtime.retries import retried_task
from flows.tasks.ledger import document_of
from flows.transfer.read_back import read_back
from flows.transfer.transfer import Transfer

MANIFESTS_AT_ONCE = 8


@retried_task(task_run_name="look-up-{repo}")
def look_up(hub: Hub, repo: str, revision: str) -> Model:
    return hub.look_up(repo, revision)


@retried_task(task_run_name="check-that-the-store-can-be-written")
def check_writable(store: Store, *, keeps_ledger: bool = True) -> None:
    """Write and delete a tiny object; Refused where that may not be done, or not as the ledger needs it."""
    key = f"probe/{uuid4()}"
    try:
        if keeps_ledger:
            # Nobody else has that name: a conflict is with our own, whose answer was lost.
            with suppress(Conflict):
                store.put(key, b"", replacing=None)
        else:
            store.write(key, b"")
    finally:
        store.delete(key)


@retried_task(task_run_name="read-manifest")
def read_manifest(store: Store, prefix: str) -> Manifest | None:
    return manifest_of(store, prefix)


@retried_task(task_run_name="size-up-{repo}")
def size_up(
    repo: str, files: Mapping[str, int], read: Callable[[str], Iterator[bytes]], engine: EngineSettings
) -> Need:
    """How much memory a replica of the model needs, from what its own files say; `files` are sizes in bytes by path.

    Refused where they do not say it: a model without config.json that is no single GGUF file, or one that vLLM and
    llama.cpp would each read by other files.
    """
    if choices := [path for path in files if path.endswith(".gguf")]:
        if len(choices) > 1:
            raise Refused(f"{repo} holds {len(choices)} GGUF files, {', '.join(choices)}; choose a repository with one")
        if CONFIG in files and (others := [path for path in files if path.endswith(".safetensors")]):
            raise Refused(
                f"{repo} holds {choices[0]}, which llama.cpp serves, and {others[0]}, which vLLM serves, and what it"
                " needs is another thing for each; ignore *.gguf or *.safetensors"
            )
        wanted = min(gguf.ENOUGH_BYTES, files[choices[0]])
        header = _first(read(choices[0]), wanted)
        if len(header) < wanted:
            raise Unavailable(f"{choices[0]} of {repo} broke off after {len(header)} of the first {wanted} bytes")
        return size_gguf(header, files[choices[0]], engine)

    def parsed(path: str) -> dict[str, object]:
        return _parsed(repo, path, _whole(repo, path, files[path], read)) if path in files else {}

    is_mistrals = mistral.PARAMS in files and any(map(mistral.is_in_own_form, files))
    if CONFIG not in files and not is_mistrals:
        raise Refused(f"{repo} has no {CONFIG}, so nobody knows what it needs; choose a model that has one, or a GGUF")
    config: Mapping[str, object] = parsed(CONFIG)
    if is_mistrals:
        config = mistral.config_of(parsed(mistral.PARAMS), config)
    if config.get("quantization_config") is None and QUANTISATION in files:
        config = {**config, "quantization_config": parsed(QUANTISATION)}
    # vLLM takes an embedding model to end there, whatever positions its config.json has.
    if longest := parsed(SENTENCES).get("max_seq_length"):
        config = {**config, "max_seq_length": longest}
    index = parsed(INDEX)
    return size_model(config, tuple(files.items()), _total_bytes(index), engine, _files_in(index))


CONFIG, INDEX = "config.json", "model.safetensors.index.json"
QUANTISATION = "hf_quant_config.json"
"""Where older versions of ModelOpt say how a model is quantised; vLLM reads it where config.json says nothing."""

SENTENCES = "sentence_bert_config.json"
"""Where sentence-transformers says how long an input may be."""


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


@retried_task(task_run_name="choose-files-of-{model.repo}")
def choose_files(
    hub: Hub,
    model: Model,
    *,
    allow: Sequence[str] = (),
    ignore: Sequence[str] = (),
    pickle_weights: bool = False,
    python_code: bool = False,
) -> Selection:
    """As `what_to_mirror`; a model whose configs name code is Refused too, unless `python_code` asks for it."""
    wanted = what_to_mirror(model, allow=allow, ignore=ignore, pickle_weights=pickle_weights, python_code=python_code)
    named = tuple(words for file in wanted.files if may_name_code(file.path) for words in _code_in(hub, model, file))
    if named and not python_code:
        raise Refused(
            f"{model.repo} names code that is to run beside the engine's own: {'; '.join(named)}; set python_code if "
            f"you trust its maker with that, and ignore *.py if your engine knows the model without it"
        )
    return replace(wanted, code=(*wanted.code, *named))


def _code_in(hub: Hub, model: Model, file: ModelFile) -> list[str]:
    """What a config says of code; read to the hash that it will be mirrored by, so that it is what was looked at."""
    body = _whole(model.repo, file.path, file.size_bytes, lambda _: hub.read(model, file))
    if (_git_sha1(body) != file.git_sha1) if file.sha256 is None else (hashlib.sha256(body).hexdigest() != file.sha256):
        raise Unavailable(f"{file.path} of {model.repo} came with another hash than the hub promises; try again later")
    return [f"{file.path} ({words})" for words in code_named_in(_parsed(model.repo, file.path, body))]


def _git_sha1(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()


def _total_bytes(index: Mapping[str, object]) -> int | None:
    """What a safetensors index says of the weights as they are loaded."""
    about = index.get("metadata")
    total = about.get("total_size") if isinstance(about, Mapping) else None
    # A number that is none, or infinite, says nothing: then the files count.
    try:
        return int(total) if isinstance(total, int | float) and not isinstance(total, bool) else None
    except (ValueError, OverflowError):
        return None  # NaN and infinity


def _files_in(index: Mapping[str, object]) -> frozenset[str]:
    """Which files a safetensors index says that the weights lie in."""
    said = index.get("weight_map")
    return frozenset(map(str, said.values())) if isinstance(said, Mapping) else frozenset()


def _parsed(repo: str, path: str, body: bytes) -> dict[str, object]:
    try:
        # In no other alphabet and without a mark before it: engines read it so.
        parsed = json.loads(body.decode())
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
    """Paths that no manifest names, or at which what it names is not."""
    there: frozenset[str] = frozenset()
    """Those of them that something of the right size lies at, which nobody vouches for."""
    held: Mapping[str, str] = field(default_factory=dict)
    """Keys of other mirrors' objects by the sha256 of their content."""
    unfinished: Mapping[str, MultipartUpload] = field(default_factory=dict)
    """Uploads to go on with, by key."""
    doubts: tuple[str, ...] = ()
    """What was found beside it that cannot be used, and is nobody's harm."""


@retried_task(task_run_name="survey-{prefix}")
def survey(store: Store, files: Iterable[ModelFile], prefix: str) -> Survey:
    """Find out what is missing; abort uploads that nobody goes on with.

    What the manifest names is there, unless it is not listed: somebody may have deleted it since.
    """
    manifest = manifest_of(store, prefix)
    files, whole = tuple(files), set[str]()
    if manifest is not None:
        manifest.check_against(files)
        whole = {file.path for file in manifest.files} - manifest.lost_in(store.list(prefix))
    lacking = [file for file in files if file.path not in whole]
    if not lacking:
        return Survey(manifest)
    objects = tuple(store.list(MIRRORS))
    there = what_is_there(lacking, objects, prefix)
    resumption = what_to_resume(
        store.unfinished(prefix), {prefix + file.path for file in lacking if file.path not in there}
    )
    for orphan in resumption.abort:
        store.abort(orphan)
    sizes = {found.key: found.size_bytes for found in objects}
    wanted = {file.sha256: file.size_bytes for file in lacking if file.sha256 is not None}
    others, doubts = _manifests(store, [key for key in sizes if key != prefix + MANIFEST] if wanted else ())
    held = {
        file.sha256: home + file.path
        for home, other in others.items()
        for file in other.files
        if wanted.get(file.sha256) == file.size_bytes == sizes.get(home + file.path)
    }
    return Survey(
        manifest=manifest,
        lacks=frozenset(file.path for file in lacking),
        there=there,
        held=held,
        unfinished={upload.key: upload for upload in resumption.go_on},
        doubts=doubts,
    )


def _manifests(store: Store, keys: Iterable[str]) -> tuple[dict[str, Manifest], tuple[str, ...]]:
    """The manifests among these objects, by their mirrors' prefixes, and what is wrong with those that are none."""
    keys = [key for key in keys if is_manifest(key)]
    with ThreadPoolExecutor(MANIFESTS_AT_ONCE) as pool:
        bodies = dict(zip(keys, pool.map(store.get, keys), strict=True))
    manifests, doubts = dict[str, Manifest](), list[str]()
    for key, found in bodies.items():
        if found is None:
            continue  # deleted meanwhile
        prefix = key.removesuffix(MANIFEST)
        try:
            manifests[prefix] = manifest_in(found.body, prefix, store.url_of(key))
        except Refused as error:
            doubts.append(str(error))
    return manifests, tuple(doubts)


# The transfer tries each part again itself: a second round of the same tries would only be late.
@task(task_run_name="copy-{file.path}", cache_policy=NO_CACHE)
def copy_file(transfer: Transfer, file: ModelFile) -> MirroredFile | None:
    """An object exists only if size and hashes are what the hub says; None where it has been there before."""
    return transfer.copy(file)


@retried_task(task_run_name="write-manifest")
def write_manifest(store: Store, prefix: str, manifest: Manifest) -> Manifest:
    """One that stands already is made larger by what it lacks: another run has written it. Returns what stands.

    A store without conditional writes gets it all the same: two runs that write at once there write the same files,
    and what one of them left out is mirrored by the next.
    """
    key = prefix + MANIFEST
    standing = store.get(key)
    known = None if standing is None else manifest_in(standing.body, prefix, store.url_of(key))
    joined = manifest if known is None else manifest.joined_with(known)
    _check_that_all_is_listed(store, manifest)
    if known is not None and {file.path for file in joined.files} == {file.path for file in known.files}:
        return known
    body = joined.model_dump_json(indent=1).encode()
    try:
        store.put(key, body, replacing=None if standing is None else standing.etag)
    except Conflict as error:
        raise Unavailable(f"{store.url_of(key)} was written by another run just now; look at it again") from error
    except Unsupported:
        store.write(key, body)
    try:
        _check_that_all_is_listed(store, manifest)
    except Unavailable:
        store.delete(key)  # it was collected while it was written
        raise
    return joined


def _check_that_all_is_listed(store: Store, manifest: Manifest) -> None:
    if lost := sorted(manifest.lost_in(store.list(manifest.prefix))):
        raise Unavailable(
            f"{store.url_of(manifest.prefix)} does not list {len(lost)} of {len(manifest.files)} files as they were "
            f"written, such as {lost[0]}; mirror it again, and if that stays so, the store takes names for one that "
            f"differ by case or accents alone, or somebody deletes there: ignore one of the files, or use another store"
        )


@retried_task(task_run_name="find-mirrors-of-{repo}")
def find_mirrors(store: Store, repo: str, commit: str | None) -> tuple[dict[str, Manifest], tuple[Finding, ...]]:
    """Manifests by prefix; of every commit where none is given. What cannot be read as one is a finding."""
    home = f"{MIRRORS}{repo}/{commit or ''}"
    found, doubts = _manifests(store, [found.key for found in store.list(home)])
    return found, tuple(Finding(store.url_of(""), home, "a manifest", doubt) for doubt in doubts)


@retried_task(task_run_name="verify-{key}")
def verify_file(store: Store, key: str, file: MirroredFile) -> Finding:
    """Read the whole object back and hash it."""
    is_unread = False
    try:
        found = read_back(store, key, file.size_bytes)
    except Refused as error:
        # One that is there, and may not be read, or not at once, as from an archive, says nothing against its bytes.
        found, is_unread = str(error), any(one.key == key for one in store.list(key))
    return Finding(store.url_of(""), key, file.sha256, found, is_unread)


@retried_task(task_run_name="look-what-is-needed")
def look_what_is_there(store: Store) -> tuple[tuple[Mirror, ...], tuple[MultipartUpload, ...], tuple[str, ...]]:
    """Every mirror of the store, every upload that is no object yet, and what is wrong with manifests that are none."""
    there = tuple(store.list(MIRRORS))
    manifests, doubts = _manifests(store, [found.key for found in there])
    dates = {prefix: manifest.mirrored_at.timestamp() for prefix, manifest in manifests.items()}
    return mirrors_in(there, dates), store.unfinished(MIRRORS), doubts


@retried_task(task_run_name="read-what-releases-need")
def read_needed(stores: Sequence[Store]) -> frozenset[str]:
    """The prefixes of the mirrors that any release of any ledger in these stores refers to."""
    return _needed(stores)


@retried_task(task_run_name="delete-{mirror.prefix}")
def delete_mirror(store: Store, stores: Sequence[Store], mirror: Mirror) -> bool:
    """The manifest first, so that there is no mirror any more; False where a release has come to need it meanwhile.

    A run that mirrors it at this moment may have believed what is gone now: then its manifest goes too.
    """
    if mirror.prefix in _needed(stores):
        return False
    store.delete(mirror.prefix + MANIFEST)
    for found in mirror.objects:
        store.delete(found.key)
    if (new := manifest_of(store, mirror.prefix)) is not None and new.lost_in(store.list(mirror.prefix)):
        store.delete(mirror.prefix + MANIFEST)
    return True


@retried_task(task_run_name="list-uploads")
def list_uploads(store: Store) -> tuple[MultipartUpload, ...]:
    """Every upload of a mirror that is no object yet, the oldest first."""
    return store.unfinished(MIRRORS)


@retried_task(task_run_name="abort-{upload.key}")
def abort_upload(store: Store, upload: MultipartUpload) -> None:
    store.abort(upload)


def _needed(stores: Sequence[Store]) -> frozenset[str]:
    """A ledger that cannot be read is an error: then nobody knows what is needed."""
    needed = set[str]()
    for store in stores:
        for ledger in store.list(LEDGERS):
            record = document_of(store, ledger.key, ServiceRecord)  # deleted meanwhile, it needs nothing
            needed.update(release.mirror_prefix for release in record.releases)
    return frozenset(needed)
