"""Amazon S3, and whatever else speaks its protocol: SeaweedFS, MinIO, Ceph, Cloudflare R2."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Literal, NoReturn

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from botocore.handlers import add_expect_header
from botocore.parsers import ResponseParserError
from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, HttpUrl, SecretStr

from blocks.cleaning import cleaned
from blocks.errors import Conflict, Refused, SkyferryError, Unavailable, Unsupported
from blocks.fields import Endpoint, KeyId, Near, OfItsKind, Secret
from blocks.http import statuses
from blocks.ports.store import MultipartUpload, Objects, Part, PartLimits, StoredObject, VersionedObject
from blocks.stores.s3_checksums import CHECKSUMS, Algorithm, Checksum

CHUNK_BYTES = 8 << 20
GIB = 1 << 30
PART_LIMITS = PartLimits(smallest_bytes=5 << 20, largest_bytes=5 * GIB, parts=10_000)
COPIED_AT_ONCE_BYTES = 5 * GIB
"""What S3 copies in one request; larger objects are copied in parts."""
COPIED_PART_BYTES = 1 * GIB

STALE = frozenset({"nosuchupload", "invalidpart", "invalidpartorder", "baddigest", "entitytoosmall"})
"""Why an upload cannot be completed as it stands; another begin may help, the same request again does not."""

BROKEN_OFF = (
    NoConnectionError,
    HTTPClientError,
    IncompleteReadError,
    FlexibleChecksumError,
    CredentialRetrievalError,
    ResponseParserError,  # an answer that ends too early
)

PASSES = frozenset(
    {
        *("slowdown", "requesttimeout", "throttling", "throttlingexception", "toomanyrequests", "operationaborted"),
        *("requestlimitexceeded", "incompletebody"),
        # bytes that changed on their way to the store
        *("baddigest", "invaliddigest", "xamzcontentchecksummismatch", "xamzcontentsha256mismatch"),
        "nosuchupload",  # the bucket's clean-up was faster; a new upload works
    }
)
"""Codes that say of a status which leaves it open, as 400 and 409 do, that asking again may help.

