"""Google Cloud Storage.

Parts are objects of their own below `OWN`, which are composed into the one that they are parts of: whoever died, they
stay, each with its CRC32C, and Google computes the whole object's CRC32C from theirs.
"""

import base64
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache, reduce
from http import HTTPStatus
from threading import Lock
from typing import Any

from awscrt.checksums import combine_crc32c, crc32c
from google.api_core.exceptions import Conflict as Exists
from google.api_core.exceptions import GoogleAPICallError, NotFound, PreconditionFailed, RetryError
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError, TransportError
from google.cloud.storage import Blob, Bucket, Client
from google.cloud.storage.exceptions import DataCorruption
from google.oauth2.service_account import Credentials
from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, HttpUrl, SecretStr
from requests.exceptions import RequestException

from blocks.cleaning import cleaned
from blocks.errors import Conflict, Refused, Unavailable
from blocks.fields import Endpoint, Near, OfItsKind, ServiceAccount
from blocks.http import statuses
from blocks.ports.store import MultipartUpload, Objects, Part, PartLimits, StoredObject, VersionedObject

OWN = ".skyferry-uploads/"
"""Where parts lie until they are composed. No key begins with it."""
CHUNK_BYTES = 8 << 20
COMPOSED_AT_ONCE = 32
TIMEOUT_SECONDS = 60
ONCE: Any = {"timeout": TIMEOUT_SECONDS, "retry": None}
"""Whoever asks tries again itself, with the story of each try, and waits as long as it was told to; of itself Google's
library goes on for two minutes.
"""
SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"


