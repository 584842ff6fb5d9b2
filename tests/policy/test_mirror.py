"""Which files a mirror still lacks."""

from blocks.ports import Model, ModelFile, StoredObject
from flows.policy.mirror import what_to_copy

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
