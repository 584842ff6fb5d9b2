"""What mirrors are collected by: the ledgers, which have to be read, every one."""

import pytest

from blocks.errors import Unavailable
from flows.policy.releases.ledger import ledger_key
from flows.tasks.mirror import read_needed
from tests.fakes.store import FakeStore


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"releases": [{"token": "very-secret"}]}'])
def test_a_ledger_that_is_none_is_one_that_cannot_be_read(body: bytes) -> None:
    """Nobody knows what it needs, so nothing is collected; and nothing of it is shown."""
    store = FakeStore()
    store.write(ledger_key("chat"), body)
    with pytest.raises(Unavailable, match="is no ServiceRecord") as refusal:
        read_needed.fn([store])
    assert "very-secret" not in str(refusal.value)