Codes are compared in lower case: whoever speaks S3's protocol spells them as it likes.
"""

NEXT_STEPS = {
    "nosuchbucket": "create the bucket, or correct its name and the endpoint",
    "bucketalreadyexists": "choose another name: this one is somebody else's",
    "nosuchkey": "mirror the model again, or correct the key",
    "accessdenied": "allow it s3:GetObject, PutObject, DeleteObject, AbortMultipartUpload, ListMultipartUploadParts, "
    "ListBucket and ListBucketMultipartUploads",
    "invalidaccesskeyid": "correct the access key id; the store does not know it",
    "signaturedoesnotmatch": "correct the secret access key; it is not the one of the access key id",
    "expiredtoken": "renew the credentials",
    "requesttimetooskewed": "set this machine's clock",
    "authorizationheadermalformed": "set the region that the bucket is in",
    "quotaexceeded": "raise the bucket's quota or delete old mirrors",
    **dict.fromkeys(
        # what stores say that are asked for a checksum that they do not have, and of other things too
        ("notimplemented", "invalidargument", "invalidrequest", "malformedxml"),
        "if it does not know the block's checksum, choose another one there; see docs/mirroring.md",
    ),
}


SAID_BY_STORES: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("GetObject", "HeadObject", "PutObject", "UploadPart"), frozenset({"ETag"})),
    "CreateMultipartUpload": frozenset({"UploadId"}),
    "CompleteMultipartUpload": frozenset({"ETag", "Key", "Location"}),
    "CopyObject": frozenset({"CopyObjectResult"}),
    "UploadPartCopy": frozenset({"CopyPartResult"}),
    "ListObjectsV2": frozenset({"IsTruncated", "KeyCount", "Name"}),
    "ListParts": frozenset({"IsTruncated", "UploadId", "Key"}),
    "ListMultipartUploads": frozenset({"IsTruncated", "Bucket"}),
}
"""At least one of these is in each good answer of a store. Of a log-in page with status 200, or of nothing, boto3 makes
an empty listing, and an upload that is complete.
"""
NEXT_PAGE = frozenset({"NextContinuationToken", "NextPartNumberMarker", "NextKeyMarker"})
"""Where a listing goes on that is not whole. Of one without, as a store gives that knows S3's older form alone, boto3
takes the first thousand for all.
"""


class S3Store(OfItsKind, Block):
    """A bucket in S3, or in a store that speaks its protocol, for mirrors and the ledger."""

    _block_type_name = "S3 Store"
    _block_type_slug = "s3-store"
    _documentation_url = HttpUrl("https://docs.aws.amazon.com/AmazonS3/latest/userguide/")
    model_config = ConfigDict(hide_input_in_errors=True)

    bucket: str = Field(title="Bucket", description="The bucket's name.")
    endpoint_url: Endpoint = Field(
        default=None,
        title="Endpoint",
        description="The address of a store other than Amazon's.",
    )
    region: str = Field(default="us-east-1", title="Region", description="The region that the bucket is in.")
    access_key_id: KeyId = Field(
        default=None,
        title="Access key id",
        description="Who asks; left empty, boto3 finds credentials in the environment, a profile or a role.",
    )
    secret_access_key: Secret = Field(
        default=None,
        title="Secret access key",
        description="The secret of the access key id; left empty together with it.",
    )
    checksum_algorithm: Algorithm = Field(
        default="crc64nvme",
        title="Checksum",
        description="What the store checks each part by; crc32c or md5 for one that does not know crc64nvme.",
    )
    addressing: Literal["auto", "path", "virtual"] = Field(
        default="auto",
        title="Addressing",
        description="Whether the bucket's name is in the path or in the host's name; Alibaba's OSS wants virtual.",
    )
    near: Near = ()

    def create_bucket(self) -> None:
        """The account's own already is no error."""
        # Amazon's oldest region is the one that must not be named.
        elsewhere = {"CreateBucketConfiguration": {"LocationConstraint": self.region}}
        with self.translated("create the bucket"):
            try:
                self.client.create_bucket(Bucket=self.bucket, **({} if self.region == "us-east-1" else elsewhere))
            except ClientError as error:
                if _code(error) != "bucketalreadyownedbyyou":
                    raise

    def get(self, key: str) -> VersionedObject | None:
        with self.translated(f"get {key}"):
            try:
                answer = self.client.get_object(Bucket=self.bucket, Key=key)
            except ClientError as error:
                if _is_missing(error):
                    return None
                raise
            with closing(answer["Body"]) as body:
                return VersionedObject(body.read(), answer["ETag"])

    def put(self, key: str, body: bytes, *, replacing: str | None) -> str:
        condition = {"IfNoneMatch": "*"} if replacing is None else {"IfMatch": replacing}
        with self.translated(f"put {key}"):
            try:
                return self.client.put_object(Bucket=self.bucket, Key=key, Body=body, **condition)["ETag"]
            except ClientError as error:
                if _status(error) == HTTPStatus.NOT_IMPLEMENTED:
                    raise Unsupported(
                        f"{self.url_of(key)}: the store does not know conditional writes ({_code(error)}), without "
                        f"which no ledger is safe; use it as a further store, and another one for the ledger"
                    ) from None
                # Where the version to replace has been deleted, that is what is missing.
                is_gone = replacing is not None and _is_missing(error)
                if not (is_gone or _is_condition(error)):
                    raise
                expected = "no version" if replacing is None else f"version {replacing}"
                raise Conflict(f"{self.url_of(key)}: expected {expected}, found another; read it again") from None

    def write(self, key: str, body: bytes | memoryview) -> bool:
        checksum = self.checksum(memoryview(body))
        with self.translated(f"write {key}"):
            answer = self._part_client.put_object(
                Bucket=self.bucket,
                Key=key,
                Body=_View(body),
                **self._checksum.sent_with(checksum),
            )
        return self._is_vouched(answer, checksum, key)

    def read(self, key: str, start: int = 0, size_bytes: int | None = None) -> Iterator[bytes]:
        if size_bytes == 0:
            return
        last = "" if size_bytes is None else start + size_bytes - 1
        ranged = {} if not start and size_bytes is None else {"Range": f"bytes={start}-{last}"}
        with (
            self.translated(f"read {key}"),
            closing(self.client.get_object(Bucket=self.bucket, Key=key, **ranged)["Body"]) as body,
        ):
            yield from body.iter_chunks(CHUNK_BYTES)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        with self.translated(f"list {prefix}"):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            for page in pages:
                for found in page.get("Contents", ()):
                    yield StoredObject(found["Key"], found["Size"])

    def delete(self, key: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - Block.delete deletes blocks
        with self.translated(f"delete {key}"):
            self.client.delete_object(Bucket=self.bucket, Key=key)

    def presigned_url(self, key: str, seconds: int) -> str:
        """An address that anybody can read the object at, for so long: a secret."""
        with self.translated(f"sign an address for {key}"):
            return self.client.generate_presigned_url(
                "get_object", Params={"Bucket": self.bucket, "Key": key}, ExpiresIn=seconds
            )

    def url_of(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    @property
    def part_limits(self) -> PartLimits:
        return PART_LIMITS

    def checksum(self, body: memoryview) -> str:
        """By default CRC64NVME: of the checksums that S3 keeps of a whole object, the cheapest by far."""
        return self._checksum.of(body)

    def begin(self, key: str) -> MultipartUpload:
        with self.translated(f"begin an upload of {key}"):
            begun = self.client.create_multipart_upload(Bucket=self.bucket, Key=key, **self._checksum.declared)
        return MultipartUpload(key, begun["UploadId"], time.time())

    def send(self, upload: MultipartUpload, number: int, body: memoryview) -> Part:
        checksum = self.checksum(body)
        with self.translated(f"write part {number} of {upload.key}"):
            try:
                sent = self._part_client.upload_part(
                    **self._named(upload), PartNumber=number, Body=_View(body), **self._checksum.sent_with(checksum)
                )
            except ClientError as error:
                if _is_missing(error):
                    self._is_stale(upload, error)
                raise
        is_vouched = self._is_vouched(sent, checksum, f"part {number} of {upload.key}")
        return Part(number, len(body), sent["ETag"], checksum, is_vouched)

    def _is_vouched(self, answer: Mapping[str, Any], checksum: str, what: str) -> bool:
        """Does the store say that it has the bytes of that checksum? False where it says nothing."""
        has = self._checksum.found_in(answer)
        if has not in (None, checksum):
            raise Unavailable(
                f"{self.url_of('')}: the store has the {self.checksum_algorithm} {has} of {what} where {checksum} was "
                f"sent; send it again, and where its ETags are no MD5, choose another checksum in the block"
            )
        return has is not None

    def holds(self, part: Part, body: memoryview) -> bool:
        """By its checksum, or where the store lists none, by its ETag, if that is its MD5."""
        if part.checksum is not None:
            return part.checksum == self.checksum(body)
        md5 = CHECKSUMS["md5"]
        return md5.found_in({"ETag": part.etag}) == md5.of(body)

    def sent(self, upload: MultipartUpload) -> tuple[Part, ...]:
        with self.translated(f"list the parts of {upload.key}"):
            pages = self.client.get_paginator("list_parts").paginate(**self._named(upload))
            try:
                return tuple(
                    Part(part["PartNumber"], part["Size"], part["ETag"], self._checksum.found_in(part))
                    for page in pages
                    for part in page.get("Parts", ())
                )
            except ClientError as error:
                if _is_missing(error):
                    self._is_stale(upload, error)
                raise

    def complete(self, upload: MultipartUpload, parts: Sequence[Part]) -> None:
        """The store compares the checksum of the whole object, which the parts' checksums combine to, if it has one."""
        listed = [
            {"PartNumber": part.number, "ETag": part.etag, **self._checksum.listed_with(part.checksum)}
            for part in parts
        ]
        if any(
            part.is_vouched and self._checksum.found_in(one) != part.checksum
            for one, part in zip(listed, parts, strict=True)
        ):
            raise Conflict(f"{self.url_of(upload.key)}: the parts are not what was sent; see there, and begin anew")
        request = {
            **self._named(upload),
            "MultipartUpload": {"Parts": listed},
            **self._checksum.whole(parts),
        }
        with self.translated(f"complete {upload.key}"):
            try:
                try:
                    self.client.complete_multipart_upload(**request, IfNoneMatch="*")
                except ClientError as error:
                    if not _may_be_for_the_condition(error):
                        raise
                    self._complete_without_condition(upload, request)
            except ClientError as error:
                if _is_missing(error) or _is_condition(error) or _code(error) in STALE:
                    self._is_stale(upload, error)
                raise

    def _complete_without_condition(self, upload: MultipartUpload, request: dict[str, Any]) -> None:
        """For a store that does not know it; the next best is to look first."""
        if any(found.key == upload.key for found in self.list(upload.key)):
            raise Conflict(f"{self.url_of(upload.key)} is there already; see what stands there")
        self.client.complete_multipart_upload(**request)

    def abort(self, upload: MultipartUpload) -> None:
        with self.translated(f"abort the upload of {upload.key}"):
            try:
                self.client.abort_multipart_upload(**self._named(upload))
            except ClientError as error:
                if not _is_missing(error):
                    raise

    def unfinished(self, prefix: str) -> tuple[MultipartUpload, ...]:
        with self.translated(f"list the unfinished uploads of {prefix}"):
            pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=prefix)
            found = [
                MultipartUpload(upload["Key"], upload["UploadId"], upload["Initiated"].timestamp())
                for page in pages
                for upload in page.get("Uploads", ())
            ]
        return tuple(sorted(found, key=lambda upload: upload.started_at))

    def copies_from(self, source: Objects) -> bool:
        return isinstance(source, S3Store) and source.endpoint_url == self.endpoint_url

    def copy_from(self, source: Objects, source_key: str, key: str) -> bool:
        if not isinstance(source, S3Store) or not self.copies_from(source):
            raise Refused(f"{source.url_of(source_key)} is of another provider; send its bytes to {self.url_of(key)}")
        origin, goal = {"Bucket": source.bucket, "Key": source_key}, {"Bucket": self.bucket, "Key": key}
        with self.translated(f"copy {source.url_of(source_key)} to {key}"):
            of_whole = self._checksum.is_of_whole
            found = source.client.head_object(**origin, **({"ChecksumMode": "ENABLED"} if of_whole else {}))
            if found["ContentLength"] <= COPIED_AT_ONCE_BYTES:
                copied = self.client.copy_object(**goal, CopySource=origin, **self._checksum.declared_for_copies)
                copied = copied["CopyObjectResult"]
            else:
                copied = self._copy_in_parts(origin, goal, found["ContentLength"])
        was, has = found.get(self._checksum.field), copied.get(self._checksum.field)
        if not of_whole or was is None or has is None:
            return False
        if was != has:
            self.delete(key)
            raise Unavailable(f"{self.url_of(key)} was copied with the checksum {has} where the source has {was}")
        return True

    def _copy_in_parts(self, origin: dict[str, str], goal: dict[str, str], size_bytes: int) -> dict[str, Any]:
        begun = self.client.create_multipart_upload(
            **goal, **(self._checksum.declared if self._checksum.is_of_whole else {})
        )
        upload = {**goal, "UploadId": begun["UploadId"]}
        try:
            parts = []
            for number, start in enumerate(range(0, size_bytes, COPIED_PART_BYTES), 1):
                reach = f"bytes={start}-{min(start + COPIED_PART_BYTES, size_bytes) - 1}"
                answer = self.client.upload_part_copy(
                    **upload, PartNumber=number, CopySource=origin, CopySourceRange=reach
                )
                parts.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})
            return self.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        except BaseException:
            self.client.abort_multipart_upload(**upload)
            raise

    def _named(self, upload: MultipartUpload) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": upload.key, "UploadId": upload.id}

    def _is_stale(self, upload: MultipartUpload, error: ClientError) -> NoReturn:
        raise Conflict(
            f"{self.url_of(upload.key)}: the upload {upload.id} is not what was sent ({_code(error)}); "
            f"see what stands there, and begin anew"
        ) from None

    @property
    def _checksum(self) -> Checksum:
        return CHECKSUMS[self.checksum_algorithm]

    @property
    def client(self) -> Any:
        """boto3's client for these settings, shared by every copy of the block in this process."""
        return self._client(for_parts=False)

    @property
    def _part_client(self) -> Any:
        return self._client(for_parts=True)

    def _client(self, *, for_parts: bool) -> Any:
        with _one_at_a_time:
            return _client(
                self.endpoint_url,
                self.region,
                self.access_key_id,
                self.secret_access_key,
                self.addressing,
                adds_checksums=self._checksum.is_of_whole,
                for_parts=for_parts,
            )

    @contextmanager
    def translated(self, act: str) -> Iterator[None]:
        """Turn what boto3 raises into Skyferry's errors."""
        where = f"s3://{self.bucket}" + (f" at {self.endpoint_url}" if self.endpoint_url else "")
        try:
            yield
        except ClientError as error:
            raise _translation(error, f"{where} did not {act}") from None
        except BROKEN_OFF as error:
            raise Unavailable(
                f"{where} did not {act}: {cleaned(error)}; check that it runs and can be reached"
            ) from None
        except BotoCoreError as error:
            raise Refused(f"{where} was not asked to {act}: {cleaned(error)}; correct the block's settings") from None


