"""How a store that speaks S3 checks what arrives: one checksum a part, and what it is told of the whole."""

import base64
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

from awscrt.checksums import combine_crc64nvme, crc32c, crc64nvme

from blocks.ports.store import Part

Algorithm = Literal["crc64nvme", "crc32c", "md5"]
MD5_ETAG = re.compile(r'"?([0-9a-f]{32})"?', re.IGNORECASE)
"""Not a weak one, as proxies make them (`W/"…"`): that is of something alike."""


@dataclass(frozen=True)
class Checksum:
    """Checksums are written as S3 writes them, in base64."""

    field: str
    """What boto3 calls it, of a part and of an object."""
    digest: Callable[[memoryview], bytes]
    declared: Mapping[str, str]
    """What an upload has to announce when it begins."""
    whole: Callable[[Sequence[Part]], Mapping[str, Any]]
    """What the store is to compare with the object, once it is put together."""

    @property
    def is_of_whole(self) -> bool:
        """The same however many parts the object came in, so that two copies of it can be compared."""
        return self.declared.get("ChecksumType") == "FULL_OBJECT"

    @property
    def declared_for_copies(self) -> dict[str, str]:
        return {"ChecksumAlgorithm": self.declared["ChecksumAlgorithm"]} if self.is_of_whole else {}

    def of(self, body: memoryview) -> str:
        return _written(self.digest(body))

    def sent_with(self, checksum: str) -> dict[str, str]:
        return {self.field: checksum}

    def listed_with(self, checksum: str | None) -> dict[str, str | None]:
        """What goes beside a part's etag when an upload is completed."""
        return {self.field: checksum} if self.declared else {}

    def found_in(self, answer: Mapping[str, Any]) -> str | None:
        """What the store says that it has; None where it does not say.

        Without a checksum of its own, a part's ETag is its MD5, in letters of whichever case. One that is weak, opaque
        or of bytes that were encrypted with a key says nothing.
        """
        if self.declared:
            return answer.get(self.field)
        is_encrypted = str(answer.get("ServerSideEncryption", "")).startswith("aws:kms")
        etag = MD5_ETAG.fullmatch(answer.get("ETag", ""))
        if etag is None or is_encrypted or answer.get("SSECustomerAlgorithm"):
            return None
        return _written(bytes.fromhex(etag[1]))


def _written(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _read(part: Part) -> bytes:
    return base64.b64decode(part.checksum or "")


def _combined(parts: Sequence[Part]) -> dict[str, Any]:
    """The CRC64NVME of the whole object is made of its parts': the store compares it with the bytes that it has."""

    def add(whole: int, part: Part) -> int:
        return combine_crc64nvme(whole, int.from_bytes(_read(part), "big"), part.size_bytes)

    return {
        "ChecksumCRC64NVME": _written(reduce(add, parts, 0).to_bytes(8, "big")),
        "ChecksumType": "FULL_OBJECT",
        "MpuObjectSize": sum(part.size_bytes for part in parts),
    }


def _composed(parts: Sequence[Part]) -> dict[str, Any]:
    """The checksum of all the parts' checksums, and how many there are."""
    of_all = crc32c(b"".join(map(_read, parts))).to_bytes(4, "big")
    return {"ChecksumCRC32C": f"{_written(of_all)}-{len(parts)}", "ChecksumType": "COMPOSITE"}


CHECKSUMS: Mapping[Algorithm, Checksum] = {
    "crc64nvme": Checksum(
        "ChecksumCRC64NVME",
        lambda body: crc64nvme(body).to_bytes(8, "big"),  # pyright: ignore[reportArgumentType] - it takes any buffer
        {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"},
        _combined,
    ),
    "crc32c": Checksum(
        "ChecksumCRC32C",
        lambda body: crc32c(body).to_bytes(4, "big"),  # pyright: ignore[reportArgumentType] - it takes any buffer
        {"ChecksumAlgorithm": "CRC32C", "ChecksumType": "COMPOSITE"},
        _composed,
    ),
    "md5": Checksum("ContentMD5", lambda body: hashlib.md5(body, usedforsecurity=False).digest(), {}, lambda _: {}),
}
