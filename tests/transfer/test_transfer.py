"""Bytes from a hub into stores, in memory: what is sent, what is not, and what drops out."""

import hashlib
from collections.abc import Iterator
from random import Random
from threading import Lock

import pytest

from blocks.errors import Refused, Unavailable, Unsupported
from blocks.ports.hub import Model, ModelFile
from blocks.ports.store import MultipartUpload, Objects, Part, PartLimits
from flows.tasks.mirror import check_writable, delete_mirror, look_what_is_there, survey, write_manifest
from flows.transfer.read_back import read_back
from flows.transfer.transfer import Transfer
from tests.fakes.hub import FakeHub
from tests.fakes.store import FakeStore
from tests.mirroring import PART_BYTES, mirror, opened

MIB = 1 << 20
REPO = "maker/model"


def random_bytes(size_bytes: int, seed: int = 0) -> bytes:
    return Random(seed).randbytes(size_bytes)  # noqa: S311 - the same bytes in each run, not a secret


FILES = {
    "model-1.safetensors": random_bytes(2 * PART_BYTES + 7, 1),
    "model-2.safetensors": random_bytes(PART_BYTES, 2),
    "model-3.safetensors": random_bytes(PART_BYTES + 1, 3),
    "config.json": b"{}",
    "empty.txt": b"",
}


class CountingStore(FakeStore):
    """Counts what is sent to it, and takes only so much."""

    def __init__(self, provider: str, room_for_parts: int = 1000) -> None:
        super().__init__(provider=provider)
        self.parts_sent: list[tuple[str, int]] = []
        self.room_for_parts = room_for_parts

    def send(self, upload: MultipartUpload, number: int, body: memoryview) -> Part:
        if len(self.parts_sent) >= self.room_for_parts:
            raise Refused(f"s3://{self.provider} is full")
        self.parts_sent.append((upload.key, number))
        return super().send(upload, number, body)


class CountingHub(FakeHub):
    """Counts what is read from it."""

    def __init__(self) -> None:
        super().__init__({REPO: {"v1": FILES}})
        self.read_bytes = 0
        self.lock = Lock()

    def read_part(self, model: Model, file: ModelFile, start: int, buffer: memoryview) -> None:
        with self.lock:
            self.read_bytes += len(buffer)
        super().read_part(model, file, start, buffer)


@pytest.fixture
def hub() -> CountingHub:
    return CountingHub()


def content(store: FakeStore, hub: FakeHub) -> dict[str, bytes]:
    prefix = f"models/{REPO}/{hub.look_up(REPO, 'v1').commit}/"
    return {key.removeprefix(prefix): body for key, body in store.objects.items() if "manifest" not in key}


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_byte_arrives(hub: CountingHub, workers: int) -> None:
    """However many workers take the parts, each file is read once and is in the store as it is on the hub."""
    store = FakeStore()
    (target,) = mirror(hub, [store], REPO, workers=workers)
    assert content(store, hub) == FILES
    assert hub.read_bytes == target.sent_bytes == sum(map(len, FILES.values()))
    assert target.done_files == len(FILES)
    assert store.uploads == {}
    assert target.manifest is not None
    assert {file.path: file.sha256 for file in target.manifest.files} == {
        path: hashlib.sha256(body).hexdigest() for path, body in FILES.items()
    }


def test_several_stores_cost_one_reading(hub: CountingHub) -> None:
    """Each byte is read once and sent to every provider."""
    stores = [FakeStore(provider=name) for name in ("one", "two", "three")]
    mirror(hub, stores, REPO)
    assert all(content(store, hub) == FILES for store in stores)
    assert hub.read_bytes == sum(map(len, FILES.values()))


def test_a_provider_with_two_buckets_copies_itself(hub: CountingHub) -> None:
    """To the second bucket of one provider nothing large is sent."""
    stores = [CountingStore("one"), CountingStore("one")]
    first, second = mirror(hub, stores, REPO)
    assert content(stores[1], hub) == FILES
    assert stores[1].parts_sent == []
    assert second.copied_bytes == first.sent_bytes
    assert first.done_files == second.done_files == len(FILES)


