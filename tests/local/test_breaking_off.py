"""What is left of servers once whoever started them is broken off: nothing, in whatever way that was."""

import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from blocks.local.processes import marked
from tests.gateway.running import wait_until

pytestmark = pytest.mark.server
ROOT = Path(__file__).parents[2]
HOLDING = "tests/local/holding.py"
PATIENCE_SECONDS = 60


@contextmanager
def broken_off(command: list[str], home: Path, held: int) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a session of its own, once it holds so many processes; at the end none of them is left."""
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
        wait_until(
            "all has started",
            lambda: process.poll() is not None or len([*marked(home)]) >= held,
            PATIENCE_SECONDS,
        )
        assert process.poll() is None, "it ended by itself; above is why"
        family = psutil.Process(process.pid).children(recursive=True)
        yield process
        process.wait()
    wait_until("nothing is left", lambda: not [*marked(home)], PATIENCE_SECONDS)
    wait_until("no keeper is left", lambda: not any(map(runs, family)), PATIENCE_SECONDS)


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pytest_of(home: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", f"--basetemp={home}", "-p", "no:cacheprovider", *options, HOLDING]


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["pytest", "xdist's main process"])
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_pytest_leaves_nothing(tmp_path: Path, options: tuple[str, ...], by: signal.Signals) -> None:
    """The daemon and what was started without one, though no fixture gets to end them."""
    with broken_off(pytest_of(tmp_path / "base", *options), tmp_path / "base", 2) as process:
        process.send_signal(by)


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    """It goes to the whole group, and the fixtures do their work as ever."""
    with broken_off(pytest_of(tmp_path / "base", "-n", "1"), tmp_path / "base", 2) as process:
        os.killpg(process.pid, signal.SIGINT)


def test_a_killed_make_leaves_nothing(tmp_path: Path) -> None:
    """What make runs is told that make has gone."""
    arguments = " ".join(pytest_of(tmp_path / "base")[3:])
    command = ["make", "--no-print-directory", "--assume-old=install", "test", f"ARGS={arguments}"]
    with broken_off(command, tmp_path / "base", 2) as process:
        process.kill()


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_a_broken_off_demo_leaves_nothing(tmp_path_factory: pytest.TempPathFactory, by: signal.Signals) -> None:
    """With four servers about to start; in a short path, for the stack has sockets in it."""
    home = tmp_path_factory.mktemp("demo")
    demo = [f"{sysconfig.get_path('scripts')}/skyferry", "demo", "--data", str(home)]
    with broken_off(demo, home, 4) as process:
        process.send_signal(by)
