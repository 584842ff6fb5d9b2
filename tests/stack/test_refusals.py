"""What the command line refuses before anything starts."""

import os
import socket
import subprocess
import sysconfig
from pathlib import Path

import psutil
import pytest

from blocks.local.processes import free_port
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
    assert not (data / "stack.json").exists()


def test_one_port_for_two_is_refused(tmp_path: Path) -> None:
    """Before the second of the two finds it taken."""
    port = str(free_port())
    refused = skyferry("up", "--data", str(tmp_path / "data"), "--ui-port", port, "--gateway-port", port)
    assert refused.exit_code == 1
    assert f"--ui-port and --gateway-port are both {port}; choose another for one of them" in refused.output
    assert not (tmp_path / "data" / "stack.json").exists()


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


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
@pytest.mark.parametrize("command", ["up", "down", "status", "demo"])
@pytest.mark.parametrize("given", ["", "stack.json", "env", "run"])
def test_what_another_user_made_is_refused(tmp_path: Path, command: str, given: str) -> None:
    """Whoever can write there would say what runs, and get the keys; this one's shell reads `env`."""
    data = tmp_path / "data"
    data.mkdir()
    path = data / given
    path.touch()
    os.chown(path, 65534, 65534)
    refused = skyferry(command, "--data", str(data))
    assert refused.exit_code == 1
    assert f"{path} belongs to the user" in refused.output
    assert "name a directory of your own with --data" in refused.output


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    """With the command that changes it."""
    data = tmp_path / "da ta"
    data.mkdir()
    data.chmod(0o777)
    refused = skyferry("up", "--data", str(data))
    assert refused.exit_code == 1
    assert f"others may write to {data}; if all in it is yours, run: chmod go-w '{data}'" in refused.output
    assert not list(data.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"store_ports": {}}', '{"of": "a later version"}', "\0"])
@pytest.mark.parametrize("command", ["up", "down", "status"])
def test_settings_that_nobody_understands_are_named(tmp_path: Path, command: str, text: str) -> None:
    """In words, and nothing is written over them: the keys to the data were in there."""
    tmp_path.chmod(0o700)
    (tmp_path / "stack.json").write_text(text)
    refused = skyferry(command, "--data", str(tmp_path))
    assert refused.exit_code == 1
    assert f"{tmp_path / 'stack.json'} cannot be understood" in refused.output
    assert (tmp_path / "stack.json").read_text() == text


def test_a_place_that_is_no_directory_is_named(tmp_path: Path) -> None:
    """As where it cannot be written."""
    (tmp_path / "file").touch()
    refused = skyferry("up", "--data", str(tmp_path / "file" / "data"))
    assert refused.exit_code == 1
    assert "cannot be written (Not a directory)" in refused.output


def test_a_disk_without_room_is_named(tmp_path: Path) -> None:
    """In words; here no file may have a byte."""
    command = f"ulimit -f 0; exec {sysconfig.get_path('scripts')}/skyferry up --data {tmp_path / 'data'}"
    said = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert f"{tmp_path / 'data'} cannot be written (File too large); make it this user's, make room" in said.stdout
    assert "Traceback" not in said.stdout + said.stderr