def test_a_provider_that_may_not_copy_is_sent_the_bytes(hub: CountingHub) -> None:
    """Where one bucket's key cannot read the other bucket, the bytes take the long way."""

    class Apart(CountingStore):
        def copy_from(self, source: Objects, source_key: str, key: str) -> bool:
            raise Refused(f"{self.url_of(key)}: this key may not read {source.url_of(source_key)}")

    stores = [CountingStore("one"), Apart("one")]
    mirror(hub, stores, REPO)
    assert content(stores[1], hub) == FILES


def test_a_store_that_fails_drops_out(hub: CountingHub) -> None:
    """It is named with its error; the other one gets everything, and a rerun fills only what is missing."""
    good, full = CountingStore("good"), CountingStore("full", room_for_parts=1)
    _, dropped = mirror(hub, [good, full], REPO)
    assert content(good, hub) == FILES
    assert dropped.error is not None
    assert "s3://full is full" in str(dropped.error)
    full.room_for_parts = 1000
    good.parts_sent.clear()
    filled, again = mirror(hub, [good, full], REPO)
    assert (filled.error, again.error, good.parts_sent) == (None, None, [])
    assert content(full, hub) == FILES
    assert full.uploads == {}


def test_without_a_store_left_the_error_is_the_stores(hub: CountingHub) -> None:
    """There is nothing to go on for."""
    with pytest.raises(Refused, match="s3://full is full"):
        mirror(hub, [CountingStore("full", room_for_parts=1)], REPO)


def test_a_rerun_sends_what_is_missing(hub: CountingHub) -> None:
    """Parts that an earlier run has sent are read for their hash, and not sent again."""
    store = CountingStore("one", room_for_parts=2)
    with pytest.raises(Refused):
        mirror(hub, [store], REPO, workers=2)
    store.room_for_parts = 1000
    (target,) = mirror(hub, [store], REPO)
    assert content(store, hub) == FILES
    assert len(store.parts_sent) == len(set(store.parts_sent)) == 5
    assert target.resumed_bytes > 0
    assert store.uploads == {}


def test_a_part_that_somebody_else_sent_is_sent_again(hub: CountingHub) -> None:
    """What is there is believed only if its checksum is that of the source's bytes."""
    store = CountingStore("one")
    model = hub.look_up(REPO, "v1")
    upload = store.begin(f"models/{REPO}/{model.commit}/model-1.safetensors")
    store.send(upload, 1, memoryview(bytes(PART_BYTES)))
    mirror(hub, [store], REPO)
    assert content(store, hub) == FILES


def test_parts_that_are_cut_otherwise_are_given_up(hub: CountingHub) -> None:
    """An upload with parts of another size is aborted, and its file sent anew."""
    store = CountingStore("one")
    model = hub.look_up(REPO, "v1")
    upload = store.begin(f"models/{REPO}/{model.commit}/model-1.safetensors")
    store.send(upload, 1, memoryview(bytes(6 * MIB)))
    mirror(hub, [store], REPO)
    assert content(store, hub) == FILES
    assert store.uploads == {}


def test_an_upload_that_is_taken_away_is_begun_anew(hub: CountingHub) -> None:
    """Whoever cleans the bucket meanwhile costs another reading of that file, and no more."""

    class Cleaned(CountingStore):
        def send(self, upload: MultipartUpload, number: int, body: memoryview) -> Part:
            if number == 2 and len(self.parts_sent) < 4:
                self.uploads.pop(upload, None)
            return super().send(upload, number, body)

    store = Cleaned("one")
    mirror(hub, [store], REPO)
    assert content(store, hub) == FILES
    assert store.uploads == {}


def test_an_object_that_another_run_completed_is_as_good(hub: CountingHub) -> None:
    """Two runs that mirror the same model end with one mirror."""

    class Raced(CountingStore):
        def complete(self, upload: MultipartUpload, parts: object) -> None:
            path = upload.key.rpartition("/")[2]
            self.objects.setdefault(upload.key, FILES[path])
            super().complete(upload, parts)  # pyright: ignore[reportArgumentType] - handed on as it came

    store = Raced("one")
    mirror(hub, [store], REPO)
    assert content(store, hub) == FILES
    assert store.uploads == {}