class _View:
    """A buffer as a file that is read in one piece: boto3 copies what is no file, urllib3 shreds files."""

    def __init__(self, body: bytes | memoryview) -> None:
        self._body, self._position = memoryview(body), 0

    def __len__(self) -> int:
        return len(self._body)

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = 0) -> int:
        self._position = position if whence == 0 else len(self._body) + position
        return self._position

    def read(self, size: int = -1) -> memoryview:
        """All that is left, however little is asked for."""
        del size
        rest = self._body[self._position :]
        self._position = len(self._body)
        return rest


_one_at_a_time = threading.Lock()
"""Workers that all want the first client would each build one."""


@lru_cache(maxsize=1)
def _session() -> Session:
    """What describes S3 is megabytes large: read once, not for each client."""
    return Session()


# A client takes a tenth of a second to build and cannot be pickled, and Prefect pickles a block for every task.
@lru_cache(maxsize=16)
def _client(
    endpoint_url: str | None,
    region: str,
    access_key_id: str | None,
    secret: SecretStr | None,
    addressing: str,
    *,
    adds_checksums: bool,
    for_parts: bool,
) -> Any:
    # Parts carry a checksum, which is signed: to hash them for their signature as well, which boto3 does where the
    # store speaks plain HTTP, costs as much as all the rest.
    lean = {"payload_signing_enabled": False} if for_parts else {}
    # Of themselves boto3 adds checksums that a store without CRC64NVME may refuse.
    when = "when_supported" if adds_checksums else "when_required"
    client = _session().client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=region,
        aws_access_key_id=access_key_id,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        config=Config(
            connect_timeout=10,
            read_timeout=60,
            # Whoever asks tries again itself, and waits as long as it was told to; boto3 would come back at once.
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=32,
            signature_version="s3v4",  # for signed addresses boto3 would use an older one, which few stores know
            user_agent="skyferry",  # else boto3 composes a long one anew for each part
            request_checksum_calculation=when,
            response_checksum_validation=when,
            s3={"addressing_style": addressing, **lean},
        ),
    )
    # To ask before each body whether the store wants it costs a round trip a part, and it always does.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    client.meta.events.register("after-call.s3", _check_that_a_store_said_it)
    return client


