"""Which mirrors, and which remains of mirrors, does nobody need any more?"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from blocks.ports.store import MultipartUpload, StoredObject
from blocks.stores.mirrors import MIRRORS, home_of

ON_ITS_WAY = "without a manifest that can be read it may be on its way; mirror it, or delete it"


@dataclass(frozen=True)
class Mirror:
    """What lies below one prefix of a store."""

    prefix: str
    objects: tuple[StoredObject, ...]
    mirrored_at: float | None
    """Unix seconds; None where there is no manifest that can be read, so that it is no mirror, or none yet."""

    @property
    def size_bytes(self) -> int:
        return sum(found.size_bytes for found in self.objects)

    @property
    def repo(self) -> str:
        return self.prefix.removeprefix(MIRRORS).rstrip("/").rpartition("/")[0]


@dataclass(frozen=True)
class Verdict:
    mirror: Mirror
    delete: bool
    reason: str


def mirrors_in(objects: Iterable[StoredObject], mirrored_at: dict[str, float]) -> tuple[Mirror, ...]:
    """Objects by the mirror that they belong to: `models/<maker>/<name>/<commit>/`. What lies elsewhere is nobody's."""
    found = dict[str, list[StoredObject]]()
    for stored in objects:
        if (home := home_of(stored.key)) is not None:
            found.setdefault(home, []).append(stored)
    return tuple(Mirror(prefix, tuple(own), mirrored_at.get(prefix)) for prefix, own in sorted(found.items()))


def what_to_collect(
    mirrors: Iterable[Mirror], needed: Collection[str], in_progress: Collection[str], *, keep_newest: int
) -> tuple[Verdict, ...]:
    """Every mirror that no release refers to goes, but for the newest few of each repository.

    `needed` are the prefixes that a ledger names, `in_progress` those with unfinished uploads. Remains without a
    manifest are left alone while something is in progress there; what is not known counts as needed.
    """
    newest = dict[str, list[Mirror]]()
    mirrors = tuple(mirrors)
    for mirror in mirrors:
        if mirror.mirrored_at is not None:
            newest.setdefault(mirror.repo, []).append(mirror)
    kept = {
        mirror.prefix
        for own in newest.values()
        for mirror in sorted(own, key=lambda mirror: -(mirror.mirrored_at or 0))[:keep_newest]
    }
    return tuple(_judge(mirror, needed, in_progress, kept, keep_newest) for mirror in mirrors)


def _judge(
    mirror: Mirror, needed: Collection[str], in_progress: Collection[str], kept: Collection[str], keep_newest: int
) -> Verdict:
    if mirror.prefix in needed:
        return Verdict(mirror, delete=False, reason="a release in the ledger refers to it")
    if mirror.prefix in in_progress:
        return Verdict(mirror, delete=False, reason="uploads to it are in progress")
    if mirror.mirrored_at is None:
        return Verdict(mirror, delete=False, reason=ON_ITS_WAY)
    if mirror.prefix in kept:
        return Verdict(mirror, delete=False, reason=f"among the newest {keep_newest} of {mirror.repo}")
    return Verdict(mirror, delete=True, reason="no release refers to it, and newer ones are there")


def which_are_orphans(
    unfinished: Iterable[MultipartUpload], now: float, grace_seconds: float
) -> tuple[MultipartUpload, ...]:
    """Uploads that began so long ago that nobody is at them any more."""
    return tuple(upload for upload in unfinished if now - upload.started_at > grace_seconds)
