"""What every hub promises, asked of the one in memory and of the Hugging Face block on the embedded hub."""

import hashlib
from collections.abc import Iterator
from random import Random

import pytest

from blocks.errors import Refused, Unavailable
from blocks.ports.hub import Hub, Model
from tests.fakes.hub import FakeHub
from tests.servers import local_hub

REPO = "org/model"
WEIGHTS = Random(1).randbytes((20 << 20) + 7)  # noqa: S311 - the same bytes in each run, not a secret
CARD = b"---\nlicense: apache-2.0\n---\n# "
OLD = {"README.md": CARD + b"old", "model.gguf": WEIGHTS, "sub folder/config.json": b"{}\n"}
NEW = {**OLD, "README.md": CARD + b"new"}
MANY = {f"part-{number % 7}/{number:04}.txt": b"%d" % number for number in range(2300)}
MODELS = {REPO: {"v1": OLD, "v2": NEW}, "org/bare": {"v1": {"empty.txt": b""}}, "org/many": {"v1": MANY}}


@pytest.fixture(params=["fake", pytest.param("hugging face", marks=pytest.mark.server)], scope="module")
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    if request.param == "fake":
        yield FakeHub(MODELS)
    else:
        with local_hub(tmp_path_factory.mktemp("hub"), MODELS) as running:
            yield running


def content(hub: Hub, model: Model) -> dict[str, bytes]:
    return {file.path: b"".join(hub.read(model, file)) for file in model.files}


def test_a_revision_is_pinned_to_its_commit(hub: Hub) -> None:
    """A name and the commit that it stands for look up the same model; another name another one."""
    named = hub.look_up(REPO, "v1")
    assert hub.look_up(REPO, named.commit) == named
    assert len(bytes.fromhex(named.commit)) == hashlib.sha1(usedforsecurity=False).digest_size
    assert hub.look_up(REPO, "v2").commit != named.commit


def test_main_is_the_last_revision(hub: Hub) -> None:
    """Whoever names no revision gets the newest."""
    assert hub.look_up(REPO, "main") == hub.look_up(REPO, "v2")


@pytest.mark.parametrize(("revision", "files"), [("v1", OLD), ("v2", NEW)])
def test_every_file_of_the_pinned_commit_is_read(hub: Hub, revision: str, files: dict[str, bytes]) -> None:
    """Small and large files come back byte by byte, those of an old commit too."""
    assert content(hub, hub.look_up(REPO, revision)) == files


def test_sizes_and_hashes_are_those_of_the_content(hub: Hub) -> None:
    """A large file has its sha256, a small one git's sha1, so that every byte can be checked."""
    for file in hub.look_up(REPO, "v1").files:
        body = OLD[file.path]
        assert file.size_bytes == len(body)
        if file.path.endswith(".gguf"):
            assert file.sha256 == hashlib.sha256(body).hexdigest()
        else:
            blob = b"blob %d\0" % len(body) + body
            assert (file.sha256, file.git_sha1) == (None, hashlib.sha1(blob, usedforsecurity=False).hexdigest())


def test_the_license_is_told(hub: Hub) -> None:
    """The licence is the model card's; None where no card names one."""
    assert hub.look_up(REPO, "v1").license == "apache-2.0"
    assert hub.look_up("org/bare", "v1").license is None


def test_a_model_of_many_files_has_them_all(hub: Hub) -> None:
    """However many pages the hub lists them on: a mirror without some of them would be no mirror."""
    found = hub.look_up("org/many", "v1").files
    assert {file.path: file.size_bytes for file in found} == {path: len(body) for path, body in MANY.items()}


def test_an_empty_file_is_read(hub: Hub) -> None:
    """A file without a byte is a file."""
    assert content(hub, hub.look_up("org/bare", "main")) == {"empty.txt": b""}


@pytest.mark.parametrize(
    ("repo", "revision"), [("org/missing", "main"), (REPO, "v9"), (REPO, "0" * 40), ("no//repo", "main")]
)
def test_what_does_not_exist_is_refused(hub: Hub, repo: str, revision: str) -> None:
    """A repository, revision or commit that is not there is refused by name."""
    with pytest.raises(Refused, match=repo):
        hub.look_up(repo, revision)


@pytest.mark.parametrize("start", [0, 1, 5 << 20, (20 << 20) + 6])
def test_a_part_fills_the_buffer(hub: Hub, start: int) -> None:
    """From any byte, as many as the buffer holds, and again over the same connection."""
    model = hub.look_up(REPO, "v1")
    large = next(file for file in model.files if file.path == "model.gguf")
    for _ in range(2):
        buffer = bytearray(min(3 << 20, len(WEIGHTS) - start))
        hub.read_part(model, large, start, memoryview(buffer))
        assert buffer == WEIGHTS[start : start + len(buffer)]


def test_small_files_fill_a_buffer_too(hub: Hub) -> None:
    """Files that the hub keeps in git come the same way, and so does one without a byte."""
    model = hub.look_up(REPO, "v2")
    card = next(file for file in model.files if file.path == "README.md")
    buffer = bytearray(card.size_bytes)
    hub.read_part(model, card, 0, memoryview(buffer))
    assert buffer == NEW["README.md"]
    bare = hub.look_up("org/bare", "v1")
    hub.read_part(bare, bare.files[0], 0, memoryview(bytearray()))


def test_past_the_end_there_is_nothing(hub: Hub) -> None:
    """A buffer that cannot be filled is an error, never a buffer half full."""
    model = hub.look_up(REPO, "v1")
    large = next(file for file in model.files if file.path == "model.gguf")
    with pytest.raises(Unavailable, match=r"model\.gguf"):
        hub.read_part(model, large, len(WEIGHTS) - 5, memoryview(bytearray(10)))


def test_a_part_of_a_file_that_is_not_there_is_refused(hub: Hub) -> None:
    """A file of another model cannot be read from this one, in parts neither."""
    model, (file,) = hub.look_up(REPO, "v1"), hub.look_up("org/bare", "v1").files
    with pytest.raises(Refused, match=r"empty\.txt"):
        hub.read_part(model, file, 0, memoryview(bytearray(1)))


def test_a_file_that_is_not_there_is_refused(hub: Hub) -> None:
    """A file of another model cannot be read from this one."""
    model, (file,) = hub.look_up(REPO, "v1"), hub.look_up("org/bare", "v1").files
    with pytest.raises(Refused, match=r"empty\.txt"):
        b"".join(hub.read(model, file))