def _check_that_a_store_said_it(http_response: Any, parsed: Mapping[str, Any], model: Any, **_: object) -> None:
    said_by_stores = SAID_BY_STORES.get(model.name)
    if said_by_stores is None or http_response.status_code >= HTTPStatus.MULTIPLE_CHOICES:
        return
    if not said_by_stores & parsed.keys():
        raise ResponseParserError(f"{http_response.status_code}, and {statuses.NOT_THE_STORE}")
    if parsed.get("IsTruncated") and not NEXT_PAGE & parsed.keys():
        raise ResponseParserError(
            "there is more than it lists, and it does not say where that begins; use another store"
        )


def _code(error: ClientError) -> str:
    """In lower case."""
    return str(error.response.get("Error", {}).get("Code", "")).lower()


def _status(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _is_missing(error: ClientError) -> bool:
    """The object or the upload that was asked for; not the bucket, which is a wrong setting, nor the store itself."""
    return _status(error) == HTTPStatus.NOT_FOUND and _is_of_a_store(error) and "bucket" not in _code(error)


def _is_of_a_store(error: ClientError) -> bool:
    """Whatever else answers has no code; boto3 puts the status in its place, or nothing."""
    return _code(error) not in ("", str(_status(error)))


def _is_condition(error: ClientError) -> bool:
    """Somebody else was there first: 409 is for those who were there at the same time."""
    changed = (HTTPStatus.PRECONDITION_FAILED, HTTPStatus.CONFLICT)
    return _status(error) in changed and _code(error) not in PASSES


def _may_be_for_the_condition(error: ClientError) -> bool:
    """Stores say in several ways that they do not know it; of what they know, they have more to say than that."""
    if _status(error) == HTTPStatus.NOT_IMPLEMENTED:
        return True
    return _status(error) == HTTPStatus.BAD_REQUEST and _code(error) not in STALE | PASSES


def _translation(error: ClientError, said: str) -> SkyferryError:
    answer = error.response.get("ResponseMetadata", {})
    code, status = error.response.get("Error", {}).get("Code", ""), _status(error)
    later, passes = "try again later", _code(error) in PASSES
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        # SeaweedFS says no more than this when no volume has room.
        later = f"{later}, and if the store is your own, see that its disk has room"
    if status == HTTPStatus.NOT_FOUND and not _is_of_a_store(error):
        later, passes = statuses.NOT_THE_STORE, True
    return statuses.translation(
        said,
        status,
        answer.get("HTTPHeaders", {}),
        words=code if _is_of_a_store(error) else "",
        step=NEXT_STEPS.get(_code(error)),
        passes=passes,
        later=later,
    )
