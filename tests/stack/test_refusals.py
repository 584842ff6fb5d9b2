"""What the command line refuses before anything starts."""

import os
import socket
from pathlib import Path

import psutil
import pytest

from blocks.processes import free_port
from tests.stack.conftest import skyferry


@pytest.mark.parametrize("name", ["ui", "gateway"])
def test_a_port_in_use_is_named_with_its_option(tmp_path: Path, name: str) -> None:
    """And nothing is written or started."""
    data = tmp_path / "data"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = skyferry("up", "--data", str(data), f"--{name}-port", str(port))
    assert refused.exit_code == 1
    by = f"process {os.getpid()} ({psutil.Process().name()})"
    asked = f"port {port} on 127.0.0.1 is in use by {by}; free it, or choose another with --{name}-port"
    assert asked in refused.output
    assert not data.exists()


def test_one_port_for_two_is_refused(tmp_path: Path) -> None:
    """Before the second of the two finds it taken."""
    port = str(free_port())
    refused = skyferry("up", "--data", str(tmp_path / "data"), "--ui-port", port, "--gateway-port", port)
    assert refused.exit_code == 1
    assert f"--ui-port and --gateway-port are both {port}; choose another for one of them" in refused.output
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("port", ["0", "70000"])
def test_a_number_that_is_no_port_is_refused(tmp_path: Path, port: str) -> None:
    """As a wrong option, and nothing is written."""
    refused = skyferry("up", "--data", str(tmp_path / "data"), "--ui-port", port)
    assert refused.exit_code == 2
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("command", ["down", "status"])
def test_a_directory_without_a_stack_is_named(tmp_path: Path, command: str) -> None:
    """With what to do about it."""
    refused = skyferry(command, "--data", str(tmp_path))
    assert refused.exit_code == 1
    assert f"{tmp_path} holds no stack; name another with --data, or run `skyferry up`" in refused.output
