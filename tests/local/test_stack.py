"""How the embedded stack knows its own parts."""

from pathlib import Path

import pytest

from blocks.errors import Unavailable
from blocks.processes import free_port
from deployments.gateway.config import GatewaySettings, write_configuration
from deployments.local.seaweed import Ports
from deployments.local.settings import SERVICE, Home, StackSettings
from deployments.local.stack import Stack, wait_until_healthy
from tests.servers import canned_server


@pytest.mark.server
def test_a_stranger_is_no_part(tmp_path: Path) -> None:
    """Where a stranger has the gateway's port, `up` fails with HAProxy's words, though the address answers."""
    with canned_server(200) as stranger:
        gateway_port = int(stranger.address.rpartition(":")[2])
        stack = Stack(Home(tmp_path), StackSettings(free_port(), gateway_port, free_port(), Ports.free()))
        write_configuration(GatewaySettings(stack.home.gateway, services={SERVICE: stranger.address}))
        (gateway,) = (part for part in stack.parts if part.title == "gateway")
        gateway.daemon.start(gateway.command, env={})
        with pytest.raises(Unavailable, match=r"the gateway died as it started(?s:.*)cannot bind socket"):
            wait_until_healthy(gateway)
