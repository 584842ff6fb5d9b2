"""Azure Blob Storage; its SDK comes with `skyferry[azure]`.

Azure has no uploads, only blocks that wait beside a blob until they are committed. Their names say whose they are: an
upload's id, the part's number and its checksum.
"""

import base64
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from http import HTTPStatus
from threading import Lock
from typing import Any, NoReturn

from awscrt.checksums import crc64nvme
from azure.core import MatchConditions
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    IncompleteReadError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.identity import DefaultAzureCredential
from azure.storage.blob import (
    BlobBlock,
    BlobSasPermissions,
    BlobServiceClient,
    ContainerClient,
    generate_blob_sas,
)
from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, HttpUrl, SecretStr

from blocks.cleaning import cleaned
from blocks.errors import Conflict, Refused, Unavailable
from blocks.fields import BareEndpoint, Near, OfItsKind, Secret
from blocks.http import statuses
from blocks.ports.store import MultipartUpload, Objects, Part, PartLimits, StoredObject, VersionedObject

TIMEOUT_SECONDS = 60
PASSES = frozenset({"md5mismatch", "crc64mismatch", "operationtimedout", "serverbusy", "containerbeingdeleted"})
"""Codes that say of a status which leaves it open that asking again may help; compared in lower case."""
MAY_NOT = "grant it the role Storage Blob Data Contributor"
BEGUN = 0
"""The number of the block that stands for the upload itself: without it, the upload was aborted."""
NO_CHECKSUM = "0" * 16