class GoogleStore(OfItsKind, Block):
    """A bucket in Google Cloud Storage, for mirrors and the ledger."""

    _block_type_name = "Google Cloud Storage"
    _block_type_slug = "google-cloud-storage-store"
    _documentation_url = HttpUrl("https://cloud.google.com/storage/docs")
    model_config = ConfigDict(hide_input_in_errors=True)

    bucket: str = Field(title="Bucket", description="The bucket's name.")
    service_account: ServiceAccount = Field(
        default=None,
        title="Service account",
        description="The JSON key of a service account; left empty, Google's library finds credentials by itself.",
    )
    project: str | None = Field(
        default=None, title="Project", description="The project that is asked; left empty, the credentials' own."
    )
    endpoint_url: Endpoint = Field(
        default=None,
        title="Endpoint",
        description="The address of an emulator, which is asked without credentials.",
    )
    near: Near = ()

    def get(self, key: str) -> VersionedObject | None:
        with self._translated(f"get {key}"):
            if (blob := self._found(key)) is None:
                return None
            try:
                body = blob.download_as_bytes(if_generation_match=blob.generation, **ONCE)
            except (PreconditionFailed, NotFound):
                raise Unavailable(f"{self.url_of(key)} changed while it was read; read it again") from None
            return VersionedObject(body, str(blob.generation))

    def put(self, key: str, body: bytes, *, replacing: str | None) -> str:
        """The ETag is the object's generation."""
        with self._translated(f"put {key}"):
            blob = self._bucket.blob(key)
            try:
                blob.upload_from_string(body, if_generation_match=int(replacing or 0), **ONCE, checksum="crc32c")
            except (PreconditionFailed, NotFound) as error:
                if isinstance(error, NotFound) and replacing is None:
                    raise
                expected = "no version" if replacing is None else f"version {replacing}"
                raise Conflict(f"{self.url_of(key)}: expected {expected}, found another; read it again") from None
            return str(blob.generation)

    def write(self, key: str, body: bytes | memoryview) -> bool:
        body = memoryview(body)
        with self._translated(f"write {key}"):
            return self._upload(key, body, self.checksum(body))

    def read(self, key: str, start: int = 0, size_bytes: int | None = None) -> Iterator[bytes]:
        with self._translated(f"read {key}"):
            if (blob := self._found(key)) is None:
                raise Refused(f"there is no {self.url_of(key)}; mirror the model again, or correct the key")
            whole = blob.size or 0
            end = whole if size_bytes is None else min(whole, start + size_bytes)
            for begin in range(start, end, CHUNK_BYTES):
                yield blob.download_as_bytes(
                    start=begin,
                    end=min(begin + CHUNK_BYTES, end) - 1,
                    if_generation_match=blob.generation,
                    **ONCE,
                )

    def list(self, prefix: str) -> Iterator[StoredObject]:
        with self._translated(f"list {prefix}"):
            for blob in self._listed(prefix):
                if not blob.name.startswith(OWN):
                    yield StoredObject(blob.name, blob.size or 0)

    def delete(self, key: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - Block.delete deletes blocks
        with self._translated(f"delete {key}"):
            self._remove(key)

    def presigned_url(self, key: str, seconds: int) -> str:
        """An address that anybody can read the object at, for so long, a week at most: a secret."""
        try:
            return self._bucket.blob(key).generate_signed_url(version="v4", expiration=timedelta(seconds=seconds))
        except (AttributeError, GoogleAuthError) as error:  # an AttributeError where the credentials have no key
            raise Refused(
                f"no address for {self.url_of(key)} can be signed: {error}; give the block a service account's key"
            ) from None

    def url_of(self, key: str) -> str:
        return f"gs://{self.bucket}/{key}"

    @property
    def part_limits(self) -> PartLimits:
        return PartLimits(smallest_bytes=1, largest_bytes=5 << 40, parts=10_000)

    def checksum(self, body: memoryview) -> str:
        """CRC32C as Google writes it."""
        return _written(crc32c(body))  # pyright: ignore[reportArgumentType] - it takes any buffer

    def begin(self, key: str) -> MultipartUpload:
        upload = MultipartUpload(key, uuid.uuid4().hex, time.time())
        with self._translated(f"begin an upload of {key}"):
            self._upload(f"{_home(upload)}begun", nothing := memoryview(b""), self.checksum(nothing))
        return upload

    def send(self, upload: MultipartUpload, number: int, body: memoryview) -> Part:
        with self._translated(f"write part {number} of {upload.key}"):
            name, checksum = f"{_home(upload)}{number:05}", self.checksum(body)
            return Part(number, len(body), name, checksum, self._upload(name, body, checksum))

    def holds(self, part: Part, body: memoryview) -> bool:
        return part.checksum == self.checksum(body)

    def sent(self, upload: MultipartUpload) -> tuple[Part, ...]:
        with self._translated(f"list the parts of {upload.key}"):
            blobs = {blob.name: blob for blob in self._listed(_home(upload))}
        if f"{_home(upload)}begun" not in blobs:
            raise Conflict(f"{self.url_of(upload.key)}: the upload {upload.id} is gone; begin anew")
        names = {name: name.removeprefix(_home(upload)) for name in sorted(blobs)}
        return tuple(
            Part(int(number), blobs[name].size or 0, name, blobs[name].crc32c)
            for name, number in names.items()
            if number.isdigit()
        )

    def complete(self, upload: MultipartUpload, parts: Sequence[Part]) -> None:
        """Composed 32 at a time; the parts are compared before, and the object's own checksum after."""
        there = {part.number: (part.checksum, part.size_bytes) for part in self.sent(upload)}
        if any(there.get(part.number) != (part.checksum, part.size_bytes) for part in parts):
            raise Conflict(f"{self.url_of(upload.key)}: the parts are not what was sent; begin anew")
        self._compose(upload, parts)
        self.abort(upload)

    def _compose(self, upload: MultipartUpload, parts: Sequence[Part]) -> None:
        with self._translated(f"complete {upload.key}"):
            names, level = [part.etag for part in parts], 0
            while len(names) > COMPOSED_AT_ONCE:
                level += 1
                names = [
                    self._composed(f"{_home(upload)}level-{level}-{first:05}", names[first : first + COMPOSED_AT_ONCE])
                    for first in range(0, len(names), COMPOSED_AT_ONCE)
                ]
            whole = self._bucket.blob(upload.key)
            try:
                whole.compose([self._bucket.blob(name) for name in names], if_generation_match=0, **ONCE)
            except PreconditionFailed:
                raise Conflict(f"{self.url_of(upload.key)} is there already; see what stands there") from None
            whole.reload(**ONCE)
            if whole.crc32c != _combined(parts):
                self._remove(upload.key)
                raise Conflict(
                    f"{self.url_of(upload.key)} came out with the CRC32C {whole.crc32c} where its parts make "
                    f"{_combined(parts)}; it was deleted; begin anew"
                )

    def abort(self, upload: MultipartUpload) -> None:
        with self._translated(f"abort the upload of {upload.key}"):
            for blob in self._listed(_home(upload)):
                self._remove(blob.name)

    def unfinished(self, prefix: str) -> tuple[MultipartUpload, ...]:
        with self._translated(f"list the unfinished uploads of {prefix}"):
            begun = [
                (*blob.name.removeprefix(OWN).removesuffix("/begun").rsplit("/", 1), blob.time_created)
                for blob in self._listed(f"{OWN}{prefix}")
                if blob.name.endswith("/begun")
            ]
        found = [MultipartUpload(key, upload_id, created.timestamp()) for key, upload_id, created in begun]
        return tuple(sorted(found, key=lambda upload: upload.started_at))

    def copies_from(self, source: Objects) -> bool:
        return isinstance(source, GoogleStore) and source.endpoint_url == self.endpoint_url

    def copy_from(self, source: Objects, source_key: str, key: str) -> bool:
        if not isinstance(source, GoogleStore) or not self.copies_from(source):
            raise Refused(f"{source.url_of(source_key)} is of another provider; send its bytes to {self.url_of(key)}")
        with self._translated(f"copy {source.url_of(source_key)} to {key}"):
            origin, goal, token = source._bucket.blob(source_key), self._bucket.blob(key), None  # noqa: SLF001 - of the same class
            origin.reload(**ONCE)
            while True:
                token, _, _ = goal.rewrite(origin, token=token, **ONCE)
                if token is None:
                    break
            goal.reload(**ONCE)
            if goal.crc32c is None or origin.crc32c is None:
                return False
            if goal.crc32c != origin.crc32c:
                self._remove(key)
                raise Unavailable(
                    f"{self.url_of(key)} was copied with the CRC32C {goal.crc32c} where the source has {origin.crc32c}"
                )
        return True

    def create_bucket(self) -> None:
        """There already is no error."""
        with self._translated("create the bucket"):
            try:
                self._bucket.create(**ONCE)
            except Exists:
                if not self._bucket.exists(**ONCE):
                    raise Refused(f"the name {self.bucket} is somebody else's; choose another") from None

    def _listed(self, prefix: str) -> Iterator[Any]:
        for page in self._bucket.list_blobs(prefix=prefix, **ONCE).pages:
            if page.raw_page.get("kind") != "storage#objects":
                raise ValueError("an answer that is no listing")
            yield from page

    def _found(self, key: str) -> Blob | None:
        """As of now; the library's own way takes any 404 for a missing object, whoever it comes from."""
        blob = self._bucket.blob(key)
        try:
            blob.reload(**ONCE)
        except NotFound as error:
            if not _is_googles(error):
                raise
            return None
        return blob

    def _upload(self, name: str, body: memoryview, checksum: str) -> bool:
        """Google refuses bytes that are not those of the checksum sent with them, and says what it has; does it?"""
        blob = self._bucket.blob(name)
        blob.upload_from_string(bytes(body), **ONCE, checksum="crc32c", crc32c_checksum_value=checksum)
        if blob.crc32c not in (None, checksum):
            raise Unavailable(f"{self.url_of(name)}: the store has the CRC32C {blob.crc32c} where {checksum} was sent")
        return blob.crc32c is not None

    def _composed(self, name: str, names: Sequence[str]) -> str:
        self._bucket.blob(name).compose([self._bucket.blob(part) for part in names], **ONCE)
        return name

    def _remove(self, name: str) -> None:
        try:
            self._bucket.blob(name).delete(**ONCE)
        except NotFound:
            # The object, which is as it should be, or the bucket, which is a wrong setting: only a listing tells.
            next(iter(self._bucket.list_blobs(max_results=1, **ONCE)), None)

    @property
    def _bucket(self) -> Bucket:
        with _one_at_a_time:
            try:
                return _client(self.endpoint_url, self.project, self.service_account).bucket(self.bucket)
            except (ValueError, OSError):  # a key that is none, or credentials of no project
                what = "the block's service account" if self.service_account else "this machine's own credentials"
                raise Refused(
                    f"{self.url_of('')} was not asked: {what} cannot be used; copy the whole JSON key of a service "
                    f"account, and set the block's project where the key names none"
                ) from None

    @contextmanager
    def _translated(self, act: str) -> Iterator[None]:
        said = f"{self.url_of('')} did not {act}"
        try:
            yield
        except (RetryError, RequestException, TransportError, DataCorruption) as error:
            raise Unavailable(f"{said}: {cleaned(error)}; try again later") from None
        except GoogleAuthError as error:
            raise Refused(
                f"{said}: {cleaned(error)}; set a service account, or this machine's own credentials"
            ) from None
        except GoogleAPICallError as error:
            headers = {name.lower(): value for name, value in getattr(error.response, "headers", {}).items()}
            step = MAY_NOT if error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN) else None
            is_google = error.code != HTTPStatus.NOT_FOUND or _is_googles(error)
            raise statuses.translation(
                said,
                error.code or 0,
                headers,
                words=error.message,
                step=step,
                passes=not is_google,
                later="try again later" if is_google else statuses.NOT_THE_STORE,
            ) from None
        except statuses.NOT_UNDERSTOOD as error:
            raise Unavailable(f"{said}: {cleaned(error)}; {statuses.NOT_THE_STORE}") from None


