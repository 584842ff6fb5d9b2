"""What belongs into a mirror, what it lacks, and in which pieces it comes."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from blocks.errors import Refused
from blocks.on_machine.node import LARGEST_FILE_BYTES
from blocks.ports.hub import Model, ModelFile
from blocks.ports.store import MANIFEST, MultipartUpload, PartLimits, StoredObject
from blocks.stores.mirrors import Manifest, MirroredFile
from flows.policy.mirrors.mirror import (
    EGRESS_PRICES,
    PART_BYTES,
    part_bytes,
    traffic_words,
    what_is_there,
    what_to_mirror,
    what_to_resume,
)
from flows.policy.mirrors.verify import Finding, what_is_unread, what_is_wrong, which_to_verify, words_of

SHA256, GIT, COMMIT = "5" * 64, "6" * 40, "c" * 40
LARGE = ModelFile("model.gguf", 1000, SHA256, GIT)
SMALL = ModelFile("config.json", 10, None, GIT)
MODEL = Model("a/b", COMMIT, (SMALL, LARGE), None)


@pytest.mark.parametrize(("size_bytes", "expected"), [(1000, {"model.gguf"}), (999, set())])
def test_what_lies_there_is_looked_at_if_it_has_the_right_size(size_bytes: int, expected: set[str]) -> None:
    """Small files come again in any case: their sha256 is known to nobody."""
    there = [StoredObject("p/model.gguf", size_bytes), StoredObject("p/config.json", 10)]
    assert what_is_there(MODEL.files, there, "p/") == expected


def large(*paths: str) -> Model:
    return Model("a/b", COMMIT, (*(ModelFile(path, 1000, SHA256, GIT) for path in paths), SMALL), None)


def paths(model: Model, **wanted: object) -> list[str]:
    return [file.path for file in what_to_mirror(model, **wanted).files]  # pyright: ignore[reportArgumentType] - by name


def test_patterns_choose() -> None:
    """Those allowed and not those ignored, in folders too; nothing left is refused."""
    model = large("a.safetensors", "original/b.safetensors", "c.gguf")
    assert paths(model, allow=("*.safetensors",)) == ["a.safetensors", "original/b.safetensors"]
    assert paths(model, allow=("*.safetensors",), ignore=("original/",)) == ["a.safetensors"]
    with pytest.raises(Refused, match="change the patterns"):
        what_to_mirror(model, allow=("nothing",))


@pytest.mark.parametrize("path", [MANIFEST, f"x/{MANIFEST}", f"{MANIFEST}/x", f"a/b/{'0' * 40}/{MANIFEST}"])
def test_no_file_may_stand_for_a_manifest(path: str) -> None:
    """A repository that has a file of that name, however deep, would speak for a mirror."""
    with pytest.raises(Refused, match=f"{MANIFEST}.*ignore it"):
        what_to_mirror(large("model.safetensors", path))
    assert paths(large("model.safetensors", path), ignore=(f"*{MANIFEST}*",)) == ["model.safetensors", "config.json"]


@pytest.mark.parametrize(
    "path",
    [
        *("", ".", "..", "/", "/etc/passwd", "../x", "a/../x", "a/./x", "a//x", "a/", "./x"),
        *("a\\b", "a\0b", "a\nb", "a\rb", "a\tb", "a\x7fb", "a\u202eb", "a\u2028b", "a\ud800b"),
        *("x" * 256, "ä" * 128, "/".join(["x" * 200] * 5)),
    ],
)
def test_no_path_of_a_hubs_becomes_a_bad_key(path: str) -> None:
    """Out of the mirror, invisible, or longer than stores and disks take: refused before the first byte."""
    with pytest.raises(Refused, match=r"of a/b .*; ignore it"):
        what_to_mirror(large("model.safetensors", path))


def test_ordinary_names_are_no_reason_to_refuse() -> None:
    """Spaces, letters of any script, dots: whatever people call their files."""
    names = ["模型 1.safetensors", "a b+c.json", ".gitattributes", "v1..2.txt", "ä" * 127, "📈.png", "a/b/c/d.json"]
    assert set(paths(large(*names))) == {*names, "config.json"}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.txt", "a.txt"], "named 2 times"),
        (["a", "a/b"], "a file, and the folder"),
        (["a/b/c", "a"], "a file, and the folder"),
    ],
)
def test_files_that_cannot_lie_beside_each_other_are_refused(names: list[str], words: str) -> None:
    """One path with two contents, or a file where a folder has to be, is no model."""
    with pytest.raises(Refused, match=words):
        what_to_mirror(large("model.safetensors", *names))


@pytest.mark.parametrize(
    "change",
    [
        *({"size_bytes": size} for size in (-1, LARGEST_FILE_BYTES + 1, 1.5, True, "10", None)),
        *({"sha256": value} for value in ("", "0", "g" * 64, "0" * 63, "0" * 65, "../" + "0" * 61, "0" * 64 + "\n")),
        *({"sha256": None, "git_sha1": value} for value in ("", "0", "g" * 40, "0" * 39, "0" * 40 + "\n")),
    ],
    ids=str,
)
def test_a_size_or_hash_that_is_none_is_refused(change: dict[str, Any]) -> None:
    """With the file's name, and before anything is planned with it."""
    with pytest.raises(Refused, match=r"'model\.gguf' of a/b has"):
        what_to_mirror(replace(MODEL, files=(SMALL, replace(LARGE, **change))))


@pytest.mark.parametrize("commit", ["", "main", "..", "a/b", "C" * 40, "c" * 39, "c" * 41, "c" * 40 + "\n", "../" * 13])
def test_a_commit_that_is_none_is_refused(commit: str) -> None:
    """It names a folder of the store: a hub's word for it has to be git's."""
    with pytest.raises(Refused, match="the commit of a/b"):
        what_to_mirror(replace(MODEL, commit=commit))