def test_a_stranger_of_another_size_makes_room(hub: CountingHub) -> None:
    """What no manifest names and is not the file is written over."""
    store = FakeStore()
    store.objects[f"models/{REPO}/{hub.look_up(REPO, 'v1').commit}/model-1.safetensors"] = b"stranger"
    mirror(hub, [store], REPO)
    assert content(store, hub) == FILES


@pytest.mark.parametrize("path", ["model-1.safetensors", "model-2.safetensors", "config.json"])
def test_a_file_that_is_wrong_twice_is_refused(hub: CountingHub, path: str) -> None:
    """Large or small, it is read once more; then nothing of it is left, no object and no part, and no manifest."""
    store = CountingStore("one")
    hub.corrupted.add(path)
    with pytest.raises(Refused, match=rf"{path}: its .*sha.* is .*; read once more"):
        mirror(hub, [store], REPO)
    assert not any(key.endswith((path, "manifest.json")) for key in store.objects)
    assert store.uploads == {}


def test_bytes_that_the_store_holds_are_not_sent(hub: CountingHub) -> None:
    """Another revision with the same weights is the provider's copy."""
    store = CountingStore("one")
    mirror(hub, [store], REPO)
    store.parts_sent.clear()
    hub.models = {REPO: {"v1": FILES, "v2": {**FILES, "config.json": b"{ }"}}}
    hub.read_bytes = 0
    (target,) = mirror(hub, [store], REPO, "v2")
    assert store.parts_sent == []
    assert hub.read_bytes == len(b"{ }")
    assert target.copied_bytes == sum(len(body) for path, body in FILES.items() if path.endswith("tensors"))


def test_a_part_that_fails_again_and_again_tells_of_each_try() -> None:
    """The error names the part, and what happened at each try."""
    store = CountingStore("one")

    class Broken(CountingHub):
        def read_part(self, model: Model, file: ModelFile, start: int, buffer: memoryview) -> None:
            if file.path == "model-1.safetensors" and start:
                raise Unavailable("the line is dead")
            super().read_part(model, file, start, buffer)

    with pytest.raises(Unavailable, match=r"part [23] of model-1.*in 6 tries: try 1: the line is dead; .*; try 6: the"):
        mirror(Broken(), [store], REPO)


def test_memory_is_bounded_whatever_the_file(hub: CountingHub) -> None:
    """Parts grow with the largest file; so there are fewer workers."""
    huge = ModelFile("model.safetensors", 5 << 40, "0" * 64, "0" * 40)
    model = Model(REPO, "1" * 40, (huge,), None)
    transfer = Transfer(hub, model, [opened(FakeStore(), model)], workers=8, memory_bytes=1 << 30)
    assert transfer.buffer_bytes * 10_000 >= huge.size_bytes
    assert transfer.workers * transfer.buffer_bytes <= 1 << 30
    assert transfer.workers == 1


def test_parts_fit_every_store(hub: CountingHub) -> None:
    """The store that takes the fewest parts decides."""
    few = FakeStore(PartLimits(smallest_bytes=5 * MIB, largest_bytes=100 * MIB, parts=2), provider="few")
    many = CountingStore("many")
    mirror(hub, [few, many], REPO)
    assert content(few, hub) == content(many, hub) == FILES
    assert max(number for _, number in many.parts_sent) == 2


def test_an_object_that_lies_there_is_read_before_it_is_believed(hub: CountingHub) -> None:
    """Of the right size without a manifest: an earlier run's is kept and not sent again, a stranger's is not."""
    store = CountingStore("one")
    home = f"models/{REPO}/{hub.look_up(REPO, 'v1').commit}/"
    store.objects[f"{home}model-1.safetensors"] = FILES["model-1.safetensors"]
    store.objects[f"{home}model-2.safetensors"] = bytes(len(FILES["model-2.safetensors"]))
    (target,) = mirror(hub, [store], REPO)
    assert content(store, hub) == FILES
    assert target.resumed_bytes == len(FILES["model-1.safetensors"])
    assert not [key for key, _ in store.parts_sent if key.endswith("model-1.safetensors")]


