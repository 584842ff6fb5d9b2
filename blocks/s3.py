"""Amazon S3, and whatever else speaks its protocol: SeaweedFS, MinIO, Ceph, Cloudflare R2."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from functools import lru_cache
from http import HTTPStatus
from typing import Any

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
from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from blocks.errors import Conflict, Refused, SkyferryError, Unavailable
from blocks.ports import Found, StoredObject

CHUNK_BYTES = 8 << 20
PART_BYTES = 16 << 20
PARTS_AT_MOST = 10_000
PARTS_AT_ONCE = 4

CHANGED = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"}
"""Why a conditional put fails; S3 says NoSuchKey where the version to replace has been deleted."""

BROKEN_OFF = (
    NoConnectionError,
    HTTPClientError,
    IncompleteReadError,
    FlexibleChecksumError,
    CredentialRetrievalError,
)

RETRIABLE = {
    "SlowDown",
    "RequestTimeout",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "OperationAborted",
    "NoSuchUpload",  # the bucket's clean-up was faster; a new upload works
}

NEXT_STEPS = {
    "NoSuchBucket": "create the bucket, or correct its name and the endpoint",
    "NoSuchKey": "mirror the model again, or correct the key",
    "AccessDenied": "allow it s3:GetObject, PutObject, DeleteObject, AbortMultipartUpload and ListBucket",
    "InvalidAccessKeyId": "correct the access key id; the store does not know it",
    "SignatureDoesNotMatch": "correct the secret access key; it is not the one of the access key id",
    "ExpiredToken": "renew the credentials",
    "RequestTimeTooSkewed": "set this machine's clock",
    "PermanentRedirect": "set the region that the bucket is in",
    "AuthorizationHeaderMalformed": "set the region that the bucket is in",
    "QuotaExceeded": "raise the bucket's quota or delete old mirrors",
    "XMinioStorageFull": "free space in the store",
}


class S3Store(Block):
    """A bucket in S3, or in a store that speaks its protocol, for mirrors and the ledger."""

    _block_type_name = "S3 Store"
    _block_type_slug = "s3-store"

    bucket: str = Field(title="Bucket", description="The bucket's name.")
    endpoint_url: str | None = Field(
        default=None,
        pattern=r"^https?://",
        title="Endpoint",
        description="The address of a store other than Amazon's.",
    )
    region: str = Field(default="us-east-1", title="Region", description="The region that the bucket is in.")
    access_key_id: str | None = Field(
        default=None,
        title="Access key id",
        description="Who asks; left empty, boto3 finds credentials in the environment, a profile or a role.",
    )
    secret_access_key: SecretStr | None = Field(
        default=None,
        title="Secret access key",
        description="The secret of the access key id; left empty together with it.",
    )

    def create_bucket(self) -> None:
        """The account's own already is no error."""
        # Amazon's oldest region is the one that must not be named.
        elsewhere = {"CreateBucketConfiguration": {"LocationConstraint": self.region}}
        with self.translated("create the bucket"):
            try:
                self.client.create_bucket(Bucket=self.bucket, **({} if self.region == "us-east-1" else elsewhere))
            except ClientError as error:
                if _code(error) != "BucketAlreadyOwnedByYou":
                    raise

    def get(self, key: str) -> Found | None:
        with self.translated(f"get {key}"):
            try:
                answer = self.client.get_object(Bucket=self.bucket, Key=key)
            except ClientError as error:
                if _code(error) == "NoSuchKey":
                    return None
                raise
            with closing(answer["Body"]) as body:
                return Found(body.read(), answer["ETag"])

    def put(self, key: str, body: bytes, *, replacing: str | None) -> str:
        condition = {"IfNoneMatch": "*"} if replacing is None else {"IfMatch": replacing}
        with self.translated(f"put {key}"):
            try:
                return self.client.put_object(Bucket=self.bucket, Key=key, Body=body, **condition)["ETag"]
            except ClientError as error:
                if _code(error) not in CHANGED:
                    raise
                expected = "no version" if replacing is None else f"version {replacing}"
                raise Conflict(f"{self.url_of(key)}: expected {expected}, found another; read it again") from error

    @contextmanager
    def upload(self, key: str, size_bytes: int) -> Iterator["PartedUpload"]:
        """Holds at most five parts of 16 MiB in memory; larger ones only above 160 GB."""
        with ThreadPoolExecutor(PARTS_AT_ONCE, thread_name_prefix="s3-part") as pool:
            upload = PartedUpload(self, key, size_bytes, pool)
            try:
                yield upload
                upload.complete()
            except BaseException:
                upload.abort()
                raise

    def read(self, key: str) -> Iterator[bytes]:
        with (
            self.translated(f"read {key}"),
            closing(self.client.get_object(Bucket=self.bucket, Key=key)["Body"]) as body,
        ):
            yield from body.iter_chunks(CHUNK_BYTES)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        with self.translated(f"list {prefix}"):
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
    def client(self) -> Any:
        """boto3's client for these settings, shared by every copy of the block in this process."""
        return _client(self.endpoint_url, self.region, self.access_key_id, self.secret_access_key)

    @contextmanager
    def translated(self, act: str) -> Iterator[None]:
        """Turn what boto3 raises into Skyferry's errors."""
        where = f"s3://{self.bucket}" + (f" at {self.endpoint_url}" if self.endpoint_url else "")
        try:
            yield
        except ClientError as error:
            raise _translation(error, f"{where} did not {act}") from error
        except BROKEN_OFF as error:
            raise Unavailable(f"{where} did not {act}: {error}; check that it runs and can be reached") from error
        except BotoCoreError as error:
            raise Refused(f"{where} was not asked to {act}: {error}; correct the block's settings") from error


