"""How the S3 block says no, and what it leaves in the bucket."""

import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import cloudpickle
import httpx
import pytest
from botocore.exceptions import ClientError

from blocks.errors import Conflict, Refused, SkyferryError, Unavailable, Unsupported
from blocks.local.processes import free_port
from blocks.ports.store import MultipartUpload, Part
from blocks.stores.s3 import S3Store
from blocks.stores.s3_checksums import CHECKSUMS, Algorithm
from tests.faults import Fault, faulty_proxy
from tests.servers import CannedServer, canned_server, running_seaweedfs, seaweedfs  # noqa: F401 - the fixture s3_store

MIB = 1 << 20


def store_at(address: str) -> S3Store:
    return S3Store.model_validate(
        {
            "bucket": "mirrors",
            "endpoint_url": f"http://{address}",
            "access_key_id": "tests",
            "secret_access_key": "very-secret",
        }
    )


def changed(store: S3Store, **settings: str) -> S3Store:
    return S3Store.model_validate({**store.model_dump(), **settings})


@pytest.mark.parametrize(
    ("status", "code", "error", "words"),
    [
        (403, "AccessDenied", Refused, "s3:GetObject"),
        (403, "InvalidAccessKeyId", Refused, "access key id"),
        (403, "SignatureDoesNotMatch", Refused, "secret access key"),
        (400, "ExpiredToken", Refused, "renew"),
        (400, "AuthorizationHeaderMalformed", Refused, "region"),
        (404, "NoSuchBucket", Refused, "create the bucket"),
        (507, "XMinioStorageFull", Refused, "free space"),
        (418, "Teapot", Refused, "Teapot"),
        (400, "RequestTimeout", Unavailable, "try again"),
        (400, "requesttimeout", Unavailable, "try again"),
        (409, "OperationAborted", Unavailable, "try again"),
        (429, "Whatever", Unavailable, "try again"),
        (408, "Whatever", Unavailable, "try again"),
        (503, "Whatever", Unavailable, "try again"),
        (520, "Whatever", Unavailable, "try again"),
        (403, "accessdenied", Refused, "s3:GetObject"),
        (403, "Whatever", Refused, "credentials"),
        (301, "Whatever", Refused, "region"),
        (405, "Whatever", Refused, "endpoint"),
        (413, "Whatever", Refused, "in one request"),
        (501, "Whatever", Refused, "operation"),
        (507, "Whatever", Refused, "free space"),
        (404, "BucketNotFound", Refused, "create the bucket"),
        (500, "InternalError", Unavailable, "disk has room"),
        (503, "SlowDown", Unavailable, "try again"),
    ],
)
def test_each_answer_says_what_to_do(status: int, code: str, error: type[SkyferryError], words: str) -> None:
    """The store's code becomes an error that names bucket, endpoint and key and says what helps."""
    body = f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode()
    with canned_server(status, {"Content-Type": "application/xml"}, body) as server:
        with pytest.raises(error, match=words) as refusal:
            store_at(server.address).get("ledger/chat.json")
        assert all(word in str(refusal.value) for word in ("s3://mirrors", server.address, "ledger/chat.json"))


