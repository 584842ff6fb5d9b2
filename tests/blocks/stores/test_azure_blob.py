"""How the Azure block says no; what it promises is asked of it on Azurite, in the contract of stores."""

import traceback

import pytest

from blocks.errors import Conflict, Refused, SkyferryError, Unavailable
from blocks.ports.store import MultipartUpload
from blocks.stores.azure_blob import AzureStore
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
        (500, "OperationTimedOut", Unavailable, "try again"),
        (429, "Whatever", Unavailable, "try again"),
        (408, "Whatever", Unavailable, "try again"),
        (401, "Whatever", Refused, "Storage Blob Data Contributor"),
        (413, "RequestBodyTooLarge", Refused, "in one request"),
        (501, "Whatever", Refused, "operation"),
        (404, "", Unavailable, "not the store"),
    ],
)
def test_each_answer_says_what_to_do(status: int, code: str, error: type[SkyferryError], words: str) -> None:
    """Azure's code becomes an error that names account, container and key and says what helps."""
    with canned_server(status, {"x-ms-error-code": code, "Retry-After": "0"}) as server:
        with pytest.raises(error, match=words) as refusal:
            store_at(server.address).send(MultipartUpload("models/weights", "1", 0), 1, memoryview(b"bytes"))
        assert all(word in str(refusal.value) for word in (server.address, "mirrors", "models/weights"))


@pytest.mark.parametrize(
    "body", [b"", b"<html><body>Log in</body></html>", b"<html><br>", b"{}", b"<Error><Code>ServerBusy</Code></Error>"]
)
def test_a_good_status_alone_is_no_answer_of_a_store(body: bytes) -> None:
    """Nothing is stored or absent because a log-in page says 200; what Azure's library makes of it becomes ours."""
    upload = MultipartUpload("key", "1", 0)
    with canned_server(200, {"Content-Type": "application/xml"}, body) as server:
        store = store_at(server.address)
        for verb in (
            lambda: store.get("ledger/chat.json"),
            lambda: store.put("ledger/chat.json", b"", replacing=None),
            lambda: store.write("key", b"bytes"),
            lambda: list(store.list("models/")),
            lambda: store.send(upload, 1, memoryview(b"bytes")),
            lambda: store.delete("key"),
            lambda: store.unfinished("models/"),
        ):
            with pytest.raises(Unavailable, match="not the store"):
                verb()


def test_a_version_that_is_not_the_one_seen_is_a_conflict() -> None:
    """The condition failed: read what stands."""
    with (
        canned_server(412, {"x-ms-error-code": "ConditionNotMet"}) as server,
        pytest.raises(Conflict, match="read it again"),
    ):
        store_at(server.address).put("ledger/chat.json", b"", replacing='"etag"')


@pytest.mark.parametrize(
    ("code", "missing"), [("BlobNotFound", True), ("ResourceNotFound", True), ("ContainerNotFound", False), ("", False)]
)
def test_only_the_store_says_that_something_is_missing(code: str, *, missing: bool) -> None:
    """Neither a proxy before it, nor a container that is not there, means that no ledger was ever written."""
    with canned_server(404, {"x-ms-error-code": code} if code else {}) as server:
        store = store_at(server.address)
        if missing:
            assert store.get("ledger/chat.json") is None
        else:
            with pytest.raises(SkyferryError, match="404"):
                store.get("ledger/chat.json")


def test_a_retention_policy_is_no_other_version() -> None:
    """409 has many reasons: whoever reads again what stands would do so for ever."""
    with (
        canned_server(409, {"x-ms-error-code": "BlobImmutableDueToPolicy"}) as server,
        pytest.raises(Refused, match="BlobImmutableDueToPolicy"),
    ):
        store_at(server.address).put("ledger/chat.json", b"", replacing='"etag"')


def test_a_wait_that_was_told_is_kept() -> None:
    """Retry-After reaches whoever tries again, and the SDK does not try before."""
    with canned_server(503, {"x-ms-error-code": "ServerBusy", "Retry-After": "7"}) as server:
        with pytest.raises(Unavailable) as refusal:
            store_at(server.address).write("key", b"")
        assert (refusal.value.after_seconds, len(server.requests)) == (7, 1)


def test_the_key_is_not_shown() -> None:
    """The block's text has no secret in it."""
    store = store_at("127.0.0.1:9")
    assert KEY not in f"{store!r} {store} {store.model_dump_json()}"


def test_nothing_of_azures_own_exception_is_logged() -> None:
    """It has the whole answer in its text, and Azure's answers quote the signature that was wrong."""
    with canned_server(403, {"x-ms-error-code": "AuthenticationFailed"}, f"<Error>{KEY}</Error>".encode()) as server:
        for verb in ("get", "delete"):
            with pytest.raises(Refused) as refusal:
                getattr(store_at(server.address), verb)("key")
            assert KEY not in "".join(traceback.format_exception(refusal.value))


def test_an_account_key_that_is_none_is_refused_in_words() -> None:
    """The SDK wants base64, and finds out at the first request."""
    store = AzureStore.model_validate(
        {"container": "mirrors", "account_url": "http://127.0.0.1:9/account", "account_key": "no-key-at-all"}
    )
    with pytest.raises(Refused) as refusal:
        store.get("key")
    assert "no-key-at-all" not in "".join(traceback.format_exception(refusal.value))