class PartedUpload:
    """Sends parts as they fill up, a few at the same time; the object appears once all are in."""

    def __init__(self, store: S3Store, key: str, size_bytes: int, pool: ThreadPoolExecutor) -> None:
        self._store = store
        self._key = key
        self._object = {"Bucket": store.bucket, "Key": key}
        self._size_bytes = size_bytes
        self._part_bytes = max(PART_BYTES, -(-size_bytes // PARTS_AT_MOST))
        self._pool = pool
        self._written_bytes = 0
        self._buffer = bytearray()
        self._upload_id: str | None = None
        self._parts: list[Future[dict[str, Any]]] = []

    def write(self, chunk: bytes) -> None:
        self._written_bytes += len(chunk)
        rest = memoryview(chunk)
        while rest:
            room = self._part_bytes - len(self._buffer)
            self._buffer += rest[:room]
            rest = rest[room:]
            if len(self._buffer) == self._part_bytes:
                self._send()

    def complete(self) -> None:
        if self._written_bytes != self._size_bytes:
            raise Unavailable(
                f"{self._store.url_of(self._key)} was to have {self._size_bytes} bytes and got {self._written_bytes}; "
                "nothing was written; read the source again"
            )
        with self._store.translated(f"write {self._key}"):
            if self._upload_id is None:
                self._store.client.put_object(**self._object, Body=self._buffer, ChecksumAlgorithm="SHA256")
                return
            if self._buffer:
                self._send()
            parts = [part.result() for part in self._parts]
            self._store.client.complete_multipart_upload(
                **self._object, UploadId=self._upload_id, MultipartUpload={"Parts": parts}
            )

    def abort(self) -> None:
        for part in self._parts:
            part.cancel()
        # A part that arrives after the upload was aborted would be stored, and paid for, for ever.
        wait(self._parts)
        if self._upload_id is not None:
            # What stays is invisible, and the bucket's rule for incomplete uploads removes it; the first error matters.
            with suppress(ClientError, BotoCoreError):
                self._store.client.abort_multipart_upload(**self._object, UploadId=self._upload_id)

    def _send(self) -> None:
        with self._store.translated(f"write {self._key}"):
            if self._upload_id is None:
                started = self._store.client.create_multipart_upload(**self._object, ChecksumAlgorithm="SHA256")
                self._upload_id = started["UploadId"]
            if len(self._parts) >= PARTS_AT_ONCE:
                self._parts[-PARTS_AT_ONCE].result()
            self._parts.append(self._pool.submit(self._send_part, len(self._parts) + 1, self._buffer))
            self._buffer = bytearray()

    def _send_part(self, number: int, body: bytearray) -> dict[str, Any]:
        sent = self._store.client.upload_part(
            **self._object, UploadId=self._upload_id, PartNumber=number, Body=body, ChecksumAlgorithm="SHA256"
        )
        return {"PartNumber": number, "ETag": sent["ETag"], "ChecksumSHA256": sent["ChecksumSHA256"]}


# A client takes a tenth of a second to build and cannot be pickled, and Prefect pickles a block for every task.
@lru_cache(maxsize=16)
def _client(endpoint_url: str | None, region: str, access_key_id: str | None, secret: SecretStr | None) -> Any:
    return Session().client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=region,
        aws_access_key_id=access_key_id,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        config=Config(
            connect_timeout=10,
            read_timeout=60,
            retries={"mode": "standard", "total_max_attempts": 3},
            max_pool_connections=32,
            signature_version="s3v4",  # for signed addresses boto3 would use an older one, which few stores know
        ),
    )


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")


def _translation(error: ClientError, said: str) -> SkyferryError:
    code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if (step := NEXT_STEPS.get(code)) is not None:
        return Refused(f"{said}: {code}; {step}")
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        # SeaweedFS says no more than this when no volume has room.
        return Unavailable(f"{said}: {code}; try again later, and if the store is your own, see that its disk has room")
    if code in RETRIABLE or status > HTTPStatus.INTERNAL_SERVER_ERROR:
        return Unavailable(f"{said}: {code}; try again later")
    return Refused(f"{said}: {error}")
