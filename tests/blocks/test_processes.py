"""What this machine's processes are told of its ports."""

import socket

from blocks.processes import free_port, is_free, reserve

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
