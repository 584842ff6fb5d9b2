"""Which files of a mirror are read again, and what do they say?"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from blocks.stores.mirrors import Manifest, MirroredFile


@dataclass(frozen=True)
class Finding:
    """What a file in a store was found to be."""

    store: str
    key: str
    expected: str
    found: str
    """The sha256, or what else stands in its place."""
    is_unread: bool = False
    """Nobody knows what is there: `found` says why it could not be read."""

    @property
    def is_right(self) -> bool:
        return self.found == self.expected


def which_to_verify(manifest: Manifest, sample_percent: float, seed: str) -> tuple[MirroredFile, ...]:
    """Whole files until they are that share of the bytes, at least one; another seed takes others."""

    def lot(file: MirroredFile) -> bytes:
        return hashlib.sha256(f"{seed} {file.path}".encode()).digest()

    wanted_bytes, chosen = manifest.size_bytes * sample_percent / 100, list[MirroredFile]()
    chosen_bytes = 0
    for file in sorted(manifest.files, key=lot):
        if chosen and chosen_bytes >= wanted_bytes and sample_percent < 100:  # noqa: PLR2004 - %
            break
        chosen.append(file)
        chosen_bytes += file.size_bytes
    return tuple(chosen)


def what_is_wrong(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(finding for finding in findings if not finding.is_right and not finding.is_unread)


def what_is_unread(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(finding for finding in findings if finding.is_unread)


def words_of(wrong: Sequence[Finding], unread: Sequence[Finding], count: int) -> str:
    """Every one of them by name, and what to do."""
    parts = list[str]()
    if wrong:
        named = "; ".join(f"{one.store}{one.key}: {one.found} where {one.expected} should be" for one in wrong)
        parts.append(f"{len(wrong)} of {count} files are not what was mirrored: {named}; delete and mirror anew")
    if unread:
        named = "; ".join(f"{one.store}{one.key}: {one.found}" for one in unread)
        parts.append(f"{len(unread)} of {count} files could not be read: {named}; verify again")
    return ". ".join(parts)