@pytest.mark.parametrize("repo", ["b", "a/b/c", "../b", "a/..", "a b/c", "/b", "a/", "a\n/b"])
def test_a_repository_that_is_none_is_refused(repo: str) -> None:
    """Whoever made the model."""
    with pytest.raises(Refused, match="no place for a mirror"):
        what_to_mirror(replace(MODEL, repo=repo))


def test_hashes_are_the_same_in_capitals() -> None:
    """As some hubs write them; afterwards all are written alike."""
    loud = (replace(LARGE, sha256=SHA256.replace("5", "A")), replace(SMALL, git_sha1="B" * 40))
    found = what_to_mirror(replace(MODEL, files=loud)).files
    assert (found[0].sha256, found[1].git_sha1) == ("a" * 64, "b" * 40)


@pytest.mark.parametrize(("size_bytes", "expected"), [(0, PART_BYTES), (100 << 30, PART_BYTES), (500 << 30, 52 << 20)])
def test_parts_grow_with_the_file(size_bytes: int, expected: int) -> None:
    """As little as the store with the fewest parts allows, in whole MiB, and the same in each run."""
    assert part_bytes(size_bytes, [PartLimits(5 << 20, 5 << 30, 10_000), PartLimits(1, 1 << 40, 50_000)]) == expected


def test_a_file_that_no_store_takes_is_refused() -> None:
    """Said before the first byte."""
    with pytest.raises(Refused, match="smaller files"):
        part_bytes(1 << 40, [PartLimits(1, 1 << 20, 10)])


def test_the_newest_upload_of_a_missing_file_goes_on() -> None:
    """Older ones of it end; those of other files are left to whoever is at them."""
    old, new, done, other = (
        MultipartUpload(key, str(at), at) for key, at in (("k", 1), ("k", 2), ("done", 3), ("other", 4))
    )
    resumption = what_to_resume([new, old, done, other], {"k"})
    assert (resumption.go_on, resumption.abort) == ((new,), (old,))


def manifest(**files: str) -> Manifest:
    return Manifest(
        repo="a/b",
        commit=COMMIT,
        license=None,
        files=tuple(
            MirroredFile(path=path, size_bytes=10, sha256=sha256.rjust(64, "0")) for path, sha256 in files.items()
        ),
        source="hub",
        mirrored_at=datetime(2026, 1, 1, tzinfo=UTC),
        tool="t",
    )


def test_a_manifest_is_made_larger() -> None:
    """Files that an earlier run left out join it; a file that differs is refused by name."""
    joined = manifest(a="1", b="2").joined_with(manifest(b="2", c="3"))
    assert [file.path for file in joined.files] == ["a", "b", "c"]
    with pytest.raises(Refused, match="otherwise of b"):
        manifest(a="1", b="2").joined_with(manifest(b="4"))


def test_a_manifest_that_says_otherwise_than_the_hub_is_not_believed() -> None:
    """Nor is the hub: somebody has to look."""
    standing = manifest(a="1", b="2")
    files = [ModelFile("a", 10, "1".rjust(64, "0"), GIT), ModelFile("b", 10, None, GIT), ModelFile("c", 1, None, GIT)]
    standing.check_against(files)
    for odd in (replace(files[0], sha256=SHA256), replace(files[0], size_bytes=9), replace(files[1], size_bytes=9)):
        with pytest.raises(Refused, match=f"than the hub of {odd.path};"):
            standing.check_against([odd])


def test_a_sample_is_a_share_of_the_bytes() -> None:
    """At least one file, all at 100 %, and others with another seed."""
    whole = manifest(**{f"f{number}": str(number) for number in range(20)})
    assert len(which_to_verify(whole, 100, "s")) == 20
    assert len(which_to_verify(whole, 10, "s")) == 2
    assert len(which_to_verify(whole, 0.1, "s")) == 1
    assert which_to_verify(whole, 10, "s") == which_to_verify(whole, 10, "s")
    assert len({which_to_verify(whole, 5, str(seed)) for seed in range(20)}) > 1


def test_wrong_is_whatever_differs() -> None:
    """Another hash, or no object at all."""
    right, wrong = Finding("s", "k", "1", "1"), Finding("s", "k", "1", "there is no k")
    unread = Finding("s", "k", "1", "the disk is broken", is_unread=True)
    assert what_is_wrong([right, wrong, unread]) == (wrong,)
    assert what_is_unread([right, wrong, unread]) == (unread,)


def test_what_could_not_be_read_is_not_called_wrong() -> None:
    """Nobody is told to delete a mirror because a store was away."""
    wrong, unread = Finding("s/", "k", "1", "2"), Finding("s/", "u", "1", "the disk is broken", is_unread=True)
    assert re.search(
        r"1 of 2 .*s/k: 2 where 1 .*delete.* 1 of 2 .*s/u: the disk is broken", words_of([wrong], [unread], 2)
    )
    assert "delete" not in words_of([], [unread], 1)


def test_traffic_has_its_price() -> None:
    """What leaves a cloud is priced for each; what comes in costs nothing."""
    words = traffic_words(10**12, None)
    assert words.startswith("nothing into")
    assert "aws $90.00" in words


def test_whoever_pays_another_rate_sees_that_one() -> None:
    """List prices say nothing to somebody with a contract, and free traffic has a price too: nothing."""
    assert "$50.00 a store, at your $0.05 per GB" in traffic_words(10**12, 0.05)
    assert "aws" not in traffic_words(10**12, 0)


def test_every_price_says_where_and_when_it_was_read() -> None:
    """A price without them is a rumour."""
    assert all(re.search(r"https://\S+, .*202\d", price.source) for price in EGRESS_PRICES)