def test_what_another_run_completed_meanwhile_is_read(hub: CountingHub) -> None:
    """An object of the right size that is not the file makes room for the file."""

    class Raced(CountingStore):
        def complete(self, upload: MultipartUpload, parts: object) -> None:
            if upload.key.endswith("model-1.safetensors") and self.strangers:
                self.objects[upload.key] = self.strangers.pop()
            super().complete(upload, parts)  # pyright: ignore[reportArgumentType] - handed on as it came

        strangers = [bytes(len(FILES["model-1.safetensors"]))]  # noqa: RUF012 - one for the one store that there is

    store = Raced("one")
    mirror(hub, [store], REPO)
    assert content(store, hub) == FILES
    assert store.strangers == []
    assert store.uploads == {}


def test_a_copy_is_read_before_it_is_believed(hub: CountingHub) -> None:
    """Bytes that another mirror holds have been spoiled since its manifest was written: they are not passed on."""
    store = CountingStore("one")
    mirror(hub, [store], REPO)
    store.corrupt(f"models/{REPO}/{hub.look_up(REPO, 'v1').commit}/model-1.safetensors")
    changed = {**FILES, "config.json": b"{ }"}
    hub.models = {REPO: {"v1": FILES, "v2": changed}}
    (target,) = mirror(hub, [store], REPO, "v2")
    home = f"models/{REPO}/{hub.look_up(REPO, 'v2').commit}/"
    assert {path: store.objects[home + path] for path in changed} == changed
    copied = [len(FILES[path]) for path in ("model-2.safetensors", "model-3.safetensors")]
    assert target.copied_bytes == sum(copied)


@pytest.mark.parametrize(
    "key",
    ["models/evil/model/" + "0" * 40 + "/x/skyferry-manifest.json", "models/evil/model/" + "0" * 40 + "/{}"],
    ids=["nested", "of another place"],
)
def test_a_manifest_that_a_model_brings_vouches_for_nothing(hub: CountingHub, key: str) -> None:
    """Another model's file of that name leads to that model's bytes: they are not copied, and the hub is read."""
    store = CountingStore("one")
    key = key.format("skyferry-manifest.json")
    (manifest,) = [target.manifest for target in mirror(hub, [FakeStore()], REPO)]
    assert manifest is not None
    store.objects[key] = manifest.model_dump_json().encode()
    home = key.removesuffix("skyferry-manifest.json")
    store.objects |= {home + path: bytes(len(body)) for path, body in FILES.items()}
    hub.read_bytes = 0
    (target,) = mirror(hub, [store], REPO)
    assert content_at(store, target.prefix) == FILES
    assert hub.read_bytes == sum(map(len, FILES.values()))
    assert target.copied_bytes == 0


@pytest.mark.parametrize("body", [b"", b"no JSON", b"{}", b"[]", b'{"repo": 1}', b"\xff", b"[" * 10**5])
@pytest.mark.parametrize("where", ["/x/", "/"], ids=["nested", "another model's own"])
def test_a_manifest_that_is_none_breaks_nobody_elses_mirror(hub: CountingHub, body: bytes, where: str) -> None:
    """It is told of, where it is one that Skyferry should be able to read, and everything else goes on."""
    store = FakeStore()
    store.objects[f"models/other/model/{'0' * 40}{where}skyferry-manifest.json"] = body
    model = hub.look_up(REPO, "v1")
    found = survey.fn(store, model.files, f"models/{REPO}/{model.commit}/")
    assert len(found.doubts) == (where == "/")
    assert all("models/other/model" in doubt and "delete it" in doubt for doubt in found.doubts)
    (target,) = mirror(hub, [store], REPO)
    assert content_at(store, target.prefix) == FILES


def content_at(store: FakeStore, prefix: str) -> dict[str, bytes]:
    return {
        key.removeprefix(prefix): body
        for key, body in store.objects.items()
        if key.startswith(prefix) and "manifest" not in key
    }


