"""What the embedded stack keeps of itself."""

import json
import socket
import stat
import subprocess
import sysconfig
from dataclasses import asdict
from pathlib import Path

import pytest
from filelock import FileLock

from blocks.errors import Refused
from blocks.local.processes import free_port
from deployments.local.settings import HOST, Home, StackSettings
from deployments.local.stack import Stack
from tests.stack.conftest import skyferry


def written_by_the_version_before(home: Home) -> dict[str, object]:
    """Its file, which others than its owner can read, and which names no key."""
    known = asdict(StackSettings.settle(home, free_port(), free_port()))
    del known["api_key"]
    (home.path / "stack.json").write_text(json.dumps(known))
    (home.path / "stack.json").chmod(0o644)
    return known


def test_each_stack_has_a_key_of_its_own(tmp_path: Path) -> None:
    """Made at its first start, kept over the next ones, and shown where nobody prints it by mistake."""
    home = Home(tmp_path / "one")
    first = StackSettings.settle(home, None, None)
    assert len(first.api_key) > 30
    assert StackSettings.settle(home, None, None).api_key == first.api_key
    assert StackSettings.settle(Home(tmp_path / "other"), None, None).api_key != first.api_key
    assert first.api_key not in repr(first)
    assert stat.S_IMODE((home.path / "stack.json").stat().st_mode) == 0o600


def test_a_stack_of_the_version_before_gets_a_key_at_its_next_start(tmp_path: Path) -> None:
    """It keeps its ports and the store's keys."""
    home = Home(tmp_path)
    known = written_by_the_version_before(home)
    before = StackSettings.read(home)
    assert before is not None
    assert before.api_key == ""
    settled = StackSettings.settle(home, None, None)
    assert len(settled.api_key) > 30
    assert known.items() <= asdict(settled).items()
    assert stat.S_IMODE((home.path / "stack.json").stat().st_mode) == 0o600


def test_a_stack_of_the_version_before_that_runs_is_named(tmp_path: Path) -> None:
    """Its servers go on asking nobody: `up` must not look as if it had closed them."""
    home = Home(tmp_path)
    written_by_the_version_before(home)
    settings = StackSettings.read(home)
    assert settings is not None
    worker = Stack(home, settings).parts[-1].daemon
    worker.start(["sleep", "infinity"], env={})
    try:
        refused = skyferry("up", "--data", str(tmp_path))
    finally:
        worker.stop()
    assert refused.exit_code == 1
    assert "answer anybody on this machine; run `skyferry down`, then `skyferry up`" in refused.output


@pytest.mark.parametrize("part", ["gateway", "object store"])
def test_a_port_that_somebody_has_is_refused_before_anything_starts(tmp_path: Path, part: str) -> None:
    """Of a part that is to be started beside others that run: with who has it, and what to do."""
    home = Home(tmp_path)
    stack = Stack(home, StackSettings.settle(home, None, None))
    settings = stack.settings
    port = settings.gateway_port if part == "gateway" else settings.store_ports.master_grpc
    with (
        socket.create_server((HOST, port)),
        pytest.raises(Refused, match=rf"{port} .*, which the {part} needs, is in use by process \d+ \(.*\); free it"),
    ):
        stack.up(lambda _: None)
    assert not stack.is_running()
    assert not home.env_file.exists()


def test_a_second_stack_takes_ports_of_its_own(tmp_path: Path) -> None:
    """Where another has the ports that it had, it gets others, if nobody has asked for these."""
    home = Home(tmp_path)
    had = StackSettings.settle(home, None, None)
    with socket.create_server((HOST, had.ui_port)), socket.create_server((HOST, had.gateway_port)):
        has = StackSettings.settle(home, None, None)
    assert not {has.ui_port, has.gateway_port} & {had.ui_port, had.gateway_port}
    assert has.store_ports == had.store_ports


def test_a_port_that_the_store_needs_is_named(tmp_path: Path) -> None:
    """It names its files by its ports: it can have no other."""
    home = Home(tmp_path)
    had = StackSettings.settle(home, None, None)
    with (
        socket.create_server((HOST, had.store_ports.filer)),
        pytest.raises(Refused, match=rf"port {had.store_ports.filer} .* is in use by .*, and the store in .* needs it"),
    ):
        StackSettings.settle(home, None, None)


@pytest.mark.server
def test_one_at_a_time_starts_or_ends_a_stack(tmp_path: Path) -> None:
    """Of two `up` at once one failed at what the other had just made, and a `down` beside an `up` left its half."""
    home = Home(tmp_path)
    worker = Stack(home, StackSettings.settle(home, None, None)).parts[-1].daemon
    worker.start(["sleep", "infinity"], env={})
    down = [f"{sysconfig.get_path('scripts')}/skyferry", "down", "--data", str(tmp_path)]
    try:
        with FileLock(home.lock_file):
            ending = subprocess.Popen(down, stdout=subprocess.PIPE, text=True)
            assert ending.stdout is not None
            assert "waiting for it" in ending.stdout.readline()
            assert worker.find() is not None
        assert ending.wait() == 0
        assert worker.find() is None
    finally:
        worker.stop()
