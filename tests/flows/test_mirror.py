"""Mirroring into several stores, verifying what is there, and collecting what nobody needs, as flows."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from pydantic import SecretStr

from blocks.errors import Refused, SkyferryError, Unavailable
from blocks.haproxy.gateway import HAProxyGateway
from blocks.hubs.hugging_face import HuggingFaceHub
from blocks.local.fleet import LocalFleet
from blocks.ports.fleet import EngineSettings
from blocks.ports.hub import Model, ModelFile
from blocks.ports.store import MultipartUpload
from blocks.service import Service
from blocks.skypilot.fleet import SkyPilotFleet
from blocks.stores.directory import DirectoryStore
from blocks.stores.google_storage import GoogleStore
from blocks.stores.mirrors import MIRRORS
from blocks.stores.s3 import S3Store
from flows.boards.artifacts import wait_until_shown
from flows.boards.progress import TransferProgress
from flows.collect import collect_mirrors
from flows.mirror import mirror_model
from flows.policy.releases.installation import INSTALLATION_KEY
from flows.policy.releases.ledger import Release, ServiceRecord, ledger_key, mirror_prefix
from flows.reap import reap_orphans
from flows.transfer.transfer import Target
from flows.verify import verify_mirror
from tests.fakes.hub import FakeHub
from tests.fakes.store import FakeStore
from tests.flows.conftest import REPO, World

MANIFEST = "skyferry-manifest.json"


def mirror(revision: str = "v1", **settings: Any) -> str:
    manifest = mirror_model(service="chat", repo=REPO, revision=revision, **settings)
    return mirror_prefix(manifest.repo, manifest.commit)


@pytest.fixture
def further(world: World) -> FakeStore:
    store = FakeStore(provider="further")
    world.service.further_stores = [store]  # pyright: ignore[reportAttributeAccessIssue] - a fake comes in unvalidated
    return store


def test_every_store_gets_the_mirror(world: World, further: FakeStore) -> None:
    """The same objects and a manifest each."""
    mirror()
    assert set(world.store.objects) - {INSTALLATION_KEY} == set(further.objects)
    assert {path.rpartition("/")[2] for path in further.objects} == {"model.gguf", "README.md", MANIFEST}


def test_a_further_store_that_may_not_be_written_drops_out(world: World, further: FakeStore) -> None:
    """The service has its mirror all the same, and the next run fills the other store alone."""
    further.refuses_writes = True
    prefix = mirror()
    assert prefix + MANIFEST in world.store.objects
    assert further.objects == {}
    further.refuses_writes = False
    before = dict(world.store.objects)
    mirror()
    assert world.store.objects == before
    assert set(further.objects) == set(before) - {INSTALLATION_KEY}


@pytest.mark.usefixtures("further")
def test_without_the_services_own_store_the_run_fails(world: World) -> None:
    """It holds the ledger and what replicas load: the others alone are no success."""
    world.store.refuses_writes = True
    with pytest.raises(Refused, match="may only be read"):
        mirror()


@pytest.mark.usefixtures("world")
def test_what_is_shown_names_the_service() -> None:
    """Two services that mirror into one store do not write over each other's progress."""
    mirror()
    wait_until_shown()
    with get_client(sync_client=True) as client:
        shown = {artifact.key: artifact.description or "" for artifact in client.read_artifacts()}
    assert {"mirror-progress-chat-s3-fake", "mirror-report-chat"} <= shown.keys()
    assert " 2 of 2 files" in shown["mirror-progress-chat-s3-fake"]


def test_progress_that_cannot_be_shown_stops_nothing(world: World) -> None:
    """The threads that carry parts belong to no run, and go on all the same."""
    target = Target("fake", world.store, "models/")

    @flow
    def lose_the_artifacts() -> None:
        model = world.hub.look_up(REPO, "v1")
        with TransferProgress("chat", model, [target], refresh_seconds=0) as progress:
            wait_until_shown()
            with get_client(sync_client=True) as client:
                for artifact in client.read_artifacts():
                    client.delete_artifact(artifact.id)
            with ThreadPoolExecutor(1) as worker:
                worker.submit(progress.refresh).result()

    lose_the_artifacts()