class Careless(CountingStore):
    """Ignores checksums, says nothing of what it has, and spoils the first parts and objects that it gets."""

    def __init__(self, spoiled: int) -> None:
        super().__init__("careless")
        self.vouches, self.spoiled = False, spoiled

    def spoil(self, body: bytes | memoryview) -> bytes:
        with self._lock:
            self.spoiled -= 1
            return bytes(body) if self.spoiled < 0 or not len(body) else bytes([body[0] ^ 1]) + bytes(body[1:])

    def send(self, upload: MultipartUpload, number: int, body: memoryview) -> Part:
        super().send(upload, number, body)
        self.uploads[upload][number] = self.spoil(body)
        return Part(number, len(body), "", self.checksum(body), is_vouched=False)

    def write(self, key: str, body: bytes | memoryview) -> bool:
        return super().write(key, body if key.endswith("manifest.json") else self.spoil(body))


@pytest.mark.parametrize("spoiled", [0, 1, 5])
def test_what_a_store_does_not_vouch_for_is_read_back(hub: CountingHub, spoiled: int) -> None:
    """Unknown is not equal: nothing is published before its bytes were read from the store, and were right."""
    store = Careless(spoiled)
    mirror(hub, [store], REPO, workers=1)
    assert content(store, hub) == FILES
    assert store.uploads == {}


def test_a_store_that_spoils_everything_publishes_nothing(hub: CountingHub) -> None:
    """It drops out with words, and no manifest stands."""
    store = Careless(10**6)
    with pytest.raises(Unavailable, match="not the same"):
        mirror(hub, [store], REPO)
    assert not [key for key in store.objects if "manifest" in key]


def test_a_part_of_which_the_store_says_nothing_is_sent_again(hub: CountingHub) -> None:
    """An earlier run has left a part that was spoiled, and the store lists no checksums."""
    store = FakeStore(vouches=False)
    model = hub.look_up(REPO, "v1")
    upload = store.begin(f"models/{REPO}/{model.commit}/model-1.safetensors")
    store.send(upload, 1, memoryview(bytes(PART_BYTES)))
    (target,) = mirror(hub, [store], REPO)
    assert content(store, hub) == FILES
    assert target.resumed_bytes == 0


def test_a_provider_that_compares_nothing_is_read(hub: CountingHub) -> None:
    """A copy into a second bucket that came out otherwise is replaced by the hub's bytes."""

    class Sloppy(FakeStore):
        def copy_from(self, source: Objects, source_key: str, key: str) -> bool:
            super().copy_from(source, source_key, key)
            if key.endswith("model-1.safetensors"):
                self.corrupt(key)
            return False

    stores = [FakeStore(provider="one"), Sloppy(provider="one")]
    _, second = mirror(hub, stores, REPO)
    assert content(stores[1], hub) == FILES
    assert second.copied_bytes == sum(len(body) for path, body in FILES.items() if path != "model-1.safetensors")


def test_a_further_store_needs_no_conditional_writes(hub: CountingHub) -> None:
    """No ledger is safe there; mirrors are, for two runs write the same."""
    store = FakeStore()
    store.knows_conditions = False
    mirror(hub, [store], REPO)
    (target,) = mirror(hub, [store], REPO)
    assert content(store, hub) == FILES
    assert target.manifest is not None
    check_writable.fn(store, keeps_ledger=False)
    with pytest.raises(Unsupported, match="another store for the ledger"):
        check_writable.fn(store)


def test_a_manifest_grows_where_another_run_has_written_one(hub: CountingHub) -> None:
    """What stands is joined; what cannot be read is refused, and what belongs elsewhere too."""
    store = FakeStore()
    (target,) = mirror(hub, [store], REPO)
    whole = target.manifest
    assert whole is not None
    part, rest = (whole.model_copy(update={"files": files}) for files in (whole.files[:2], whole.files[2:]))
    store.objects[f"{target.prefix}skyferry-manifest.json"] = part.model_dump_json().encode()
    joined = write_manifest.fn(store, target.prefix, rest)
    assert {file.path for file in joined.files} == set(FILES)
    for body in (b"", part.model_copy(update={"commit": "1" * 40}).model_dump_json().encode()):
        store.objects[f"{target.prefix}skyferry-manifest.json"] = body
        with pytest.raises(Refused, match=f"{target.prefix}skyferry-manifest.json is .*delete it"):
            write_manifest.fn(store, target.prefix, rest)


