"""What belongs into a mirror, what it lacks, and in which pieces it comes."""

import re
from datetime import UTC, datetime

import pytest

from blocks.errors import Refused
from blocks.ports import MANIFEST, Model, ModelFile, PartLimits, StoredObject, Unfinished
from flows.policy.mirror import (
    EGRESS_PRICES,
    PART_BYTES,
    Manifest,
    MirroredFile,
    part_bytes,
    traffic_words,
    what_to_copy,
    what_to_mirror,
    what_to_resume,
)
from flows.policy.verify import Finding, what_is_wrong, which_to_verify

LARGE = ModelFile("model.gguf", 1000, "sha", "git")
SMALL = ModelFile("config.json", 10, None, "git")
MODEL = Model("a/b", "c", (SMALL, LARGE), None)


def test_large_files_that_are_there_do_not_come_again() -> None:
    """An object exists only once its hash was right; small files come again, for their sha256 is known to nobody."""
    there = [StoredObject("p/model.gguf", 1000), StoredObject("p/config.json", 10)]
    assert what_to_copy(MODEL.files, there, "p/") == (SMALL,)


def test_another_size_is_another_file() -> None:
    """The largest file comes first."""
    assert what_to_copy(MODEL.files, [StoredObject("p/model.gguf", 999)], "p/") == (LARGE, SMALL)


def large(*paths: str) -> Model:
    return Model("a/b", "c", (*(ModelFile(path, 1000, "sha", "git") for path in paths), SMALL), None)


def paths(model: Model, **wanted: object) -> list[str]:
    return [file.path for file in what_to_mirror(model, **wanted).files]  # pyright: ignore[reportArgumentType] - by name


def test_safe_weights_are_preferred() -> None:
    """Pickles beside safetensors are left out and named, unless somebody asks for them."""
    model = large("model.safetensors", "pytorch_model.bin", "training_args.bin")
    assert paths(model) == ["model.safetensors", "config.json"]
    assert {path for path, _ in what_to_mirror(model).left_out} == {"pytorch_model.bin", "training_args.bin"}
    assert len(paths(model, pickle_weights=True)) == 4


def test_a_model_of_pickles_is_refused() -> None:
    """What runs code when it is loaded is mirrored for whoever asks for it, and for nobody else."""
    with pytest.raises(Refused, match=r"pytorch_model\.bin.*pickle_weights"):
        what_to_mirror(large("pytorch_model.bin"))
    assert paths(large("pytorch_model.bin"), pickle_weights=True) == ["pytorch_model.bin", "config.json"]


def test_patterns_choose() -> None:
    """Those allowed and not those ignored, in folders too; nothing left is refused."""
    model = large("a.safetensors", "original/b.safetensors", "c.gguf")
    assert paths(model, allow=("*.safetensors",)) == ["a.safetensors", "original/b.safetensors"]
    assert paths(model, allow=("*.safetensors",), ignore=("original/",)) == ["a.safetensors"]
    with pytest.raises(Refused, match="change the patterns"):
        what_to_mirror(model, allow=("nothing",))


def test_no_file_may_stand_for_the_manifest() -> None:
    """A repository that has a file of that name would say that its mirror exists."""
    with pytest.raises(Refused, match=MANIFEST):
        what_to_mirror(large(MANIFEST))


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
        Unfinished(key, str(at), at) for key, at in (("k", 1), ("k", 2), ("done", 3), ("other", 4))
    )
    resumption = what_to_resume([new, old, done, other], {"k"})
    assert (resumption.go_on, resumption.abort) == ((new,), (old,))


def manifest(**files: str) -> Manifest:
    return Manifest(
        repo="a/b",
        commit="c",
        license=None,
        files=tuple(MirroredFile(path=path, size_bytes=10, sha256=sha256) for path, sha256 in files.items()),
        source="hub",
        mirrored_at=datetime(2026, 1, 1, tzinfo=UTC),
        tool="t",
    )


def test_a_manifest_is_made_larger() -> None:
    """Files that an earlier run left out join it; a file that differs is refused by name."""
    joined = manifest(a="1", b="2").joined_with(manifest(b="2", c="3"))
    assert [file.path for file in joined.files] == ["a", "b", "c"]
    with pytest.raises(Refused, match="otherwise of b"):
        manifest(a="1", b="2").joined_with(manifest(b="other"))


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
    assert what_is_wrong([right, wrong]) == (wrong,)


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