def test_a_mirror_is_made_larger(world: World) -> None:
    """A run that wants more files adds them, and the manifest names all; one that wants fewer does nothing."""
    prefix = mirror(allow=("*.gguf",))
    assert f"{prefix}README.md" not in world.store.objects
    mirror()
    assert f"{prefix}README.md" in world.store.objects
    before = dict(world.store.objects)
    mirror(allow=("*.md",))
    assert world.store.objects == before
    verify_mirror(service="chat", repo=REPO)


def test_a_mirror_is_verified_in_every_store(world: World, further: FakeStore) -> None:
    """From the manifest alone: the hub is not asked."""
    mirror()
    world.hub.models = {}
    assert len(verify_mirror(service="chat", repo=REPO)) == 4
    further.corrupt(next(key for key in further.objects if key.endswith("gguf")))
    with pytest.raises(Refused, match=r"1 of 4 files.*further/.*model\.gguf"):
        verify_mirror(service="chat", repo=REPO)


def test_a_file_that_is_gone_is_found_missing(world: World) -> None:
    """An object that the manifest names and nobody has is as wrong as a flipped bit."""
    prefix = mirror()
    del world.store.objects[f"{prefix}model.gguf"]
    with pytest.raises(Refused, match=r"there is no .*model\.gguf"):
        verify_mirror(service="chat", repo=REPO)


@pytest.mark.usefixtures("world")
def test_what_was_never_mirrored_is_refused() -> None:
    """Nothing to read is no success."""
    with pytest.raises(Refused, match="mirror it first"):
        verify_mirror(service="chat", repo="maker/other")


@pytest.mark.parametrize("error", [SkyferryError, Refused], ids=["after every try", "at once"])
def test_verifying_goes_on_after_a_rotten_object(world: World, further: FakeStore, error: type[SkyferryError]) -> None:
    """Whatever cannot be read, is missing, is wrong or too long, in whichever store: all of it is named."""
    prefix = mirror()
    rotten = f"{prefix}model.gguf"

    class Rotten(FakeStore):
        def read(self, key: str, start: int = 0, size_bytes: int | None = None) -> Iterator[bytes]:
            if key == rotten:
                raise error("the disk cannot read that sector")
            yield from super().read(key, start, size_bytes)

    store = Rotten()
    store.objects = world.store.objects
    world.service.store = store  # pyright: ignore[reportAttributeAccessIssue] - a fake comes in unvalidated
    further.objects[f"{prefix}README.md"] += b"and more"
    del further.objects[rotten]
    with pytest.raises(Refused) as refusal:
        verify_mirror(service="chat", repo=REPO)
    said = str(refusal.value)
    assert "2 of 4 files are not what was mirrored" in said
    assert re.search(rf"s3://further/{prefix}README\.md: more than \d+ bytes", said)
    assert f"there is no s3://further/{rotten}" in said
    assert f"1 of 4 files could not be read: s3://fake/{rotten}: the disk cannot read that sector" in said
    further.objects = dict(world.store.objects)
    with pytest.raises(Unavailable, match="1 of 4 files could not be read") as unread:
        verify_mirror(service="chat", repo=REPO)
    assert "delete" not in str(unread.value)


def test_verifying_goes_on_where_one_store_has_no_mirror(world: World, further: FakeStore) -> None:
    """Or a manifest that is none: it is named beside what is wrong elsewhere."""
    prefix = mirror()
    world.store.corrupt(f"{prefix}model.gguf")
    for body, words in ((None, "there is none: mirror it first"), (b"", "is no manifest")):
        further.objects = {} if body is None else {**further.objects, prefix + MANIFEST: body}
        with pytest.raises(Refused, match=rf"2 of 3 files.*{words}") as refusal:
            verify_mirror(service="chat", repo=REPO)
        assert f"s3://fake/{prefix}model.gguf" in str(refusal.value)


