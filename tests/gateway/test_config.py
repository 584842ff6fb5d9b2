"""How the gateway's configuration is written, and what it refuses."""

from pathlib import Path

import pytest

from blocks.errors import Refused
from deployments.gateway.config import GatewaySettings, check_configuration, command, write_configuration


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
