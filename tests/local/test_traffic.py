"""The load generator counts exactly what a server did to it."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle, islice
from pathlib import Path
from random import Random
from threading import Event, Lock, Thread
from typing import Any, Literal

import pytest
import stamina

from blocks.local.processes import free_port
from deployments.local.traffic import Request, percentiles, requests

Manner = Literal["answer", "answer-last", "fail", "refuse", "hang-up", "cut", "end-early", "abort", "no-completion"]


@dataclass
class Service:
    """An endpoint that treats its requests in turn as it is told to, and counts."""

    manners: Iterator[Manner]
    port: int = 0
    done: Counter[tuple[Manner, bool]] = field(default_factory=Counter)
    """Requests by what was done to them, and whether they asked for a stream."""
    failed_users: set[str] = field(default_factory=set)
    users: set[str] = field(default_factory=set)
    prompts: list[str] = field(default_factory=list)
    release: Event = field(default_factory=Event)
    """Set, it lets those go that are answered last."""
    lock: Lock = field(default_factory=Lock)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: Service

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        user = self.headers["x-user-id"]
        with self.service.lock:
            manner = next(self.service.manners)
            self.service.done[manner, asked["stream"]] += 1
            self.service.users.add(user)
            self.service.prompts.append(asked["messages"][0]["content"])
            if not manner.startswith("answer"):
                self.service.failed_users.add(user)
        if manner == "answer-last":
            self.service.release.wait(20)
        if manner == "hang-up":
            self.close_connection = True
        elif manner in ("fail", "refuse"):
            self.reply(502 if manner == "fail" else 400, {"error": {"message": "no"}})
        elif asked["stream"]:
            self.stream(manner)
        elif manner == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices"')
            self.close_connection = True
        elif manner.startswith("answer"):
            self.reply(200, {"choices": [{"message": {"content": "hello"}, "finish_reason": "length"}]})
        else:
            self.reply(200, {})

    def reply(self, status: int, body: dict[str, Any]) -> None:
        encoded = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def stream(self, manner: Manner) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.event(json.dumps({"choices": [{"delta": {"role": "assistant", "content": None}, "finish_reason": None}]}))
        self.event(json.dumps({"choices": [{"delta": {"content": "hello"}, "finish_reason": None}]}))
        if manner == "cut":
            self.close_connection = True
            return
        if manner.startswith("answer"):
            self.event(json.dumps({"choices": [{"delta": {}, "finish_reason": "length"}]}))
            self.event("[DONE]")
        elif manner == "abort":
            self.event(json.dumps({"choices": [{"delta": {}, "finish_reason": "abort"}]}))
        self.wfile.write(b"0\r\n\r\n")

    def event(self, data: str) -> None:
        encoded = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(encoded), encoded))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        """Say nothing."""


class Server(ThreadingHTTPServer):
    request_queue_size = 128


@contextmanager
def serving(*manners: Manner) -> Iterator[Service]:
    service = Service(cycle(manners))
    handler = type("Bound", (Handler,), {"service": service})
    with Server(("127.0.0.1", 0), handler) as server:
        service.port = server.server_port
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield service
        finally:
            service.release.set()
            server.shutdown()


@dataclass
class Users:
    process: subprocess.Popen[bytes]
    report: Path

    def wait_for(self, name: str, at_least: int) -> None:
        for attempt in stamina.retry_context(
            on=(AssertionError, FileNotFoundError), attempts=None, timeout=30, wait_max=0.1
        ):
            with attempt:
                assert json.loads(self.report.read_text())[name] >= at_least

    def end(self) -> dict[str, Any]:
        self.process.terminate()
        assert self.process.wait(timeout=40) == 0
        return json.loads(self.report.read_text())


@contextmanager
def users_of(port: int, report: Path, *options: str, rate: float = 200) -> Iterator[Users]:
    command = [sys.executable, "-m", "deployments.local.traffic", "--url", f"http://127.0.0.1:{port}/v1"]
    with subprocess.Popen([*command, "--rate", str(rate), "--report", str(report), *options]) as process:
        try:
            yield Users(process, report)
        finally:
            process.kill()


ALL_MANNERS: tuple[Manner, ...] = (
    *("answer", "fail", "answer", "refuse", "hang-up"),
    *("cut", "answer", "end-early", "abort", "no-completion", "answer"),
)


@pytest.mark.server
def test_counts_are_exact(tmp_path: Path) -> None:
    """Each request is counted once, as what became of it, plain ones and streams apart."""
    half_long = ("--long-share", "0.5")  # those are plain
    with serving(*ALL_MANNERS) as service, users_of(service.port, tmp_path / "report.json", *half_long) as users:
        users.wait_for("sent", 300)
        report = users.end()
    done = service.done
    plain_losses: tuple[Manner, ...] = ("cut", "end-early", "abort", "no-completion")
    cuts = sum(done[manner, True] for manner in plain_losses)
    answered = done["answer", False] + done["answer", True]
    lost = sum(done[manner, streamed] for manner in ("fail", "hang-up") for streamed in (False, True))
    assert min(done.values()) > 0
    assert len(done) == 2 * len({*ALL_MANNERS})
    assert report["sent"] == done.total()
    assert report["answered"] == answered
    assert report["refused"] == done["refuse", False] + done["refuse", True]
    assert report["streams_cut"] == cuts
    assert report["streams_started"] == cuts + done["answer", True]
    assert report["lost"] == lost + sum(done[manner, False] for manner in plain_losses)
    assert report["in_flight"] == 0
    assert report["users"] == len(service.users)
    assert report["users_who_saw_a_failure"] == len(service.failed_users)
    assert 0 < report["first_token_ms"]["p50"] <= report["total_ms"]["p99"]


@pytest.mark.server
def test_failures_are_told_without_prompts(tmp_path: Path) -> None:
    """The last fifty are kept, with time and status; no prompt is in the report."""
    with serving("fail") as service, users_of(service.port, tmp_path / "report.json") as users:
        users.wait_for("sent", 60)
        report = users.end()
    assert len(report["failures"]) == 50
    assert {failure["status"] for failure in report["failures"]} == {502}
    assert {failure["message"] for failure in report["failures"]} == {"Bad Gateway"}
    assert abs(report["failures"][-1]["at"] - time.time()) < 60
    assert not any(prompt in json.dumps(report) for prompt in service.prompts)


@pytest.mark.server
def test_no_connection_is_a_loss(tmp_path: Path) -> None:
    """Where nobody listens every request is lost, and the generator goes on."""
    with users_of(free_port(), tmp_path / "report.json") as users:
        users.wait_for("lost", 50)
        report = users.end()
    assert report["lost"] == report["sent"]
    assert report["failures"][0]["status"] is None
    assert report["total_ms"] == {"p50": None, "p95": None, "p99": None}


@pytest.mark.server
def test_the_loop_is_open_and_the_end_waits(tmp_path: Path) -> None:
    """A service that answers nothing is asked no less, and what is in flight at the end is still waited for."""
    with serving("answer-last") as service, users_of(service.port, tmp_path / "report.json", rate=100) as users:
        users.wait_for("in_flight", 110)
        users.process.send_signal(signal.SIGTERM)
        service.release.set()
        report = users.end()
    assert report["sent"] == report["answered"] == service.done.total()


def drawn(seed: int, long_share: float) -> list[Request]:
    random = Random(seed)  # noqa: S311 - it makes up users, not secrets
    return [*islice(requests(random, users=5, long_share=long_share, long_tokens=300), 50)]


def test_the_same_seed_makes_the_same_requests() -> None:
    """Two runs of one seed are alike, and another seed's is not."""
    assert drawn(1, long_share=0.5) == drawn(1, long_share=0.5) != drawn(2, long_share=0.5)


def test_prompts_are_as_long_as_asked() -> None:
    """Short ones are a question; long ones ask it about one document of the words that were asked for."""
    short = {request.prompt for request in drawn(1, long_share=0)}
    assert {len(prompt.split()) for prompt in short} == {5, 6, 7}
    documents = {request.prompt.partition(" Tell me about ")[0] for request in drawn(1, long_share=1)}
    (document,) = documents
    assert len(document.removeprefix("Read this: ").split()) == 300


def test_percentiles_are_of_what_was_seen() -> None:
    """The nearest rank is a value that occurred; nothing seen is None, not zero."""
    assert percentiles([float(number) for number in range(101)]) == {"p50": 50, "p95": 95, "p99": 99}
    assert percentiles([7]) == {"p50": 7, "p95": 7, "p99": 7}
    assert percentiles([]) == {"p50": None, "p95": None, "p99": None}