@pytest.mark.parametrize("body", [b"", b"no JSON", b'{"mirrored_at": "yesterday"}'])
@pytest.mark.parametrize("where", ["", "x/"], ids=["its own", "nested"])
def test_a_manifest_that_is_none_harms_no_other_mirror(world: World, body: bytes, where: str) -> None:
    """Mirroring, verifying and collecting others goes on; nothing of a mirror that cannot be understood is deleted."""
    stranger = f"models/other/model/{'0' * 40}/{where}{MANIFEST}"
    world.store.objects[stranger] = body
    mirror()
    assert len(verify_mirror(service="chat", repo=REPO)) == 2
    verdicts = collect_mirrors(service="chat", dry_run=False, keep_newest=1)
    assert {verdict.mirror.repo: verdict.delete for verdict in verdicts} == {"other/model": False, REPO: False}
    assert world.store.objects[stranger] == body


def test_a_model_that_brings_a_manifest_is_refused(world: World) -> None:
    """Before a byte is sent; whoever wants the rest of it leaves that file out."""
    files = {**world.hub.models[REPO]["v1"], f"x/{MANIFEST}": b"{}"}
    world.hub.models = {REPO: {"v1": files}}
    with pytest.raises(Refused, match=f"x/{MANIFEST}.*ignore it"):
        mirror()
    assert not [key for key in world.store.objects if key.startswith(MIRRORS)]
    mirror(ignore=(f"*{MANIFEST}",))
    assert not [key for key in world.store.objects if f"x/{MANIFEST}" in key]


@pytest.mark.parametrize(
    ("path", "config"),
    [
        ("config.json", b'{"auto_map": {"AutoModel": "modeling.X"}}'),
        ("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["evil/repo--tok.X", null]}}'),
        ("sub/config.json", b'{"custom_pipelines": {"x": {"impl": "x.Y"}}}'),
    ],
)
def test_code_is_mirrored_for_whoever_asks(world: World, path: str, config: bytes) -> None:
    """A config that names code is refused with what it names; asked for, code comes and stands in the report."""
    world.hub.models = {REPO: {"v1": {**world.hub.models[REPO]["v1"], path: config, "modeling.py": b"import os"}}}
    with pytest.raises(Refused, match=rf"{path} \((auto_map|custom_pipelines): .*set python_code"):
        mirror()
    assert not [key for key in world.store.objects if key.startswith(MIRRORS)]
    prefix = mirror(python_code=True)
    assert world.store.objects[f"{prefix}modeling.py"] == b"import os"
    assert world.store.objects[prefix + path] == config
    assert "modeling.py" in last_report()
    prefix = mirror(python_code=True, ignore=("*.py",))
    assert prefix + path in world.store.objects


def test_code_that_no_config_names_is_left_out(world: World) -> None:
    """And named in the report."""
    world.hub.models = {REPO: {"v1": {**world.hub.models[REPO]["v1"], "handler.py": b"import os"}}}
    prefix = mirror()
    assert f"{prefix}handler.py" not in world.store.objects
    assert re.search(r"Left out\s+- \*\*handler\.py\*\*: code", last_report())


def last_report() -> str:
    wait_until_shown()
    with get_client(sync_client=True) as client:
        (report,) = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["mirror-report-chat"])),
            sort=ArtifactSort.CREATED_DESC,
            limit=1,
        )
    return str(report.data)


def test_a_config_is_read_to_its_declared_size(world: World) -> None:
    """What a hub sends beyond it is not read, nor what it says of itself to whoever only looks."""

    class Endless(FakeHub):
        def read(self, model: Model, file: ModelFile) -> Iterator[bytes]:
            yield from super().read(model, file)
            while file.path == "config.json":
                yield bytes(10)

        def read_part(self, model: Model, file: ModelFile, start: int, buffer: memoryview) -> None:
            buffer[:] = self.models[model.repo]["v1"][file.path][start : start + len(buffer)]

    files = {**world.hub.models[REPO]["v1"], "config.json": b"{}"}
    world.service.hub = Endless({REPO: {"v1": files}})  # pyright: ignore[reportAttributeAccessIssue] - a fake
    prefix = mirror()
    assert world.store.objects[f"{prefix}config.json"] == b"{}"


