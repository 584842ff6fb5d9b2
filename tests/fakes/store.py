"""A store in memory that keeps the port's promises, and breaks them when a test asks for it."""

import hashlib
import itertools
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from threading import Lock

from blocks.errors import Conflict, Refused, SkyferryError, Unsupported
from blocks.ports.store import MultipartUpload, Objects, Part, PartLimits, StoredObject, VersionedObject

LIMITS = PartLimits(smallest_bytes=5 << 20, largest_bytes=5 << 30, parts=10_000)


class FakeStore:
    def __init__(self, part_limits: PartLimits = LIMITS, provider: str = "fake", *, vouches: bool = True) -> None:
        """One that does not vouch says nothing of what it has, as stores that ignore checksums do."""
        self.part_limits, self.provider, self.vouches = part_limits, provider, vouches
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[MultipartUpload, dict[int, bytes]] = {}
        self._ids = itertools.count()
        self.failures: deque[SkyferryError | None] = deque()
        """Each is raised once, by the next verbs in turn; with None that verb does well."""
        self.refuses_writes = False
        self.knows_conditions = True
        self._lock = Lock()

    def corrupt(self, key: str) -> None:
        """Flip the first bit of an object."""
        body = self.objects[key]
        self.objects[key] = bytes([body[0] ^ 0x80]) + body[1:]

    near: tuple[str, ...] = ()

    def presigned_url(self, key: str, seconds: int) -> str:
        raise Refused(f"{self.url_of(key)} lies in memory, which no machine reads; want of {seconds} s")

    def get(self, key: str) -> VersionedObject | None:
        self._fail()
        body = self.objects.get(key)
        return None if body is None else VersionedObject(body, _etag(body))

    def put(self, key: str, body: bytes, *, replacing: str | None) -> str:
        self._fail()
        self._may_write()
        if not self.knows_conditions:
            raise Unsupported(f"s3://{self.provider} knows no conditional writes; use another store for the ledger")
        with self._lock:
            found = self.objects.get(key)
            if replacing != (None if found is None else _etag(found)):
                raise Conflict(f"{self.url_of(key)}: another version stands; read it again")
            self.objects[key] = body
        return _etag(body)

    def write(self, key: str, body: bytes | memoryview) -> bool:
        self._fail()
        self._may_write()
        self.objects[key] = bytes(body)
        return self.vouches

    def read(self, key: str, start: int = 0, size_bytes: int | None = None) -> Iterator[bytes]:
        self._fail()
        if key not in self.objects:
            raise Refused(f"there is no {self.url_of(key)}")
        body = self.objects[key][start : None if size_bytes is None else start + size_bytes]
        middle = len(body) // 2
        yield from (body[:middle], body[middle:])

    def checksum(self, body: memoryview) -> str:
        return f"{zlib.crc32(body):08x}"

    def holds(self, part: Part, body: memoryview) -> bool:
        return part.checksum == self.checksum(body)

    def begin(self, key: str) -> MultipartUpload:
        self._fail()
        self._may_write()
        number = next(self._ids)
        upload = MultipartUpload(key, f"upload-{number}", float(number))
        self.uploads[upload] = {}
        return upload

    def send(self, upload: MultipartUpload, number: int, body: memoryview) -> Part:
        self._fail()
        self._sent(upload)[number] = bytes(body)
        return replace(_part(self, number, body), is_vouched=self.vouches)

    def sent(self, upload: MultipartUpload) -> tuple[Part, ...]:
        self._fail()
        found = tuple(_part(self, number, memoryview(body)) for number, body in sorted(self._sent(upload).items()))
        return found if self.vouches else tuple(replace(part, checksum=None) for part in found)

    def complete(self, upload: MultipartUpload, parts: Sequence[Part]) -> None:
        self._fail()
        sent = self._sent(upload)
        with self._lock:
            if self.vouches and any(
                part.checksum != self.checksum(memoryview(sent.get(part.number, b""))) for part in parts
            ):
                raise Conflict(f"{self.url_of(upload.key)}: the parts are not what was sent; begin anew")
            if any(len(sent[part.number]) < self.part_limits.smallest_bytes for part in parts[:-1]):
                raise Refused(f"{self.url_of(upload.key)}: a part is too small")
            if upload.key in self.objects:
                raise Conflict(f"{self.url_of(upload.key)} is there already")
            self.objects[upload.key] = b"".join(sent[part.number] for part in parts)
            del self.uploads[upload]

    def abort(self, upload: MultipartUpload) -> None:
        self._fail()
        self.uploads.pop(upload, None)

    def unfinished(self, prefix: str) -> tuple[MultipartUpload, ...]:
        self._fail()
        return tuple(upload for upload in self.uploads if upload.key.startswith(prefix))

    def copies_from(self, source: Objects) -> bool:
        return isinstance(source, FakeStore) and source.provider == self.provider

    def copy_from(self, source: Objects, source_key: str, key: str) -> bool:
        self._fail()
        if not isinstance(source, FakeStore) or not self.copies_from(source):
            raise Refused(f"{source.url_of(source_key)} is of another provider")
        self.objects[key] = source.objects[source_key]
        return self.vouches

    def list(self, prefix: str) -> Iterator[StoredObject]:
        self._fail()
        for key, body in sorted(self.objects.items()):
            if key.startswith(prefix):
                yield StoredObject(key, len(body))

    def delete(self, key: str) -> None:
        self._fail()
        self._may_write()
        self.objects.pop(key, None)

    def url_of(self, key: str) -> str:
        return f"s3://{self.provider}/{key}"

    def _fail(self) -> None:
        if self.failures and (failure := self.failures.popleft()) is not None:
            raise failure

    def _sent(self, upload: MultipartUpload) -> dict[int, bytes]:
        if upload not in self.uploads:
            raise Conflict(f"{self.url_of(upload.key)}: there is no upload {upload.id}; begin anew")
        return self.uploads[upload]

    def _may_write(self) -> None:
        if self.refuses_writes:
            raise Refused(f"s3://{self.provider} may only be read; allow writing")


def _part(store: FakeStore, number: int, body: memoryview | bytes) -> Part:
    return Part(number, len(body), _etag(bytes(body)), store.checksum(memoryview(body)))


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