BODIES = {
    "HTML": b"<html><body>Sorry</body></html>",
    "no body": b"",
    "text": b"upstream connect error",
    "half": b"<Err",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("status", [404, 408, 429, 500, 502, 503, 504])
def test_what_stands_before_a_store_passes(status: int, body: bytes) -> None:
    """A proxy knows no codes: its status says that asking again may help, and its 404 nothing of what is stored."""
    with canned_server(status, {"Retry-After": "7"}, body) as server:
        store = store_at(server.address)
        for verb in (
            lambda: store.get("ledger/chat.json"),
            lambda: store.put("ledger/chat.json", b"", replacing='"seen"'),
            lambda: store.write("key", b"bytes"),
            lambda: next(store.read("key")),
            lambda: next(store.list("models/")),
            lambda: store.delete("key"),
            lambda: store.send(MultipartUpload("key", "1", 0), 1, memoryview(b"bytes")),
            lambda: store.sent(MultipartUpload("key", "1", 0)),
            lambda: store.complete(MultipartUpload("key", "1", 0), [Part(1, 1, '"e"', "AAAAAAAAAAA=")]),
            lambda: store.abort(MultipartUpload("key", "1", 0)),
        ):
            before = len(server.requests)
            with pytest.raises(Unavailable, match=str(status)) as refusal:
                verb()
            assert refusal.value.after_seconds == 7
            assert len(server.requests) == before + 1  # whoever was told to wait does not come back at once


ANSWERS_OF_OTHERS = {
    "nothing": b"",
    "blanks": b"  \n ",
    "a page": b"<html><body>Log in</body></html>",
    "a page that is no XML": b"<html><br>",
    "half": b"<ListBucketResult><Contents>",
    "an error": b'<?xml version="1.0"?><Error><Code>InternalError</Code><Message>No.</Message></Error>',
    "JSON": b"{}",
}


@pytest.mark.parametrize("body", ANSWERS_OF_OTHERS.values(), ids=ANSWERS_OF_OTHERS)
def test_a_good_status_alone_is_no_answer_of_a_store(body: bytes) -> None:
    """Nothing is stored, complete or absent because a log-in page says 200: whatever trusts that deletes mirrors."""
    part = Part(1, 1, '"e"', "AAAAAAAAAAA=")
    with canned_server(200, {"Content-Type": "application/xml"}, body) as server:
        store = store_at(server.address)
        for verb in (
            lambda: store.get("ledger/chat.json"),
            lambda: store.put("ledger/chat.json", b"", replacing='"seen"'),
            lambda: store.write("key", b"bytes"),
            lambda: next(store.read("key")),
            lambda: list(store.list("models/")),
            lambda: store.begin("key"),
            lambda: store.send(MultipartUpload("key", "1", 0), 1, memoryview(b"bytes")),
            lambda: store.sent(MultipartUpload("key", "1", 0)),
            lambda: store.complete(MultipartUpload("key", "1", 0), [part]),
            lambda: store.unfinished("models/"),
        ):
            with pytest.raises(Unavailable) as refusal:
                verb()
            assert len(str(refusal.value).splitlines()) == 1


def test_a_listing_that_does_not_say_where_it_goes_on_is_not_whole() -> None:
    """A store of S3's older form lists a thousand: of the rest nobody would ever know, and needed mirrors would go."""
    body = (
        b"<ListBucketResult><Name>mirrors</Name><IsTruncated>true</IsTruncated>"
        b"<Contents><Key>models/a</Key><Size>1</Size></Contents></ListBucketResult>"
    )
    with (
        canned_server(200, {"Content-Type": "application/xml"}, body) as server,
        pytest.raises(Unavailable, match="more than it lists"),
    ):
        list(store_at(server.address).list("models/"))


@pytest.mark.parametrize("code", ["NoSuchKey", "nosuchkey", "NotFound", "NoSuchObject", "ObjectNotFound"])
def test_what_is_missing_is_none_however_it_is_called(code: str) -> None:
    """The status says it, if it is a store that answers; reading what has to be there is refused."""
    body = f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode()
    with canned_server(404, {"Content-Type": "application/xml"}, body) as server:
        store = store_at(server.address)
        assert store.get("ledger/chat.json") is None
        store.abort(MultipartUpload("key", "1", 0))
        with pytest.raises(Refused, match="read key: 404"):
            next(store.read("key"))
        for verb in (
            lambda: store.send(MultipartUpload("key", "1", 0), 1, memoryview(b"bytes")),
            lambda: store.sent(MultipartUpload("key", "1", 0)),
            lambda: store.complete(MultipartUpload("key", "1", 0), [Part(1, 1, '"e"', "AAAAAAAAAAA=")]),
        ):
            with pytest.raises(Conflict, match="begin anew"):
                verb()


@pytest.mark.parametrize("code", ["NotImplemented", "Whatever"])
def test_a_store_without_conditional_writes_says_so(code: str) -> None:
    """No ledger is safe there, and mirrors are: the error is one of its own, and says what to do."""
    body = f"<Error><Code>{code}</Code><Message>If-None-Match</Message></Error>".encode()
    with (
        canned_server(501, {"Content-Type": "application/xml"}, body) as server,
        pytest.raises(Unsupported, match=r"ledger/chat\.json.*as a further store"),
    ):
        store_at(server.address).put("ledger/chat.json", b"{}", replacing=None)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        *((412, "PreconditionFailed"), (409, "ConditionalRequestConflict"), (404, "NoSuchKey")),
        *((412, "Whatever"), (409, "Whatever"), (404, "NotFound")),
    ],
)
def test_each_way_to_be_late_is_a_conflict(status: int, code: str) -> None:
    """S3 has three answers for a version that is no longer there."""
    body = f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode()
    with (
        canned_server(status, {"Content-Type": "application/xml"}, body) as server,
        pytest.raises(Conflict, match=r"ledger/chat\.json"),
    ):
        store_at(server.address).put("ledger/chat.json", b"{}", replacing='"seen"')


