"""What this machine's processes are told of its ports, and which of them are known as a daemon."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from blocks.local.processes import MARK, Daemon, end, free_port, is_free, reserve

HOST = "127.0.0.1"


def test_a_port_is_given_to_one_caller_only() -> None:
    """Whoever else draws it gets another, before the first one's server listens there, while it does, and after."""
    port = free_port()
    assert not reserve(HOST, port)
    with socket.create_server((HOST, port)):
        assert not reserve(HOST, port)
    assert not reserve(HOST, port)


def test_a_port_that_somebody_has_is_not_given() -> None:
    """Also where they share it with whoever asks."""
    with socket.create_server((HOST, 0), reuse_port=True) as taken:
        assert not reserve(HOST, taken.getsockname()[1])


def test_nobody_answers_at_a_port_that_was_given() -> None:
    """It is free for its server, and until then whoever calls there is told that nobody listens."""
    port = free_port()
    assert is_free(HOST, port)
    with socket.socket() as caller:
        assert caller.connect_ex((HOST, port)) != 0


NOBODY = 65534


@pytest.mark.skipif(os.getuid() != 0, reason="only root can read what another user's processes carry")
def test_another_user_cannot_pass_for_a_daemon(tmp_path: Path) -> None:
    """Whoever may write into their own environment would get the daemon's port, and the keys sent there."""
    daemon = Daemon("server", tmp_path)
    mark = {MARK: str(daemon.pid_file)}
    with subprocess.Popen(["/bin/sleep", "infinity"], env=mark, user=NOBODY, cwd="/") as stranger:
        try:
            assert daemon.find() is None
        finally:
            stranger.kill()


@pytest.mark.parametrize("left", ["", "\0\0\0\0", "[]", "{}", '{"pid": "x", "created": 1}', "17"])
def test_a_pid_file_that_says_nothing_is_none(tmp_path: Path, left: str) -> None:
    """As a machine leaves it that lost its power: the process is still known by the mark that it carries."""
    daemon = Daemon("server", tmp_path)
    daemon.pid_file.write_text(left)
    assert daemon.find() is None
    begun = daemon.start(["sleep", "infinity"], env={})
    try:
        daemon.pid_file.write_text(left)
        assert daemon.find() == begun
    finally:
        end([begun], 1)
