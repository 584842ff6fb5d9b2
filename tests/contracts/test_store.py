"""What every store promises, asked of the one in memory and of S3."""

from concurrent.futures import ThreadPoolExecutor
from random import Random
from uuid import uuid4

import pytest

from blocks.errors import Conflict, Refused, Unavailable
from blocks.ports import Found, Store, StoredObject
from tests.fakes.store import FakeStore
from tests.servers import running_seaweedfs  # noqa: F401 - the fixture s3_store

MIB = 1 << 20
STORES = ["fake", pytest.param("s3", marks=pytest.mark.server)]


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Store:
    return FakeStore() if request.param == "fake" else request.getfixturevalue("s3_store")


@pytest.fixture
def key() -> str:
    """The real bucket serves all tests: each has keys of its own."""
    return f"{uuid4()}/ä b+c.json"


def upload(store: Store, key: str, body: bytes, *, announced_bytes: int | None = None) -> None:
    with store.upload(key, len(body) if announced_bytes is None else announced_bytes) as target:
        for start in range(0, len(body), 5 * MIB):
            target.write(body[start : start + 5 * MIB])


def test_nothing_is_found_where_nothing_was_put(store: Store, key: str) -> None:
    """A missing document is None, not an error."""
    assert store.get(key) is None


def test_what_is_put_is_found(store: Store, key: str) -> None:
    """A document comes back with the ETag that writing it gave."""
    etag = store.put(key, b"one", replacing=None)
    assert store.get(key) == Found(b"one", etag)


def test_a_first_version_replaces_nothing(store: Store, key: str) -> None:
    """Whoever expects no document must not overwrite one."""
    store.put(key, b"one", replacing=None)
    with pytest.raises(Conflict):
        store.put(key, b"two", replacing=None)


def test_only_the_version_seen_is_replaced(store: Store, key: str) -> None:
    """An ETag allows one write: the next one with it is a conflict and changes nothing."""
    first = store.put(key, b"one", replacing=None)
    second = store.put(key, b"two", replacing=first)
    with pytest.raises(Conflict):
        store.put(key, b"three", replacing=first)
    assert store.get(key) == Found(b"two", second)


def test_a_deleted_version_is_not_replaced(store: Store, key: str) -> None:
    """Whoever expects a version that is gone is told so."""
    etag = store.put(key, b"one", replacing=None)
    store.delete(key)
    with pytest.raises(Conflict):
        store.put(key, b"two", replacing=etag)


def test_of_many_writers_one_wins(store: Store, key: str) -> None:
    """However many write over the same version at the same time, one succeeds and its document stands."""
    first = store.put(key, b"first", replacing=None)

    def write(writer: int) -> int | None:
        try:
            store.put(key, b"%d" % writer, replacing=first)
        except Conflict:
            return None
        return writer

    with ThreadPoolExecutor(8) as pool:
        winners = [writer for writer in pool.map(write, range(16)) if writer is not None]
    found = store.get(key)
    assert found is not None
    assert [found.body] == [b"%d" % winner for winner in winners]


@pytest.mark.parametrize("size_bytes", [0, 1, 16 * MIB, 16 * MIB + 1, 100 * MIB + 7])
def test_an_upload_is_read_back(store: Store, key: str, size_bytes: int) -> None:
    """Objects of no byte, one part and several parts come back byte by byte."""
    body = Random(size_bytes).randbytes(size_bytes)  # noqa: S311 - the same bytes in each run, not a secret
    upload(store, key, body)
    assert b"".join(store.read(key)) == body
    assert [*store.list(key)] == [StoredObject(key, size_bytes)]


@pytest.mark.parametrize("size_bytes", [3, 40 * MIB])
def test_an_upload_is_invisible_until_its_end(store: Store, key: str, size_bytes: int) -> None:
    """While parts arrive there is no object."""
    with store.upload(key, size_bytes) as target:
        target.write(bytes(size_bytes))
        assert [*store.list(key)] == []
    assert [*store.list(key)] == [StoredObject(key, size_bytes)]


@pytest.mark.parametrize("size_bytes", [3, 40 * MIB])
def test_a_failed_upload_changes_nothing(store: Store, key: str, size_bytes: int) -> None:
    """An error within the block leaves the object that stood before."""
    upload(store, key, b"before")

    def fail() -> None:
        with store.upload(key, size_bytes) as target:
            target.write(bytes(size_bytes))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert b"".join(store.read(key)) == b"before"


@pytest.mark.parametrize("size_bytes", [3, 40 * MIB])
@pytest.mark.parametrize("missing_bytes", [1, -1])
def test_an_upload_has_the_size_announced(store: Store, key: str, size_bytes: int, missing_bytes: int) -> None:
    """Fewer or more bytes than announced are no object, and worth another try."""
    with pytest.raises(Unavailable, match=str(size_bytes)):
        upload(store, key, bytes(size_bytes), announced_bytes=size_bytes + missing_bytes)
    assert [*store.list(key)] == []


def test_reading_what_is_missing_is_refused(store: Store, key: str) -> None:
    """Large objects are expected to be there, so their absence is an error that names them."""
    with pytest.raises(Refused, match=key.partition("/")[0]):
        next(store.read(key))


def test_a_listing_has_every_object_of_the_prefix_and_no_other(store: Store, key: str) -> None:
    """More objects than one page holds are all listed, and a sibling that shares the beginning is not."""
    prefix = key.partition("/")[0]
    expected = {f"{prefix}/{number}" for number in range(1005)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.put(name, b"", replacing=None), [*expected, f"{prefix}2/0"]))
    assert [found.key for found in store.list(f"{prefix}/")] == sorted(expected)


def test_nothing_is_listed_where_nothing_is(store: Store, key: str) -> None:
    """A prefix without objects lists nothing."""
    assert [*store.list(key)] == []


def test_deleting_twice_is_deleting_once(store: Store, key: str) -> None:
    """What is gone may be deleted again."""
    store.put(key, b"one", replacing=None)
    store.delete(key)
    store.delete(key)
    assert store.get(key) is None


def test_an_object_has_a_url(store: Store) -> None:
    """Engines and people name an object by scheme, bucket and key."""
    scheme, _, rest = store.url_of("models/a/b").partition("://")
    assert scheme == "s3"
    assert rest.partition("/")[2] == "models/a/b"