def test_a_store_that_is_not_there_may_come_back() -> None:
    """No connection is worth another try."""
    with pytest.raises(Unavailable, match="can be reached"):
        store_at(f"127.0.0.1:{free_port()}").get("key")


def test_an_object_that_breaks_off_is_worth_another_try() -> None:
    """Fewer bytes than the store announced are not taken for the object."""
    with (
        canned_server(200, {"Content-Length": "9", "Connection": "close"}, b"only") as server,
        pytest.raises(Unavailable, match=r"model\.gguf"),
    ):
        b"".join(store_at(server.address).read("model.gguf"))


def test_the_block_travels_to_another_process_with_its_client_in_use() -> None:
    """Prefect pickles blocks for tasks, also after they have spoken to the store."""
    store = store_at("127.0.0.1:9")
    assert store.client is store.client
    copy = cloudpickle.loads(cloudpickle.dumps(store))
    assert copy == store
    assert copy.client is store.client


def test_the_secret_is_not_shown() -> None:
    """Neither the block's text nor its saved form without secrets has the secret in it."""
    store = store_at("127.0.0.1:9")
    assert "very-secret" not in f"{store!r} {store} {store.model_dump_json()}"


def test_a_store_needs_a_scheme() -> None:
    """A host name alone is caught where it is typed."""
    with pytest.raises(Refused, match="endpoint_url"):
        S3Store(bucket="mirrors", endpoint_url="localhost:8333")


@pytest.mark.server
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bucket": "missing"}, "create the bucket"),
        ({"secret_access_key": "wrong"}, "secret access key"),
        ({"access_key_id": "nobody"}, "access key id"),
        ({"bucket": "no such name"}, "settings"),
    ],
)
def test_wrong_settings_are_refused(s3_store: S3Store, settings: dict[str, str], words: str) -> None:
    """Whatever verb meets a wrong setting names the setting."""
    store = changed(s3_store, **settings)
    for verb in (
        lambda: store.get("key"),
        lambda: store.put("key", b"", replacing=None),
        lambda: next(store.read("key")),
        lambda: next(store.list("")),
        lambda: store.delete("key"),
    ):
        with pytest.raises(Refused, match=words):
            verb()


@pytest.mark.server
def test_a_signed_address_is_for_one_object_without_credentials(s3_store: S3Store) -> None:
    """Whoever has the address reads that object, and with the same signature no other."""
    for name in ("signed", "other"):
        s3_store.put(name, name.encode(), replacing=None)
    url = s3_store.presigned_url("signed", 60)
    assert httpx.get(url).content == b"signed"
    assert httpx.get(url.replace("/signed?", "/other?")).status_code == 403


@pytest.mark.server
def test_a_bucket_is_made_once(s3_store: S3Store) -> None:
    """Making one's own bucket again changes nothing; a new one can be written at once."""
    store = changed(s3_store, bucket="second")
    store.create_bucket()
    store.put("key", b"one", replacing=None)
    store.create_bucket()
    assert store.get("key") is not None


