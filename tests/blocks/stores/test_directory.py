"""How a directory says no: what no waiting mends is final, and says what does."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from blocks.errors import Refused, Unavailable
from blocks.ports.store import MultipartUpload
from blocks.stores.directory import DirectoryStore


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(directory=tmp_path)


@pytest.mark.parametrize(
    "key",
    ["/etc/passwd", "../x", "a/../../x", ".skyferry/lock", "a\0b", "a/" + "x" * 256],
    ids=lambda key: repr(key)[:20],
)
def test_a_key_that_no_file_can_have_is_refused(store: DirectoryStore, key: str) -> None:
    """With the next step, and never as the system's own exception."""
    store.write("a/b", b"")
    for verb in (
        lambda: store.write(key, b""),
        lambda: store.put(key, b"", replacing=None),
        lambda: next(store.read(key)),
        lambda: store.delete(key),
    ):
        with pytest.raises(Refused, match=r"; (give|mirror)"):
            verb()


def test_a_file_where_a_folder_should_be_is_named(store: DirectoryStore) -> None:
    """And the other way round; no waiting makes room."""
    store.write("a", b"")
    store.write("folder/x", b"")
    for act in (lambda: store.write("a/b", b""), lambda: store.write("folder", b"")):
        with pytest.raises(Refused, match="move what stands in the way"):
            act()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EROFS, "mount it so that it can be written"),
        (errno.ENOSPC, "free space"),
        (errno.EDQUOT, "free space"),
        (errno.ENAMETOOLONG, "a name that the file system takes"),
        (errno.EACCES, "let this user write"),
        (errno.EPERM, "let this user write"),
        (errno.EFBIG, "files of this size"),
    ],
)
def test_what_no_waiting_mends_is_final(store: DirectoryStore, number: int, words: str) -> None:
    """By the system's number; whatever else it says may pass, as where a file system is away."""
    with pytest.raises(Refused, match=f"{store.directory} did not write key: .*{words}"):
        raise_within(store, lambda: OSError(number, os.strerror(number)))


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EAGAIN, 9999])
def test_what_may_be_away_may_come_back(store: DirectoryStore, number: int) -> None:
    """Tried again, with what the system says."""
    with pytest.raises(Unavailable, match="see that its file system is there"):
        raise_within(store, lambda: OSError(number, os.strerror(number)))


def raise_within(store: DirectoryStore, error: Callable[[], OSError]) -> None:
    with store._translated("write key"):
        raise error()


UPLOAD = MultipartUpload("key", "1", 0)


@pytest.mark.parametrize("missing", ["store", "mount/store"])
def test_a_file_system_that_is_not_mounted_is_no_empty_store(tmp_path: Path, missing: str) -> None:
    """Nothing is made on this machine's disk in its place, and nobody takes it for a store without a ledger."""
    store = DirectoryStore(directory=tmp_path / missing)
    for verb in (
        lambda: store.get("ledger/chat.json"),
        lambda: store.put("ledger/chat.json", b"", replacing=None),
        lambda: store.write("key", b""),
        lambda: next(store.read("key")),
        lambda: next(store.list("")),
        lambda: next(store.list("models/x/")),
        lambda: store.delete("key"),
        lambda: store.begin("key"),
        lambda: store.send(UPLOAD, 1, memoryview(b"")),
        lambda: store.sent(UPLOAD),
        lambda: store.complete(UPLOAD, []),
        lambda: store.abort(UPLOAD),
        lambda: store.unfinished(""),
    ):
        with pytest.raises(Unavailable, match="is not there; see that its file system is mounted"):
            verb()
    assert list(tmp_path.iterdir()) == []
