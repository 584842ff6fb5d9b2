"""What only Google Cloud Storage does, and how its block says no."""

import json
import traceback

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr

from blocks.errors import Conflict, Refused, SkyferryError, Unavailable
from blocks.ports.store import MultipartUpload, Part
from blocks.stores.google_storage import COMPOSED_AT_ONCE, GoogleStore
from tests.servers import CannedServer, canned_server, running_fake_gcs  # noqa: F401 - the fixture google_store

UPLOAD = MultipartUpload("key", "1", 0)


def store_at(address: str) -> GoogleStore:
    return GoogleStore.model_validate({"bucket": "mirrors", "endpoint_url": f"http://{address}"})


MISSING = json.dumps({"error": {"code": 404, "message": "No.", "errors": [{"reason": "notFound"}]}}).encode()


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (401, Refused, "service account"),
        (403, Refused, "roles/storage.objectUser"),
        (404, Refused, "create the bucket"),
        (400, Refused, "settings"),
        (413, Refused, "in one request"),
        (501, Refused, "operation"),
        (408, Unavailable, "try again"),
        (429, Unavailable, "try again"),
        (500, Unavailable, "try again"),
        (503, Unavailable, "try again"),
        (522, Unavailable, "try again"),
    ],
)
def test_each_answer_says_what_to_do(status: int, error: type[SkyferryError], words: str) -> None:
    """What Google answers becomes an error that names bucket and key and says what helps."""
    with canned_server(status, {"Content-Type": "application/json"}, MISSING) as server:
        with pytest.raises(error, match=words) as refusal:
            store_at(server.address).write("ledger/chat.json", b"")
        assert all(word in str(refusal.value) for word in ("gs://mirrors", "ledger/chat.json"))


@pytest.mark.parametrize("body", [b"<html>Sorry</html>", b"", b"{}"])
@pytest.mark.parametrize("status", [404, 408, 429, 500, 502, 503, 504])
def test_one_try_is_one_request(status: int, body: bytes) -> None:
    """Whoever asks tries again itself, as late as it was told: Google's library would go on for two minutes."""
    with canned_server(status, {"Retry-After": "7"}, body) as server:
        store = store_at(server.address)
        for verb in (
            lambda: store.get("ledger/chat.json"),
            lambda: store.write("key", b"bytes"),
            lambda: next(store.read("key")),
            lambda: next(store.list("models/")),
            lambda: store.begin("key"),
            lambda: store.send(UPLOAD, 1, memoryview(b"bytes")),
            lambda: store.sent(UPLOAD),
            lambda: store._compose(UPLOAD, [Part(1, 1, "part", "AAAAAA==")]),
            lambda: store.abort(UPLOAD),
            lambda: store.unfinished("models/"),
            lambda: store.copy_from(store, "key", "other"),
        ):
            before = asked(server)
            with pytest.raises(Unavailable, match=str(status)) as refusal:
                verb()
            assert refusal.value.after_seconds == 7
            assert asked(server) == before + 1


def asked(server: CannedServer) -> int:
    """Of the bucket itself the library asks by the way, in a thread of its own, for its traces."""
    return sum(not path.startswith("/storage/v1/b/mirrors?") for _, path, _ in server.requests)


def test_only_google_says_that_something_is_missing() -> None:
    """A proxy before it does not: then nobody knows what is there."""
    with canned_server(404, {"Content-Type": "application/json"}, MISSING) as server:
        assert store_at(server.address).get("ledger/chat.json") is None
    with canned_server(404, {"Content-Type": "text/html"}, b"<html>") as server, pytest.raises(Unavailable):
        store_at(server.address).delete("ledger/chat.json")


