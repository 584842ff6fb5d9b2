"""Bytes from a hub into stores, in memory: what is sent, what is not, and what drops out."""

import hashlib
from random import Random
from threading import Lock

import pytest

from blocks.errors import Refused, Unavailable
from blocks.ports import Model, ModelFile, Objects, Part, PartLimits, Unfinished
from flows.tasks.transfer import Transfer
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

    def send(self, upload: Unfinished, number: int, body: memoryview) -> Part:
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
        def send(self, upload: Unfinished, number: int, body: memoryview) -> Part:
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
        def complete(self, upload: Unfinished, parts: object) -> None:
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