def test_garbage_is_shown_and_then_collected(world: World, further: FakeStore) -> None:
    """A dry run deletes nothing; then what no release needs goes from every store, and the newest stays."""
    prefixes = [mirror(revision) for revision in ("v1", "v2", "v3")]
    release = Release(
        id="chat-1",
        service="chat",
        repo=REPO,
        commit=prefixes[0].rstrip("/").rpartition("/")[2],
        engine=EngineSettings(1, 1),
        slot="blue",
        state="live",
        run_id="1",
        opened_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    ledger = ServiceRecord(releases=(release,)).model_dump_json().encode()
    world.store.put(ledger_key("chat"), ledger, replacing=None)
    before = dict(world.store.objects)
    collect_mirrors(service="chat", keep_newest=1)
    assert world.store.objects == before
    collect_mirrors(service="chat", keep_newest=1, dry_run=False)
    for store in (world.store, further):
        assert {prefix for prefix in prefixes if prefix + MANIFEST in store.objects} == {prefixes[0], prefixes[2]}
        assert not [key for key in store.objects if key.startswith(prefixes[1])]


def test_the_reaper_aborts_orphaned_uploads_too(world: World, further: FakeStore) -> None:
    """A dry run only names them; then the old ones of every store go, and a young one stays."""
    old = [store.begin("models/a/b/c/weights") for store in (world.store, further)]
    young = MultipartUpload("models/a/b/c/more", "young", time.time())
    further.uploads[young] = {}
    assert reap_orphans(service="chat").uploads == tuple(old)
    assert len(world.store.uploads) == 1
    reap_orphans(service="chat", dry_run=False)
    assert (world.store.unfinished(""), further.unfinished("")) == ((), (young,))


def test_orphaned_uploads_are_aborted(world: World) -> None:
    """An upload that began long ago is nobody's any more."""
    world.store.begin("models/a/b/c/weights")
    collect_mirrors(service="chat")
    assert len(world.store.uploads) == 1
    collect_mirrors(service="chat", dry_run=False)
    assert world.store.uploads == {}


def test_a_service_keeps_its_stores(tmp_path: Path) -> None:
    """Saved as a block and loaded again, a service has all its stores, of every kind, and their secrets."""
    Service(
        name="kept",
        endpoint="http://127.0.0.1/v1",
        hub=HuggingFaceHub(),
        store=S3Store(bucket="one"),
        further_stores=[
            S3Store(bucket="two", secret_access_key=SecretStr("hidden")),
            GoogleStore(bucket="three"),
            DirectoryStore(directory=tmp_path),
        ],
        fleet=LocalFleet(directory=tmp_path, store=S3Store(bucket="one")),
        gateway=HAProxyGateway(admin_socket=tmp_path / "admin.sock"),
    ).save("kept", overwrite=True)
    loaded = Service.load("kept")
    assert isinstance(loaded, Service)
    assert [type(store) for store in loaded.stores] == [S3Store, S3Store, GoogleStore, DirectoryStore]
    second = loaded.further_stores[0]
    assert isinstance(second, S3Store)
    assert second.secret_access_key == SecretStr("hidden")


def test_a_fleet_keeps_its_stores_and_their_secrets(tmp_path: Path) -> None:
    """Saved as a block and loaded again, it knows which store is near to which cells."""
    near = S3Store(bucket="near", near=("aws/us-east-1",), secret_access_key=SecretStr("hidden"))
    SkyPilotFleet(
        directory=tmp_path,
        store=S3Store(bucket="one"),
        further_stores=[near, GoogleStore(bucket="far", near=("gcp",))],
        task="run: echo",
    ).save("kept", overwrite=True)
    loaded = SkyPilotFleet.load("kept")
    assert isinstance(loaded, SkyPilotFleet)
    found = loaded.further_stores[0]
    assert isinstance(found, S3Store)
    assert (found.near, found.secret_access_key) == (("aws/us-east-1",), SecretStr("hidden"))
    assert isinstance(loaded.further_stores[1], GoogleStore)
