"""Texts that are kept under their hash."""

import pytest

from blocks.errors import Refused
from blocks.stores.kept import ENGINES, keep, read_kept, sha256_of
from tests.fakes.store import FakeStore

BODY = b"run: serve"
HASH = sha256_of(BODY)


def test_what_was_kept_is_read_by_its_hash() -> None:
    """Keeping it again writes nothing."""
    store = FakeStore()
    keep(store, {HASH: BODY})
    first = store.get(ENGINES + HASH)
    keep(store, {HASH: BODY})
    assert store.get(ENGINES + HASH) == first
    assert read_kept(store, HASH, what="a task") == BODY


def test_what_was_changed_or_deleted_is_refused_and_mended_by_keeping() -> None:
    """Whoever may write to the store starts nothing that no gate has seen."""
    store = FakeStore()
    keep(store, {HASH: BODY})
    store.write(ENGINES + HASH, b"run: mine some coins")
    with pytest.raises(Refused, match="a task, reads as something else"):
        read_kept(store, HASH, what="a task")
    keep(store, {HASH: BODY})
    assert read_kept(store, HASH, what="a task") == BODY
    store.delete(ENGINES + HASH)
    with pytest.raises(Refused, match="a task, is in the store no more"):
        read_kept(store, HASH, what="a task")
