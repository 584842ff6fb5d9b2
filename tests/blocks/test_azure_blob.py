"""How the Azure block says no; what it promises is asked of it on Azurite, in the contract of stores."""

import pytest

from blocks.azure_blob import AzureStore
from blocks.errors import Conflict, Refused, SkyferryError, Unavailable
from blocks.ports import Unfinished
from tests.servers import canned_server

KEY = "c2VjcmV0LXNlY3JldA=="


def store_at(address: str) -> AzureStore:
    return AzureStore.model_validate(
        {"container": "mirrors", "account_url": f"http://{address}/account", "account_key": KEY}
    )


@pytest.mark.parametrize(
    ("status", "code", "error", "words"),
    [
        (403, "AuthorizationFailure", Refused, "Storage Blob Data Contributor"),
        (404, "ContainerNotFound", Refused, "create the container"),
        (400, "InvalidHeaderValue", Refused, "settings"),
        (400, "Md5Mismatch", Unavailable, "try again"),
        (503, "ServerBusy", Unavailable, "try again"),
    ],
)
def test_each_answer_says_what_to_do(status: int, code: str, error: type[SkyferryError], words: str) -> None:
    """Azure's code becomes an error that names account, container and key and says what helps."""
    with canned_server(status, {"x-ms-error-code": code, "Retry-After": "0"}) as server:
        with pytest.raises(error, match=words) as refusal:
            store_at(server.address).send(Unfinished("models/weights", "1", 0), 1, memoryview(b"bytes"))
        assert all(word in str(refusal.value) for word in (server.address, "mirrors", "models/weights"))


def test_a_version_that_is_not_the_one_seen_is_a_conflict() -> None:
    """The condition failed: read what stands."""
    with (
        canned_server(412, {"x-ms-error-code": "ConditionNotMet"}) as server,
        pytest.raises(Conflict, match="read it again"),
    ):
        store_at(server.address).put("ledger/chat.json", b"", replacing='"etag"')


def test_the_key_is_not_shown() -> None:
    """The block's text has no secret in it."""
    store = store_at("127.0.0.1:9")
    assert KEY not in f"{store!r} {store} {store.model_dump_json()}"
