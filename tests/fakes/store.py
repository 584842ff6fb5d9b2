"""A store in memory that keeps the port's promises, and breaks them when a test asks for it."""

import hashlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from blocks.errors import Conflict, Refused, SkyferryError, Unavailable
from blocks.ports import Found, StoredObject, Upload


class FakeStore:
    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.failures: deque[SkyferryError] = deque()
        """Each is raised once, by the next verbs in turn."""
        self.refuses_writes = False
        self._lock = Lock()

    def corrupt(self, key: str) -> None:
        """Flip the first bit of an object."""
        body = self.objects[key]
        self.objects[key] = bytes([body[0] ^ 0x80]) + body[1:]

    def get(self, key: str) -> Found | None:
        self._fail()
        body = self.objects.get(key)
        return None if body is None else Found(body, _etag(body))

    def put(self, key: str, body: bytes, *, replacing: str | None) -> str:
        self._fail()
        self._may_write()
        with self._lock:
            found = self.objects.get(key)
            if replacing != (None if found is None else _etag(found)):
                raise Conflict(f"{self.url_of(key)}: another version stands; read it again")
            self.objects[key] = body
        return _etag(body)

    @contextmanager
    def upload(self, key: str, size_bytes: int) -> Iterator[Upload]:
        self._fail()
        self._may_write()
        upload = _Buffer()
        yield upload
        if len(upload.body) != size_bytes:
            raise Unavailable(f"{self.url_of(key)} was to have {size_bytes} bytes and got {len(upload.body)}")
        self.objects[key] = bytes(upload.body)

    def read(self, key: str) -> Iterator[bytes]:
        self._fail()
        body = self.objects.get(key)
        if body is None:
            raise Refused(f"there is no {self.url_of(key)}")
        middle = len(body) // 2
        yield from (body[:middle], body[middle:])

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
        return f"s3://fake/{key}"

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.popleft()

    def _may_write(self) -> None:
        if self.refuses_writes:
            raise Refused("s3://fake may only be read; allow writing")


class _Buffer:
    def __init__(self) -> None:
        self.body = bytearray()

    def write(self, chunk: bytes) -> None:
        self.body += chunk


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
