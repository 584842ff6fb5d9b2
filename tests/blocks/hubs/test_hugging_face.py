"""How the Hugging Face block says no, and that it keeps its token to itself."""

from pathlib import Path

import httpx
import pytest
from huggingface_hub import snapshot_download

from blocks.errors import Refused, SkyferryError, Unavailable
from blocks.hubs.hugging_face import HuggingFaceHub
from blocks.local.processes import free_port
from blocks.ports.hub import Model, ModelFile
from deployments.local.hub import REPO, fill_hub
from tests.hubs import describing, entry, serving
from tests.servers import canned_server, local_hub

FILE = ModelFile("model.gguf", 4, None, "0" * 40)
MODEL = Model("org/model", "1" * 40, (FILE,), None)


def hub_at(address: str, token: str | None = None) -> HuggingFaceHub:
    return HuggingFaceHub.model_validate({"endpoint": f"http://{address}", "token": token})


@pytest.mark.parametrize(
    ("status", "code", "error", "words"),
    [
        (404, "RepoNotFound", Refused, "has no org/model"),
        (404, "RevisionNotFound", Refused, "revision"),
        (403, "GatedRepo", Refused, "accept its licence at http://.*/org/model"),
        (401, "", Refused, "401"),
        (403, "", Refused, "token"),
        (429, "", Unavailable, "429"),
        (500, "", Unavailable, "500"),
        (503, "", Unavailable, "503"),
    ],
)
def test_each_answer_says_what_to_do(status: int, code: str, error: type[SkyferryError], words: str) -> None:
    """Looking up and reading tell what may pass from what will not, and name the model and the next step."""
    with canned_server(status, {"X-Error-Code": code} if code else {}) as server:
        hub = hub_at(server.address)
        with pytest.raises(error, match=words) as looked_up:
            hub.look_up(MODEL.repo, "main")
        with pytest.raises(error, match=words):
            b"".join(hub.read(MODEL, FILE))
    assert MODEL.repo in str(looked_up.value)


def test_a_hub_that_is_not_there_may_come_back() -> None:
    """No connection is worth another try."""
    with pytest.raises(Unavailable, match="check the connection"):
        hub_at(f"127.0.0.1:{free_port()}").look_up(MODEL.repo, "main")


def test_a_file_that_breaks_off_is_worth_another_try() -> None:
    """Fewer bytes than the hub announced are not taken for the file."""
    with canned_server(200, {"Content-Length": "9", "Connection": "close"}, b"only") as server:
        chunks = hub_at(server.address).read(MODEL, FILE)
        with pytest.raises(Unavailable, match=FILE.path):
            b"".join(chunks)


def test_a_server_that_is_no_hub_is_refused() -> None:
    """A page where the model's description should be names the address."""
    with canned_server(200, {"Content-Type": "text/html"}, b"<html>") as server, pytest.raises(Refused, match="no hub"):
        hub_at(server.address).look_up(MODEL.repo, "main")


def test_the_token_stays_with_the_hub() -> None:
    """The hub sees the token; the host that it redirects to does not."""
    with (
        canned_server(200, body=b"data") as elsewhere,
        canned_server(302, {"Location": f"http://{elsewhere.address}/content"}) as server,
    ):
        assert b"".join(hub_at(server.address, "secret").read(MODEL, FILE)) == b"data"
    assert [headers.get("authorization") for _, _, headers in server.requests] == ["Bearer secret"]
    assert [headers.get("authorization") for _, _, headers in elsewhere.requests] == [None]


def test_no_token_is_borrowed() -> None:
    """Without a token of its own the block sends none, whatever this machine has stored."""
    with serving(describing(entry("a.txt"))) as server:
        hub_at(server.address).look_up(MODEL.repo, "main")
    assert not any("authorization" in asked.headers for asked in server.asked)


def test_an_endpoint_without_scheme_is_refused_by_the_form() -> None:
    """A host name alone is caught where it is typed."""
    with pytest.raises(Refused, match="endpoint is no address"):
        HuggingFaceHub(endpoint="huggingface.co")


@pytest.mark.server
def test_the_embedded_hub_serves_the_plain_client(tmp_path: Path) -> None:
    """huggingface_hub itself downloads a whole model from it, not only our block."""
    files = {"README.md": b"# card", "model.safetensors": b"weights", "sub/config.json": b"{}"}
    with local_hub(tmp_path, {"org/model": {"v1": files}}) as hub:
        snapshot = snapshot_download("org/model", endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
    assert {path: (Path(snapshot) / path).read_bytes() for path in files} == files


@pytest.mark.server
def test_the_embedded_hub_has_the_packaged_model_twice(tmp_path: Path) -> None:
    """The same weights under two commits, so that a release can follow another."""
    with local_hub(tmp_path, {"org/model": {"v1": {"README.md": b""}}}) as hub:
        fill_hub(tmp_path / "models")
        fill_hub(tmp_path / "models")
        old, new = hub.look_up(REPO, "v1"), hub.look_up(REPO, "main")
    assert old.commit != new.commit
    assert new.license == "apache-2.0"
    assert {file.sha256 for file in old.files} == {file.sha256 for file in new.files}
    assert new.size_bytes > 90_000_000


@pytest.mark.server
def test_a_range_of_a_file_may_be_asked_for(tmp_path: Path) -> None:
    """The embedded hub sends any part of a large file, as the real one does."""
    with local_hub(tmp_path, {"org/model": {"v1": {"model.gguf": bytes(range(256))}}}) as hub:
        url = f"{hub.endpoint}/org/model/resolve/main/model.gguf"
        answer = httpx.get(url, headers={"Range": "bytes=10-12"}, follow_redirects=True)
    assert (answer.status_code, answer.content) == (206, bytes([10, 11, 12]))