@pytest.mark.server
def test_the_store_keeps_a_checksum_of_the_whole_object(s3_store: S3Store) -> None:
    """However many parts it came in, the object's CRC64NVME is the one of its bytes."""
    body = memoryview(bytes(range(256)) * (MIB // 16))
    upload = s3_store.begin("checked")
    parts = [s3_store.send(upload, 1, body[: 10 * MIB]), s3_store.send(upload, 2, body[10 * MIB :])]
    s3_store.complete(upload, parts)
    found = s3_store.client.head_object(Bucket=s3_store.bucket, Key="checked", ChecksumMode="ENABLED")
    assert found["ChecksumCRC64NVME"] == s3_store.checksum(body)


@pytest.mark.server
@pytest.mark.parametrize("algorithm", CHECKSUMS)
def test_each_checksum_is_compared_by_the_store(s3_store: S3Store, algorithm: Algorithm) -> None:
    """A part whose checksum is not the one that is sent with it is refused, whichever is chosen."""
    upload = changed(s3_store, checksum_algorithm=algorithm).begin("compared")
    checksum = CHECKSUMS[algorithm]
    wrong = checksum.sent_with(checksum.of(memoryview(b"other")))
    named = {"Bucket": s3_store.bucket, "Key": upload.key, "UploadId": upload.id}
    with pytest.raises(ClientError, match="BadDigest"):
        s3_store.client.upload_part(**named, PartNumber=1, Body=b"bytes", **wrong)
    s3_store.abort(upload)


def test_a_store_that_does_not_know_the_checksum_says_where_to_choose() -> None:
    """Whoever meets such a store is told of the setting."""
    body = b"<Error><Code>NotImplemented</Code><Message>x-amz-checksum-algorithm</Message></Error>"
    with (
        canned_server(501, {"Content-Type": "application/xml"}, body) as server,
        pytest.raises(Refused, match="choose another one"),
    ):
        store_at(server.address).begin("key")


@pytest.mark.parametrize("algorithm", ["crc32c", "md5"])
def test_a_store_without_checksums_is_asked_for_none_of_its_own(algorithm: Algorithm) -> None:
    """boto3 would add one to each request, which such a store refuses."""
    with canned_server(200, {"ETag": '"1"'}, b"") as server:
        changed(store_at(server.address), checksum_algorithm=algorithm).put("key", b"one", replacing=None)
    (headers,) = [headers for _, _, headers in server.requests]
    assert not [name for name in headers if "checksum" in name.lower() or "trailer" in name.lower()]


def test_bytes_that_change_on_their_way_are_sent_again() -> None:
    """What the store calls a wrong checksum is worth another try of that part."""
    body = b"<Error><Code>BadDigest</Code><Message>No.</Message></Error>"
    with (
        canned_server(400, {"Content-Type": "application/xml"}, body) as server,
        pytest.raises(Unavailable, match="BadDigest"),
    ):
        store_at(server.address).send(MultipartUpload("key", "1", 0), 1, memoryview(b"bytes"))


def test_a_busy_store_says_for_how_long() -> None:
    """Retry-After reaches whoever tries again."""
    body = b"<Error><Code>SlowDown</Code><Message>No.</Message></Error>"
    with (
        canned_server(503, {"Content-Type": "application/xml", "Retry-After": "7"}, body) as server,
        pytest.raises(Unavailable) as refusal,
    ):
        store_at(server.address).send(MultipartUpload("key", "1", 0), 1, memoryview(b"bytes"))
    assert refusal.value.after_seconds == 7


@pytest.mark.server
@pytest.mark.parametrize(
    ("status", "code"),
    [(501, "NotImplemented"), (501, ""), (400, "InvalidArgument"), (400, "InvalidRequest"), (400, "Whatever")],
)
def test_a_store_without_conditional_completion_completes(s3_store: S3Store, status: int, code: str) -> None:
    """In whichever words it says that it does not know the condition, it is asked without; but not over an object."""
    body = f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode() if code else b""
    with faulty_proxy(urlsplit(s3_store.endpoint_url or "").netloc) as proxy:
        store = changed(s3_store, endpoint_url=f"http://{proxy.address}")
        key, bytes_ = f"unconditional/{uuid4()}", bytes(5 * MIB)

        def complete() -> None:
            proxy.faults.append(Fault("POST", r"\?uploadId", "answer", status, body=body))
            upload = store.begin(key)
            store.complete(upload, [store.send(upload, 1, memoryview(bytes_))])

        complete()
        assert b"".join(s3_store.read(key)) == bytes_
        with pytest.raises(Conflict, match="there already"):
            complete()


def canned_etag(etag: str, **headers: str) -> AbstractContextManager[CannedServer]:
    return canned_server(200, {"ETag": etag, **headers})


MD5 = "4b3a6218bb3e3a7303e8a171a60fcf92"
"""Of b"bytes"."""


@pytest.mark.parametrize("etag", [f'"{MD5}"', MD5, f'"{MD5.upper()}"'])
def test_an_etag_that_is_an_md5_is_one_in_any_case(etag: str) -> None:
    """OSS writes it in capitals; the part, and the upload that is completed with it, is what was sent."""
    with canned_etag(etag) as server:
        store = changed(store_at(server.address), checksum_algorithm="md5")
        part = store.send(MultipartUpload("key", "1", 0), 1, memoryview(b"bytes"))
        assert part.is_vouched
        assert store.holds(Part(1, 5, etag, None), memoryview(b"bytes"))
        assert store.write("key", b"bytes")
        server.body = b"<CompleteMultipartUploadResult><Key>key</Key></CompleteMultipartUploadResult>"
        store.complete(MultipartUpload("key", "1", 0), [part])


@pytest.mark.parametrize(
    ("etag", "headers"),
    [
        ('"opaque-1"', {}),
        (f'W/"{MD5}"', {}),
        (f'"{"0" * 32}"', {"x-amz-server-side-encryption": "aws:kms"}),
        (f'"{"0" * 32}"', {"x-amz-server-side-encryption": "aws:kms:dsse"}),
        (f'"{"0" * 32}"', {"x-amz-server-side-encryption-customer-algorithm": "AES256"}),
    ],
)
def test_an_etag_that_is_no_md5_says_nothing(etag: str, headers: dict[str, str]) -> None:
    """Weak, opaque, or of bytes encrypted with a key: the part counts as not vouched for, and is no conflict."""
    with canned_etag(etag, **headers) as server:
        store = changed(store_at(server.address), checksum_algorithm="md5")
        part = store.send(MultipartUpload("key", "1", 0), 1, memoryview(b"bytes"))
        assert not part.is_vouched
        assert not store.holds(Part(1, 5, etag, None), memoryview(b"bytes"))
        assert not store.write("key", b"bytes")
        server.body = b"<CompleteMultipartUploadResult><Key>key</Key></CompleteMultipartUploadResult>"
        store.complete(MultipartUpload("key", "1", 0), [part])


def test_an_etag_of_other_bytes_is_told_for_what_it_is() -> None:
    """Damaged on the way, or no MD5 after all: whoever reads the story of the tries learns of both."""
    with canned_etag(f'"{"0" * 32}"') as server:
        store = changed(store_at(server.address), checksum_algorithm="md5")
        with pytest.raises(Unavailable, match=r"part 1 of key where .* no MD5, choose another checksum"):
            store.send(MultipartUpload("key", "1", 0), 1, memoryview(b"bytes"))


def test_a_store_that_ignores_checksums_vouches_for_nothing() -> None:
    """What it does not say is unknown, and unknown is not equal."""
    with canned_etag('"opaque"') as server:
        store = store_at(server.address)
        assert not store.send(MultipartUpload("key", "1", 0), 1, memoryview(b"bytes")).is_vouched
        assert not store.write("key", b"bytes")


@pytest.mark.server
def test_a_listed_part_is_known_by_its_md5(s3_store: S3Store) -> None:
    """SeaweedFS lists no checksums: only the ETag tells these bytes from others of the same length."""
    upload = s3_store.begin(f"listed/{uuid4()}")
    s3_store.send(upload, 1, memoryview(b"bytes"))
    (part,) = s3_store.sent(upload)
    assert part.checksum is None
    assert s3_store.holds(part, memoryview(b"bytes"))
    assert not s3_store.holds(part, memoryview(b"other"))
    s3_store.abort(upload)


@pytest.mark.server
def test_a_full_disk_is_said(tmp_path: Path) -> None:
    """A SeaweedFS that has no room left refuses a part with a hint, and publishes nothing."""
    with seaweedfs(tmp_path, "-volume.max=1", "-master.volumeSizeLimitMB=8") as store:
        upload = store.begin("large")

        def fill() -> None:
            for number in range(1, 21):
                store.send(upload, number, memoryview(bytes(10 * MIB)))

        with pytest.raises(Unavailable, match="disk has room"):
            fill()
        assert [*store.list("")] == []


@pytest.mark.server
def test_seaweedfs_keeps_what_was_written(tmp_path: Path) -> None:
    """Killed and started again in the same place, on other ports, it has every object, and every part."""
    with seaweedfs(tmp_path) as store:
        store.write("whole", bytes(20 * MIB))
        part = store.send(store.begin("parts"), 1, memoryview(bytes(20 * MIB)))
    with seaweedfs(tmp_path) as store:
        assert b"".join(store.read("whole")) == bytes(20 * MIB)
        (upload,) = store.unfinished("")
        store.complete(upload, [part])
        assert b"".join(store.read("parts")) == bytes(20 * MIB)


def test_nothing_of_boto3s_own_exception_is_logged() -> None:
    """It quotes what the store said, and stores quote what was signed."""
    body = b"<Error><Code>SignatureDoesNotMatch</Code><Message>not very-secret</Message></Error>"
    with canned_server(403, {"Content-Type": "application/xml"}, body) as server:
        with pytest.raises(Refused) as refusal:
            store_at(server.address).get("key")
        assert "very-secret" not in "".join(traceback.format_exception(refusal.value))


def test_half_a_pair_of_keys_is_refused_in_words() -> None:
    """By whatever is asked first, listings too."""
    store = S3Store(bucket="mirrors", access_key_id="tests")
    for verb in (
        lambda: store.get("key"),
        lambda: next(store.list("")),
        lambda: store.unfinished(""),
        lambda: store.sent(MultipartUpload("key", "1", 0)),
    ):
        with pytest.raises(Refused, match="s3://mirrors was not asked to"):
            verb()
