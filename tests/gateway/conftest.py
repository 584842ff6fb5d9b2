"""A gateway with one replica up in each slot."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.replica import Replica
from tests.gateway.running import RunningGateway, running_gateway, wait_until


@pytest.fixture
def blue() -> Iterator[Replica]:
    with Replica("blue") as replica:
        yield replica


@pytest.fixture
def green() -> Iterator[Replica]:
    with Replica("green") as replica:
        yield replica


@pytest.fixture
def gateway(tmp_path: Path, blue: Replica, green: Replica) -> Iterator[RunningGateway]:
    """With one replica up in each slot, and all traffic on blue."""
    with running_gateway(tmp_path / "run") as running:
        # Both before either is waited for: a gateway takes half a second to its first look at a replica.
        running.by_socket.attach("chat", "blue", blue.address, is_tls=False)
        running.by_socket.attach("chat", "green", green.address, is_tls=False)
        for slot, replica in (("blue", blue), ("green", green)):
            wait_until(f"{replica.name} is up", lambda at=(slot, replica.address, "up"): at in running.servers())
        yield running