MAY_NOT = "grant it roles/storage.objectUser on the bucket"


def _is_googles(error: GoogleAPICallError) -> bool:
    """Its errors are JSON, of one form; whatever answers in its place has another."""
    try:
        answer = error.response.json() if error.response is not None else None
    except ValueError:
        return False
    return isinstance(answer, dict) and bool(answer.get("error"))


def _home(upload: MultipartUpload) -> str:
    return f"{OWN}{upload.key}/{upload.id}/"


def _written(checksum: int) -> str:
    return base64.b64encode(checksum.to_bytes(4, "big")).decode()


def _combined(parts: Sequence[Part]) -> str:
    def add(whole: int, part: Part) -> int:
        return combine_crc32c(whole, int.from_bytes(base64.b64decode(part.checksum or ""), "big"), part.size_bytes)

    return _written(reduce(add, parts, 0))


_one_at_a_time = Lock()
"""Workers that all want the first client would each build one."""


@lru_cache(maxsize=16)
def _client(endpoint_url: str | None, project: str | None, account: SecretStr | None) -> Client:
    if endpoint_url is not None:
        return Client(project or "emulator", AnonymousCredentials(), client_options={"api_endpoint": endpoint_url})
    if account is None:
        return Client(project) if project else Client()
    known: dict[str, Any] = json.loads(account.get_secret_value())
    credentials = Credentials.from_service_account_info(known, scopes=[SCOPE])
    return Client(project or known.get("project_id"), credentials)