class WholeHub(FakeHub):
    """Gives whole files only, and says so of any part but the first."""

    def read_part(self, model: Model, file: ModelFile, start: int, buffer: memoryview) -> None:
        if start:
            raise Unsupported("the fake hub sends whole files only")
        super().read_part(model, file, start, buffer)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_hub_that_gives_no_parts_is_read_from_beginning_to_end(workers: int) -> None:
    """Whoever takes which part, and also where a reading breaks off: it begins anew, and what is there stays."""
    hub = WholeHub({REPO: {"v1": FILES}})
    hub.cut_short.extend(["model-1.safetensors", "model-1.safetensors", "model-3.safetensors"])
    store = FakeStore()
    (target,) = mirror(hub, [store], REPO, workers=workers)
    assert content(store, hub) == FILES
    assert target.sent_bytes == sum(map(len, FILES.values()))
    assert not hub.cut_short


class Folded(dict[str, bytes]):
    """Names that differ by case alone are one, in the spelling that came first, as on file systems that fold case."""

    def __setitem__(self, key: str, body: bytes) -> None:
        super().__setitem__(next((other for other in self if other.casefold() == key.casefold()), key), body)


def test_names_that_a_store_takes_for_one_are_no_mirror() -> None:
    """One of two files would be served under both names."""
    hub = FakeHub({REPO: {"v1": {"README.md": b"one", "readme.md": b"two", "config.json": b"{}"}}})
    store = FakeStore()
    store.objects = Folded()
    with pytest.raises(Unavailable, match=r"does not list 1 of 3 files .* such as readme\.md.*differ by case"):
        mirror(hub, [store], REPO)
    assert not [key for key in store.objects if "manifest" in key]


def test_what_somebody_has_deleted_is_mirrored_again(hub: CountingHub) -> None:
    """A manifest says what should be there, and the store's listing what is; nothing else is sent."""
    store = CountingStore("one")
    (target,) = mirror(hub, [store], REPO)
    for path in ("config.json", "model-2.safetensors"):
        del store.objects[target.prefix + path]
    store.objects[f"{target.prefix}model-3.safetensors"] = b"half"
    before = dict(store.objects)
    (again,) = mirror(hub, [store], REPO)
    assert content(store, hub) == FILES
    assert set(again.lacks) == {"config.json", "model-2.safetensors", "model-3.safetensors"}
    key = f"{target.prefix}skyferry-manifest.json"
    assert store.objects[key] == before[key]


def test_what_is_collected_while_it_is_mirrored_is_no_mirror(hub: CountingHub) -> None:
    """A run that has found everything there, and whose objects are collected then, leaves no manifest of them."""

    class Collected(FakeStore):
        def put(self, key: str, body: bytes, *, replacing: str | None) -> str:
            self.objects.pop(key.replace("skyferry-manifest.json", "model-1.safetensors"))
            return super().put(key, body, replacing=replacing)

    store = Collected()
    with pytest.raises(Unavailable, match="does not list 1 of 5 files"):
        mirror(hub, [store], REPO)
    assert not [key for key in store.objects if "manifest" in key]


def test_what_is_mirrored_while_it_is_collected_is_no_mirror(hub: CountingHub) -> None:
    """The run has looked before the first object went, and writes its manifest before the last one goes."""

    class Mirrored(FakeStore):
        written: tuple[str, bytes] | None = None

        def delete(self, key: str) -> None:
            super().delete(key)
            if self.written is not None and "model-2" in key:
                self.objects[self.written[0]] = self.written[1]

    store = Mirrored()
    (target,) = mirror(hub, [store], REPO)
    ((found,), _, _) = look_what_is_there.fn(store)
    manifest = f"{target.prefix}skyferry-manifest.json"
    store.written = manifest, store.objects[manifest]
    assert delete_mirror.fn(store, [store], found)
    assert not store.objects


def test_nothing_is_read_on_past_its_size() -> None:
    """An object that goes on for ever is not what was mirrored, and that is known at its first byte too many."""

    class Endless(FakeStore):
        chunks = 0

        def read(self, key: str, start: int = 0, size_bytes: int | None = None) -> Iterator[bytes]:
            del key, start, size_bytes
            while True:
                self.chunks += 1
                yield bytes(10)

    store = Endless()
    assert read_back(store, "key", 25) == "more than 25 bytes"
    assert store.chunks == 3