def test_an_address_is_signed_with_the_service_accounts_key() -> None:
    """It holds for as long as asked, and needs no network; without a key nothing can be signed, and that is said."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    account = {
        "type": "service_account",
        "client_email": "reader@project.iam.gserviceaccount.com",
        "token_uri": "https://oauth2.example/token",
        "private_key": pem,
        "project_id": "project",
    }
    url = GoogleStore(bucket="mirrors", service_account=SecretStr(json.dumps(account))).presigned_url("a/b.gguf", 3600)
    address, _, query = url.partition("?")
    assert address == "https://storage.googleapis.com/mirrors/a/b.gguf"
    assert "X-Goog-Expires=3600" in query
    assert pem.splitlines()[1] not in url
    with pytest.raises(Refused, match=r"gs://mirrors/a/b\.gguf.*service account's key"):
        store_at("127.0.0.1:1").presigned_url("a/b.gguf", 3600)


@pytest.mark.parametrize("body", [b"", b"<html>Log in</html>", b"[]", b"{}", b'"x"'])
def test_a_good_status_alone_is_no_answer_of_a_store(body: bytes) -> None:
    """Nothing is absent because a log-in page says 200; what Google's library makes of it becomes an error of ours."""
    with canned_server(200, {"Content-Type": "application/json"}, body) as server:
        store = store_at(server.address)
        for verb in (
            lambda: list(store.list("models/")),
            lambda: store.sent(UPLOAD),
            lambda: store.abort(UPLOAD),
            lambda: store.unfinished("models/"),
            *((lambda: store.get("key"), lambda: next(store.read("key"))) if body != b"{}" else ()),
        ):
            with pytest.raises(Unavailable, match=r"gs://mirrors"):
                verb()


def test_the_object_is_made_only_where_there_is_none() -> None:
    """Composing carries the condition, and a store that says that it does not hold is a conflict."""
    with (
        canned_server(412, {"Content-Type": "application/json"}, b"{}") as server,
        pytest.raises(Conflict, match="there already"),
    ):
        store_at(server.address)._compose(UPLOAD, [Part(1, 1, "part", "AAAAAA==")])
    assert any("compose" in path and "ifGenerationMatch=0" in path for _, path, _ in server.requests)


def test_a_wrong_answer_about_a_part_is_worth_another_try() -> None:
    """A store that has another checksum than was sent has other bytes."""
    with (
        canned_server(200, {"Content-Type": "application/json"}, b'{"crc32c": "AAAAAA==", "name": "x"}') as server,
        pytest.raises(Unavailable),
    ):
        store_at(server.address).send(UPLOAD, 1, memoryview(b"bytes"))


@pytest.mark.server
def test_more_parts_than_are_composed_at_once(google_store: GoogleStore) -> None:
    """An object of hundreds of parts is composed in levels, and nothing of them is left."""
    body = bytes(range(256)) * 9
    upload = google_store.begin("many")
    count = COMPOSED_AT_ONCE * 2 + 1
    size = -(-len(body) // count)
    pieces = [memoryview(body)[start : start + size] for start in range(0, len(body), size)]
    assert len(pieces) > COMPOSED_AT_ONCE
    google_store.complete(upload, [google_store.send(upload, number, part) for number, part in enumerate(pieces, 1)])
    assert b"".join(google_store.read("many")) == body
    assert google_store.unfinished("") == ()


def test_the_key_is_not_shown() -> None:
    """The block's text has no secret in it."""
    account = {"client_email": "me@example.org", "private_key": "very-secret", "token_uri": "https://example.org"}
    store = GoogleStore.model_validate({"bucket": "mirrors", "service_account": json.dumps(account)})
    assert "very-secret" not in f"{store!r} {store} {store.model_dump_json()}"


PEM = "-----BEGIN PRIVATE KEY-----\nbm8ta2V5LWF0LWFsbA==\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize("private_key", ["very-secret", PEM, PEM[:40], ""])
def test_a_key_that_cannot_sign_is_refused_in_words(private_key: str) -> None:
    """It is found out when it is first used, by whatever is asked first, and nothing of it is shown."""
    account = {"client_email": "me@example.org", "private_key": private_key, "token_uri": "https://example.org"}
    store = GoogleStore.model_validate({"bucket": "mirrors", "service_account": json.dumps(account)})
    for verb in (lambda: store.get("key"), lambda: next(store.list("")), lambda: store.presigned_url("key", 60)):
        with pytest.raises(Refused, match=r"gs://mirrors/.*copy the whole JSON key") as refusal:
            verb()
        assert all(line not in told(refusal.value) for line in private_key.splitlines() if line)


def told(error: BaseException) -> str:
    """As Prefect logs it."""
    return "".join(traceback.format_exception(error))


def test_nothing_of_googles_own_exception_is_logged() -> None:
    """It quotes what a server said, with whatever that quoted."""
    body = json.dumps({"error": {"code": 403, "message": "no: X-Goog-Signature=abcdefgh12345678"}}).encode()
    with canned_server(403, {"Content-Type": "application/json"}, body) as server:
        with pytest.raises(Refused) as refusal:
            store_at(server.address).get("key")
        assert "abcdefgh12345678" not in told(refusal.value)
