"""A store, where mirrors and the ledger live: what Skyferry asks of it, and the frozen values that cross."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class VersionedObject:
    body: bytes
    etag: str


@dataclass(frozen=True)
class StoredObject:
    key: str
    size_bytes: int


MANIFEST = "skyferry-manifest.json"
"""The file below a mirror's prefix that says what it holds; written last, it alone says that the mirror exists."""


class ConditionalStore(Protocol):
    """Small documents with conditional writes: an ETag says which version a writer has seen."""

    def get(self, key: str) -> VersionedObject | None: ...

    def put(self, key: str, body: bytes, *, replacing: str | None) -> str:
        """Write over the version with the ETag `replacing` (None: only where there is none); the new ETag.

        Raises Conflict where another version stands, and Unsupported where the store knows no conditions.
        """
        ...


class Objects(Protocol):
    """Whole objects."""

    def write(self, key: str, body: bytes | memoryview) -> bool:
        """Over whatever stands there; for what fits into memory.

        Whether the store has said that it has these bytes; where it has not, only reading them back tells.
        """
        ...

    def read(self, key: str, start: int = 0, size_bytes: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` on, `size_bytes` of them or all; Refused where there is no such object."""
        ...

    def list(self, prefix: str) -> Iterator[StoredObject]: ...

    def delete(self, key: str) -> None:
        """Gone already is no error."""
        ...

    def url_of(self, key: str) -> str:
        """How an engine or a person names the object: `s3://bucket/key`."""
        ...


@dataclass(frozen=True)
class PartLimits:
    """What a store takes as parts of one object."""

    smallest_bytes: int
    """Of every part but the last."""
    largest_bytes: int
    parts: int
    """So many at most."""


@dataclass(frozen=True)
class Part:
    """One part that a store has."""

    number: int
    """From 1, in the order of the bytes; parts may be sent in any order."""
    size_bytes: int
    etag: str
    """What the store calls it."""
    checksum: str | None
    """As `Uploads.checksum` has it; None where the store does not say."""
    is_vouched: bool = True
    """Whether the store has said that it has the bytes of that checksum."""


@dataclass(frozen=True)
class MultipartUpload:
    """An upload that is no object yet."""

    key: str
    id: str
    started_at: float
    """Unix seconds."""


class Uploads(Protocol):
    """Large objects that arrive in parts. What was sent stays, whoever dies, until it is completed or aborted.

    `send`, `sent` and `complete` raise Conflict where the upload, or a part of it, is not what the caller believes:
    look at what stands, and begin anew.
    """

    @property
    def part_limits(self) -> PartLimits: ...

    def checksum(self, body: memoryview) -> str:
        """What this store checks a part by."""
        ...

    def holds(self, part: Part, body: memoryview) -> bool:
        """Does the store say of a part that it is these bytes? False where it does not say."""
        ...

    def begin(self, key: str) -> MultipartUpload: ...

    def send(self, upload: MultipartUpload, number: int, body: memoryview) -> Part:
        """The store checks the bytes; a part sent again replaces the one before."""
        ...

    def sent(self, upload: MultipartUpload) -> tuple[Part, ...]:
        """The parts that are there, by number."""
        ...

    def complete(self, upload: MultipartUpload, parts: Sequence[Part]) -> None:
        """Make the object of all these parts, each with its checksum; it appears whole or not at all.

        The store, or the block, checks the whole object as well. Conflict also where an object has that key already.
        """
        ...

    def abort(self, upload: MultipartUpload) -> None:
        """Remove its parts; gone already is no error."""
        ...

    def unfinished(self, prefix: str) -> tuple[MultipartUpload, ...]:
        """Oldest first."""
        ...


class Copies(Protocol):
    """What a provider copies itself, so that no byte passes through here."""

    def copies_from(self, source: Objects) -> bool:
        """Is the source of the same provider? Says nothing of rights."""
        ...

    def copy_from(self, source: Objects, source_key: str, key: str) -> bool:
        """Over whatever stands there; Refused where the provider may not, or cannot, read the source.

        Whether the provider's checksums of both were compared; where they were not, only reading it back tells.
        """
        ...


class SignedUrls(Protocol):
    """What a rented machine reads a store by: it has no credentials for it."""

    @property
    def near(self) -> Sequence[str]:
        """Cells, named whole or in part, whose machines read weights from here rather than from elsewhere."""
        ...

    def presigned_url(self, key: str, seconds: int) -> str:
        """An HTTP address at which anybody can read that object, and nothing else, for so long: a secret.

        Refused where the store signs none.
        """
        ...


class Store(ConditionalStore, Objects, Uploads, Copies, SignedUrls, Protocol):
    """One bucket."""