class AzureStore(OfItsKind, Block):
    """A container in Azure Blob Storage, for mirrors and the ledger."""

    _block_type_name = "Azure Blob Storage"
    _block_type_slug = "azure-blob-store"
    _documentation_url = HttpUrl("https://learn.microsoft.com/azure/storage/blobs/")
    model_config = ConfigDict(hide_input_in_errors=True)

    container: str = Field(title="Container", description="The container's name.")
    account_url: BareEndpoint = Field(
        title="Account",
        description="The address of the storage account, such as https://mymodels.blob.core.windows.net.",
    )
    account_key: Secret = Field(
        default=None,
        title="Account key",
        description="A key or SAS token of the account; left empty, Azure's library finds an identity by itself.",
    )

    near: Near = ()

    def get(self, key: str) -> VersionedObject | None:
        with self._translated(f"get {key}"):
            try:
                found = self._container.download_blob(key, validate_content=True, timeout=TIMEOUT_SECONDS)
            except ResourceNotFoundError as error:
                if _is_more_than_the_blob(error):
                    raise
                return None
            return VersionedObject(found.readall(), found.properties.etag or "")

    def put(self, key: str, body: bytes, *, replacing: str | None) -> str:
        condition: dict[str, Any] = (
            {"overwrite": False}
            if replacing is None
            else {"overwrite": True, "etag": replacing, "match_condition": MatchConditions.IfNotModified}
        )
        with self._translated(f"put {key}"):
            blob = self._container.get_blob_client(key)
            try:
                return blob.upload_blob(body, validate_content=True, timeout=TIMEOUT_SECONDS, **condition)["etag"]
            except (ResourceExistsError, ResourceModifiedError) as error:
                if not _is_condition(error):
                    raise
                expected = "no version" if replacing is None else f"version {replacing}"
                raise Conflict(f"{self.url_of(key)}: expected {expected}, found another; read it again") from None

    def write(self, key: str, body: bytes | memoryview) -> bool:
        with self._translated(f"write {key}"):
            blob = self._container.get_blob_client(key)
            blob.upload_blob(bytes(body), overwrite=True, validate_content=True, timeout=TIMEOUT_SECONDS)
        return True  # Azure takes no body whose MD5 is not the one sent with it

    def read(self, key: str, start: int = 0, size_bytes: int | None = None) -> Iterator[bytes]:
        if size_bytes == 0:
            return
        with self._translated(f"read {key}"):
            blob = self._container.get_blob_client(key)
            # Azure refuses a range of a blob without a byte.
            if start >= blob.get_blob_properties(timeout=TIMEOUT_SECONDS).size:
                return
            yield from blob.download_blob(offset=start, length=size_bytes, timeout=TIMEOUT_SECONDS).chunks()

    def list(self, prefix: str) -> Iterator[StoredObject]:
        with self._translated(f"list {prefix}"):
            for blob in self._container.list_blobs(name_starts_with=prefix, timeout=TIMEOUT_SECONDS):
                yield StoredObject(blob.name, blob.size)

    def delete(self, key: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - Block.delete deletes blocks
        with self._translated(f"delete {key}"):
            try:
                self._container.delete_blob(key, timeout=TIMEOUT_SECONDS)
            except ResourceNotFoundError as error:
                if _is_more_than_the_blob(error):
                    raise

    def presigned_url(self, key: str, seconds: int) -> str:
        """An address that anybody can read the object at, for so long, a week at most without a key: a secret.

        Signed with the account's key, or with one that Azure gives our identity. Refused where the block has a SAS
        token: whoever has that can do more than read one object, so it is handed to nobody.
        """
        until = datetime.now(UTC) + timedelta(seconds=seconds)
        blob = self._container.get_blob_client(key)
        with self._translated(f"sign an address for {key}"):
            token = generate_blob_sas(
                str(blob.account_name),
                self.container,
                key,
                permission=BlobSasPermissions(read=True),
                expiry=until,
                **self._signed_with(until, self.url_of(key)),
            )
        return f"{blob.url}?{token}"

    def url_of(self, key: str) -> str:
        return f"{self.account_url}/{self.container}/{key}"

    @property
    def part_limits(self) -> PartLimits:
        return PartLimits(smallest_bytes=1, largest_bytes=4000 << 20, parts=49_999)

    def checksum(self, body: memoryview) -> str:
        """For the names of blocks; on its way Azure checks a block by its MD5."""
        return f"{crc64nvme(body):016x}"  # pyright: ignore[reportArgumentType] - it takes any buffer

    def begin(self, key: str) -> MultipartUpload:
        upload = MultipartUpload(key, f"{time.time_ns() // 1000:016x}{uuid.uuid4().hex[:8]}", time.time())
        with self._translated(f"begin an upload of {key}"):
            self._stage(upload, _name(upload, BEGUN, NO_CHECKSUM), b"0")  # Azure takes no block without a byte
        return upload

    def send(self, upload: MultipartUpload, number: int, body: memoryview) -> Part:
        checksum = self.checksum(body)
        name = _name(upload, number, checksum)
        with self._translated(f"write part {number} of {upload.key}"):
            self._stage(upload, name, bytes(body))
        return Part(number, len(body), name, checksum)

    def holds(self, part: Part, body: memoryview) -> bool:
        return part.checksum == self.checksum(body)

    def sent(self, upload: MultipartUpload) -> tuple[Part, ...]:
        with self._translated(f"list the parts of {upload.key}"):
            blocks = self._waiting(upload.key)
        own = [(name, size) for name, size in blocks if name.startswith(upload.id)]
        if (_name(upload, BEGUN, NO_CHECKSUM), 1) not in own:
            self._is_gone(upload)
        return tuple(
            Part(int(number), size, name, checksum)
            for (name, size) in sorted(own)
            for _, number, checksum in [name.split("-")]
            if int(number) != BEGUN
        )

    def complete(self, upload: MultipartUpload, parts: Sequence[Part]) -> None:
        """Each block was checked as it came, and its name has its checksum: so the names are the whole's check."""
        there = {(part.number, part.checksum, part.size_bytes) for part in self.sent(upload)}
        if any((part.number, part.checksum, part.size_bytes) not in there for part in parts):
            raise Conflict(f"{self.url_of(upload.key)}: the parts are not what was sent; begin anew")
        blocks = [BlobBlock(_name(upload, part.number, part.checksum or "")) for part in parts]
        with self._translated(f"complete {upload.key}"):
            try:
                self._container.get_blob_client(upload.key).commit_block_list(
                    blocks, match_condition=MatchConditions.IfMissing, timeout=TIMEOUT_SECONDS
                )
            except (ResourceExistsError, ResourceModifiedError) as error:
                if not _is_condition(error):
                    raise
                raise Conflict(f"{self.url_of(upload.key)} is there already; see what stands there") from None

    def abort(self, upload: MultipartUpload) -> None:
        """Azure forgets waiting blocks only with a blob: where there is none, one without a byte comes and goes.

        Where the blob is there, Azure removes the blocks after a week.
        """
        with self._translated(f"abort the upload of {upload.key}"):
            if not any(name.startswith(upload.id) for name, _ in self._waiting(upload.key)):
                return
            blob = self._container.get_blob_client(upload.key)
            try:
                made = blob.commit_block_list([], match_condition=MatchConditions.IfMissing, timeout=TIMEOUT_SECONDS)
            except (ResourceExistsError, ResourceModifiedError):
                return
            blob.delete_blob(
                etag=str(made["etag"]), match_condition=MatchConditions.IfNotModified, timeout=TIMEOUT_SECONDS
            )

    def unfinished(self, prefix: str) -> tuple[MultipartUpload, ...]:
        with self._translated(f"list the unfinished uploads of {prefix}"):
            found = {
                MultipartUpload(blob.name, upload_id, int(upload_id[:16], 16) / 1e6)
                for blob in self._container.list_blobs(
                    name_starts_with=prefix, include=["uncommittedblobs"], timeout=TIMEOUT_SECONDS
                )
                if not blob.size
                for name, _ in self._waiting(blob.name)
                for upload_id, dash, _ in [name.partition("-")]
                if dash
            }
        return tuple(sorted(found, key=lambda upload: upload.started_at))

    def copies_from(self, source: Objects) -> bool:
        """Within the account: between accounts Azure wants a signed address of the source."""
        return isinstance(source, AzureStore) and source.account_url == self.account_url

    def copy_from(self, source: Objects, source_key: str, key: str) -> bool:
        """The copy has the source's blocks: their names, which hold their checksums, and their sizes are compared.

        What was written in one piece has none.
        """
        if not isinstance(source, AzureStore) or not self.copies_from(source):
            raise Refused(f"{source.url_of(source_key)} is of another provider; send its bytes to {self.url_of(key)}")
        with self._translated(f"copy {source.url_of(source_key)} to {key}"):
            blob = self._container.get_blob_client(key)
            blob.start_copy_from_url(source._container.get_blob_client(source_key).url, timeout=TIMEOUT_SECONDS)  # noqa: SLF001 - of the same class
            while (copy := blob.get_blob_properties(timeout=TIMEOUT_SECONDS).copy).status == "pending":
                time.sleep(1)  # large blobs of another tier take their time
            if copy.status != "success":
                raise Unavailable(f"{self.url_of(key)} was not copied: {copy.status} {copy.status_description}")
            if not (blocks := self._committed(key)):
                return False
            if blocks != source._committed(source_key):  # noqa: SLF001 - of the same class
                self.delete(key)
                raise Unavailable(
                    f"{self.url_of(key)} has other blocks than {source.url_of(source_key)}; copy it again"
                )
        return True

    def create_container(self) -> None:
        """There already is no error."""
        with self._translated("create the container"):
            try:
                self._container.create_container(timeout=TIMEOUT_SECONDS)
            except ResourceExistsError:
                return

    def _stage(self, upload: MultipartUpload, name: str, body: bytes) -> None:
        blob = self._container.get_blob_client(upload.key)
        blob.stage_block(name, body, len(body), validate_content=True, timeout=TIMEOUT_SECONDS)

    def _waiting(self, key: str) -> Sequence[tuple[str, int]]:
        """The names and sizes of the blocks that wait beside a blob."""
        try:
            _, waiting = self._container.get_blob_client(key).get_block_list("all", timeout=TIMEOUT_SECONDS)
        except ResourceNotFoundError as error:
            if _is_more_than_the_blob(error):
                raise
            return []
        return [(_as_named(block.id or ""), block.size or 0) for block in waiting]

    def _committed(self, key: str) -> Sequence[tuple[str, int]]:
        """The names and sizes of the blocks that a blob is made of; none where it was written in one piece."""
        committed, _ = self._container.get_blob_client(key).get_block_list("committed", timeout=TIMEOUT_SECONDS)
        return [(_as_named(block.id or ""), block.size or 0) for block in committed]

    def _is_gone(self, upload: MultipartUpload) -> NoReturn:
        raise Conflict(
            f"{self.url_of(upload.key)}: the upload {upload.id} is gone; see what stands there, and begin anew"
        )

    @property
    def _container(self) -> ContainerClient:
        with _one_at_a_time:
            return _client(self.account_url, self.account_key).get_container_client(self.container)

    def _signed_with(self, until: datetime, url: str) -> dict[str, Any]:
        """Either kind of key that a signature can be made with."""
        if self.account_key is not None:
            return {"account_key": _whole_key(self.account_key, url)}
        service = _client(self.account_url, None)
        return {"user_delegation_key": service.get_user_delegation_key(datetime.now(UTC), until)}

    @contextmanager
    def _translated(self, act: str) -> Iterator[None]:
        said = f"{self.url_of('')} did not {act}"
        try:
            yield
        except (ServiceRequestError, ServiceResponseError, IncompleteReadError) as error:
            raise Unavailable(f"{said}: {cleaned(error)}; check that it can be reached") from None
        except HttpResponseError as error:
            status = error.status_code or 0
            if isinstance(error, ClientAuthenticationError) and not status:  # no answer of the store's: no identity
                raise Refused(f"{said}: {error.message}; {MAY_NOT}") from None
            headers = {name.lower(): value for name, value in getattr(error.response, "headers", {}).items()}
            is_the_store = status != HTTPStatus.NOT_FOUND or bool(_code(error))
            raise statuses.translation(
                said,
                status,
                headers,
                words=_code(error) or error.reason or "",
                step=STEPS.get(status),
                passes=_code(error).lower() in PASSES or not is_the_store,
                later="try again later" if is_the_store else statuses.NOT_THE_STORE,
            ) from None
        except statuses.NOT_UNDERSTOOD as error:
            raise Unavailable(f"{said}: {cleaned(error)}; {statuses.NOT_THE_STORE}") from None


STEPS: Mapping[int, str] = {
    HTTPStatus.NOT_FOUND: "create the container, or mirror the model again",
    HTTPStatus.UNAUTHORIZED: MAY_NOT,
    HTTPStatus.FORBIDDEN: MAY_NOT,
}


def _whole_key(key: SecretStr, url: str) -> str:
    """The account's key; Refused for a SAS token, which has words where a key has base64 alone."""
    if "=" in (word := key.get_secret_value()).rstrip("="):
        raise Refused(f"no address for {url} can be signed with a SAS token; give the block the account's key or none")
    return word


def _is_more_than_the_blob(error: HttpResponseError) -> bool:
    """What is missing is not the blob, but what it would lie in, a wrong setting, or the store itself."""
    return not _code(error) or "container" in _code(error).lower()


def _is_condition(error: HttpResponseError) -> bool:
    """409 has many reasons, and one of them is that the blob is there."""
    return error.status_code == HTTPStatus.PRECONDITION_FAILED or "exist" in _code(error).lower()


def _name(upload: MultipartUpload, number: int, checksum: str) -> str:
    """All names of a blob's blocks have the same length: Azure wants it."""
    return f"{upload.id}-{number:05}-{checksum}"


def _as_named(block_id: str) -> str:
    """The SDK encodes names on their way out, and decodes them on their way back in some versions only."""
    if "-" in block_id:
        return block_id
    return base64.b64decode(block_id).decode(errors="replace")


def _code(error: HttpResponseError) -> str:
    code = getattr(error, "error_code", None) or ""
    return str(getattr(code, "value", code))  # the SDK has an enumeration of those that it knows


_one_at_a_time = Lock()
"""Workers that all want the first client would each build one."""


@lru_cache(maxsize=16)
def _client(account_url: str, key: SecretStr | None) -> BlobServiceClient:
    credential = DefaultAzureCredential() if key is None else key.get_secret_value()
    # Whoever calls tries again itself, sooner than the SDK's quarter of a minute, and tells of each try.
    return BlobServiceClient(
        account_url, credential, retry_total=0, read_timeout=TIMEOUT_SECONDS, connection_timeout=10
    )
