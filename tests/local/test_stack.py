"""How the embedded stack knows its own parts."""

from pathlib import Path

import pytest

from blocks.errors import Unavailable
from blocks.local.processes import free_port
from deployments.haproxy.config import GatewaySettings, write_configuration
from deployments.local.seaweed import Ports, SeaweedFS
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


def test_a_name_in_tmp_that_somebody_has_keeps_no_store_from_starting(tmp_path: Path) -> None:
    """Sockets that it cannot do without are in its own directory, and `down` leaves alone what is not its own."""
    store = SeaweedFS(tmp_path, Ports.free(), "id", "key")
    taken = Path(f"/tmp/seaweedfs-filer-{store.ports.filer}.sock")  # noqa: S108 - SeaweedFS chose it
    taken.mkdir()
    try:
        store.remove_sockets()
        assert taken.is_dir()
    finally:
        taken.rmdir()
    assert {"-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock", f"--chdir={tmp_path}"} < {*store.command()}


def test_workers_keep_nothing_in_tmp(tmp_path: Path) -> None:
    """Prefect's `runner_storage` there belongs to whichever user came first, and the others' workers die of it."""
    stack = Stack(Home(tmp_path), StackSettings(free_port(), free_port(), free_port(), Ports.free()))
    workers = [part for part in stack.parts if part.port is None]
    assert [part.env["TMPDIR"] for part in workers] == [str(tmp_path / "tmp")] * 2
