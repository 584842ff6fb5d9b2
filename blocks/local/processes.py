"""Processes on this machine that outlive whoever started them, found again by pid file or by a mark they carry.

Where they must not, `ended_with_this_process` keeps watch, by a process of its own: `python -m blocks.local.processes`
with a path.
"""

import errno
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from blocks.files import write_atomically

POLL_SECONDS = 0.05
KEEPER_GRACE_SECONDS = 2
"""Nobody needs any more what a keeper ends: it is not asked to undo anything."""
MARK = "SKYFERRY_DAEMON"
"""An environment variable that names the daemon's pid file; children inherit it."""


@dataclass(frozen=True)
class Daemon:
    """A process known by `home/name.pid`; what it prints goes to `home/name.log`."""

    name: str
    home: Path

    @property
    def pid_file(self) -> Path:
        return self.home / f"{self.name}.pid"

    @property
    def log_file(self) -> Path:
        return self.home / f"{self.name}.log"

    def find(self) -> psutil.Process | None:
        """The running process, also where its starter was killed before it could write the pid file."""
        try:
            known = json.loads(self.pid_file.read_text())
            process = psutil.Process(known["pid"])
            # A pid is used again after a while; together with the start time it names one process.
            if process.create_time() == known["created"] and process.status() != psutil.STATUS_ZOMBIE:
                return process
        except (FileNotFoundError, psutil.Error, ValueError, LookupError, TypeError):
            pass  # where the machine lost its power the file may be empty
        return min(marked(self.pid_file), key=lambda process: process.create_time(), default=None)

    def start(self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None) -> psutil.Process:
        """Run the command in a session of its own, with `env` on top of this environment; adopts a running one."""
        if (running := self.find()) is not None:
            return running
        self.home.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            child = subprocess.Popen(
                command,
                env={**os.environ, **env, MARK: str(self.pid_file)},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = psutil.Process(child.pid)
        write_atomically(self.pid_file, json.dumps({"pid": child.pid, "created": process.create_time()}))
        return process

    def stop(self, grace_seconds: float = 10) -> None:
        """SIGTERM, then SIGKILL after the grace time, for the process and its children; not running is no error."""
        if (process := self.find()) is not None:
            end([*_family(process)], grace_seconds)
        self.pid_file.unlink(missing_ok=True)

    def listens(self, port: int) -> bool:
        """Whether it runs and has that port: whoever else may answer there is not it."""
        process = self.find()
        return process is not None and any(port in _ports_of(member) for member in _family(process))

    def log_tail(self, lines: int = 20) -> str:
        if not self.log_file.exists():
            return ""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])


def marked(path: Path) -> Iterator[psutil.Process]:
    """Processes of this user, started as the daemon of that pid file, or of any pid file under that directory."""
    for process in psutil.process_iter():
        try:
            # Root can read everybody's, and anybody can write what they like into their own.
            mark = process.environ().get(MARK) if process.uids().real == os.getuid() else None
        except (psutil.Error, OSError):
            continue
        if mark is not None and Path(mark).is_relative_to(path) and process.status() != psutil.STATUS_ZOMBIE:
            yield process


@contextmanager
def ended_with_this_process(path: Path) -> Iterator[None]:
    """All that is started from here, or carries a mark below the path, ends with the block, or with this process.

    However that ends: a keeper in a session of its own, which no Ctrl-C reaches, waits for the end of a pipe, and the
    kernel closes that also where nobody else gets to do anything any more. What is started carries the mark, whoever
    starts it, and so do its children, whoever their parent is by then.
    """
    before = os.environ.get(MARK)
    keeper = subprocess.Popen(
        [sys.executable, "-m", "blocks.local.processes", str(path)],
        stdin=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != MARK},
        start_new_session=True,
    )
    os.environ[MARK] = str(path / "kept")
    try:
        yield
    finally:
        os.environ.pop(MARK, None)
        if before is not None:
            os.environ[MARK] = before
        keeper.communicate()


def _keep_watch(path: Path) -> None:
    """Once nobody holds the other end of standard input, end what carries a mark below the path, until nothing does."""
    sys.stdin.buffer.read()
    while left := [*marked(path)]:
        end(left, KEEPER_GRACE_SECONDS)


def end(processes: Sequence[psutil.Process], grace_seconds: float) -> None:
    """SIGTERM to each, SIGKILL to those that are still there after the grace time, and wait until all are gone."""
    for process in processes:
        _signal(process.terminate)
    alive = _alive_after(processes, grace_seconds)
    for process in alive:
        _signal(process.kill)
    _alive_after(alive, grace_seconds)


def _alive_after(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that have not ended by then; a zombie has, though some machines' init takes seconds to take it away."""
    deadline, alive = time.monotonic() + seconds, [*processes]
    while alive and time.monotonic() < deadline:
        _, alive = psutil.wait_procs(alive, timeout=POLL_SECONDS)
        alive = [process for process in alive if not _is_zombie(process)]
    return alive


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _family(process: psutil.Process) -> Iterator[psutil.Process]:
    yield process
    try:
        yield from process.children(recursive=True)
    except psutil.NoSuchProcess:
        return


def _ports_of(process: psutil.Process) -> set[int]:
    """Those that it listens on."""
    try:
        connections = process.net_connections("tcp")
    except psutil.Error:
        return set()
    return {found.laddr.port for found in connections if found.status == psutil.CONN_LISTEN}


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return


PORTS = range(10_000, 32_768)
"""Below those that outgoing connections are given: a server that is down for a moment finds its port still free."""


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on, and that is given to nobody else on this machine for a minute."""
    return next(port for port in iter(lambda: secrets.choice(PORTS), None) if reserve(host, port))


def reserve(host: str, port: int) -> bool:
    """Whether nobody had the port; it is then kept for a server for a minute, also when this process ends.

    What keeps it is a closed connection in TIME_WAIT. The kernel lets a server listen beside that, as servers set
    SO_REUSEADDR, and no second reservation, which does not.
    """
    with socket.socket() as listener, socket.socket() as client:
        try:
            listener.bind((host, port))
            # The connection inherits it; without, no server could have the port either.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.listen()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
        client.connect((host, port))
        accepted, _ = listener.accept()
        # Before the client: TIME_WAIT is on the side that closes first.
        accepted.close()
    return True


def is_free(host: str, port: int) -> bool:
    """Whether one could listen there at this moment."""
    try:
        socket.create_server((host, port)).close()
    except OSError:
        return False
    return True


def by_whom(port: int) -> str:
    """` by process …`, where this user may know who listens there; nothing where not. A mark says whose it is."""
    for process in psutil.process_iter():
        if port in _ports_of(process):
            try:
                mark = process.environ().get(MARK)
            except (psutil.Error, OSError):
                mark = None
            known_as = f", started as {Path(mark).with_suffix('')}" if mark else ""
            return f" by process {process.pid} ({process.name()}{known_as})"
    return ""


if __name__ == "__main__":
    _keep_watch(Path(sys.argv[1]))
