"""How the gateway's configuration is written, and what it refuses."""

import json
import re
import stat
import subprocess
from pathlib import Path

import pytest

from blocks.errors import Refused
from deployments.haproxy.config import ROUTES, GatewaySettings, check_configuration, command, write_configuration


def test_the_splits_are_the_gateways_own(tmp_path: Path) -> None:
    """Written again with one more service, nothing of them is touched: a gateway may change one at the same moment."""
    write_configuration(GatewaySettings(tmp_path, {"chat": "127.0.0.1:8080"}))
    (tmp_path / "split.map").write_text("chat 1500\n")
    write_configuration(GatewaySettings(tmp_path, {"chat": "127.0.0.1:8080", "embed": "127.0.0.1:8081"}))
    assert (tmp_path / "split.map").read_text() == "chat 1500\n"


def test_haproxy_takes_what_is_written(tmp_path: Path) -> None:
    """The binary that will run it reads the configuration without a complaint."""
    write_configuration(GatewaySettings(tmp_path, {"chat": "127.0.0.1:8080", "embed": "127.0.0.1:8081"}))
    check_configuration(tmp_path, env={})


def test_what_haproxy_does_not_take_is_said_in_its_words(tmp_path: Path) -> None:
    """A slip in the settings is found before the gateway starts, with the place to mend."""
    write_configuration(GatewaySettings(tmp_path, {"chat": "127.0.0.1"}))
    with pytest.raises(Refused, match=r"missing port specification in '127\.0\.0\.1'"):
        check_configuration(tmp_path, env={})


@pytest.mark.parametrize("service", ["Chat", "chat_1", "chat-blue", "x-green", "", "chat 0\nembed"])
def test_a_name_that_would_read_as_something_else_is_refused(tmp_path: Path, service: str) -> None:
    """Service names stand in HAProxy's language and in front of -blue and -green."""
    with pytest.raises(Refused, match="cannot be a service"):
        GatewaySettings(tmp_path, {service: "127.0.0.1:8080"})


@pytest.mark.parametrize("run_directory", [Path("run"), Path("/run/sky ferry"), Path("/run/sky$ferry")])
def test_a_run_directory_of_odd_characters_is_refused(run_directory: Path) -> None:
    """Paths stand in HAProxy's language as well."""
    with pytest.raises(Refused, match="cannot be a run directory"):
        GatewaySettings(run_directory)


def test_openssl_reads_no_settings_of_strangers(tmp_path: Path) -> None:
    """The wheel's OpenSSL was built below /tmp and would look there, where any user of the host can write."""
    assert command(tmp_path)[:2] == ["env", "OPENSSL_CONF=/dev/null"]


DOCS = Path(__file__).parents[2] / "docs" / "gateway.md"


def test_the_docs_way_to_certificates_leaves_no_key_to_others(tmp_path: Path) -> None:
    """The recipe is run word for word, by a user whose files are readable by all unless told otherwise."""
    recipe = next(part for part in re.findall(r"```sh\n(.*?)```", DOCS.read_text(), re.DOTALL) if "gateway.pem" in part)
    subprocess.run(["bash", "-euc", f"umask 022\n{recipe}"], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    written = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert {"gateway.pem", "gateway.key", "ca.key", "flows.key"} <= written.keys()
    assert {name: oct(mode) for name, mode in written.items() if mode & 0o077} == {}


def test_every_path_is_in_the_docs() -> None:
    """What is served, and as what kind of request."""
    rows = {
        path: (method.strip(), kind.strip().split(":")[0])
        for paths, method, kind in re.findall(r"^\| (`/[^|]*) \| (\w+) \| ([^|]+) \|$", DOCS.read_text(), re.MULTILINE)
        for path in re.findall(r"`([^`]+)`", paths)
    }
    assert rows == dict(ROUTES)


def test_each_error_of_the_gateways_own_is_worded(tmp_path: Path) -> None:
    """As OpenAI's, for each status that HAProxy answers requests with that it could read."""
    write_configuration(GatewaySettings(tmp_path, {"chat": "127.0.0.1:8080"}))
    written = (tmp_path / "haproxy.cfg").read_text()
    for status in (400, 408, 413, 500, 501, 502, 503, 504):
        (body,) = re.findall(
            rf"^  http-error status {status} content-type application/json string '(.*)' hdr", written, re.MULTILINE
        )
        error = json.loads(body)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["code"] == status


def test_a_kind_that_is_nobodys_is_refused(tmp_path: Path) -> None:
    """A slip in the name of a service, or of a kind, would open every path."""
    services = {"search": "127.0.0.1:8080"}
    with pytest.raises(Refused, match="kinds says that 'serach' is of kind 'embedding'; name a service of search"):
        GatewaySettings(tmp_path, services, kinds={"serach": "embedding"})
    with pytest.raises(
        Refused, match=r"'search' is of kind 'embeddings'; .* one of chat, completion, embedding, rerank"
    ):
        GatewaySettings(tmp_path, services, kinds={"search": "embeddings"})  # pyright: ignore[reportArgumentType]
