"""What nobody needs any more, and what is kept and why."""

from blocks.ports.store import MANIFEST, MultipartUpload, StoredObject
from flows.policy.mirrors.collect import Mirror, mirrors_in, what_to_collect, which_are_orphans


def mirror(commit: str, at: float | None, repo: str = "a/b") -> Mirror:
    prefix = f"models/{repo}/{commit}/"
    return Mirror(prefix, (StoredObject(f"{prefix}weights", 10),), at)


def deleted(mirrors: list[Mirror], needed: set[str] = set(), in_progress: set[str] = set(), keep: int = 1) -> set[str]:  # noqa: B006 - never changed
    verdicts = what_to_collect(mirrors, needed, in_progress, keep_newest=keep)
    assert {verdict.mirror for verdict in verdicts} == set(mirrors)
    assert all(verdict.reason for verdict in verdicts)
    return {verdict.mirror.prefix for verdict in verdicts if verdict.delete}


def test_the_newest_of_each_repository_stay() -> None:
    """Older ones go, and another repository's newest is its own."""
    mirrors = [mirror("1", 1), mirror("2", 2), mirror("3", 3), mirror("1", 1, "c/d")]
    assert deleted(mirrors) == {"models/a/b/1/", "models/a/b/2/"}
    assert deleted(mirrors, keep=2) == {"models/a/b/1/"}


def test_what_a_release_refers_to_stays() -> None:
    """However old it is."""
    assert deleted([mirror("1", 1), mirror("2", 2), mirror("3", 3)], {"models/a/b/1/"}) == {"models/a/b/2/"}


def test_what_may_be_on_its_way_stays() -> None:
    """Without a manifest it is no mirror yet; with an upload in progress somebody is at it."""
    assert deleted([mirror("1", None), mirror("2", 2), mirror("3", 3)], in_progress={"models/a/b/2/"}) == set()


def test_objects_are_sorted_into_their_mirrors() -> None:
    """By maker, name and commit; what lies elsewhere belongs to nobody and is never touched."""
    keys = ["models/a/b/1/x", f"models/a/b/1/{MANIFEST}", "models/a/b/2/deep/x", "models/stray", "ledger/chat.json"]
    first, second = mirrors_in([StoredObject(key, 1) for key in keys], {"models/a/b/1/": 5.0})
    assert (first.prefix, first.mirrored_at, first.size_bytes, first.repo) == ("models/a/b/1/", 5.0, 2, "a/b")
    assert (second.prefix, second.mirrored_at) == ("models/a/b/2/", None)


def test_only_old_uploads_are_orphans() -> None:
    """One that began within the grace may still be fed."""
    old, young = MultipartUpload("k", "1", 0), MultipartUpload("k", "2", 90)
    assert which_are_orphans([old, young], now=100, grace_seconds=50) == (old,)
