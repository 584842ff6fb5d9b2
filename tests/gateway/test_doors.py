"""What gets through the gateway, from users to replicas and back, and what it answers itself."""

import json
import socket
import time
from pathlib import Path

import pytest

from deployments.haproxy.config import ROUTES
from tests.gateway.replica import Replica
from tests.gateway.running import RunningGateway, running_gateway

pytestmark = pytest.mark.server

BODY = b'{"choices":"none"}'
GOOD = "POST /v1/chat/completions HTTP/1.1"


def say(gateway: RunningGateway, *parts: bytes | float) -> bytes:
    """Word for word, with pauses in seconds; what came back until the gateway closed or had nothing more to say."""
    host, port = gateway.settings.services["chat"].split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.settimeout(5)
        for part in parts:
            if isinstance(part, bytes):
                connection.sendall(part)
            else:
                time.sleep(part)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def request(line: str, *headers: str, body: bytes = BODY) -> bytes:
    head = [line, "host: chat", "connection: close", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def answered(said: bytes) -> tuple[int, dict[str, str], object]:
    head, _, body = said.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, json.loads(body) if body else None


def assert_own_error(said: bytes, status: int) -> dict[str, str]:
    code, headers, body = answered(said)
    assert (code, headers["content-type"]) == (status, "application/json")
    assert isinstance(body, dict)
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert (body["error"]["type"], body["error"]["code"]) == ("invalid_request_error", status)
    assert not [name for name in headers if "skyferry" in name]
    return headers


@pytest.mark.parametrize(("path", "route"), ROUTES.items())
def test_what_is_served_reaches_a_replica(gateway: RunningGateway, path: str, route: tuple[str, str]) -> None:
    """By its one method, and the log knows what kind of request it was."""
    method, kind = route
    start = gateway.cursor()
    answer = gateway.users.request(method, gateway.url(path=path), content=BODY)
    assert answer.status_code == 200
    (outcome,) = gateway.outcomes(start, 1)
    assert (outcome.slot, outcome.kind) == ("blue", kind)
    wrong = gateway.users.request("GET" if method == "POST" else "POST", gateway.url(path=path))
    assert (wrong.status_code, wrong.headers["allow"]) == (405, method)


ODD = [
    "POST //v1/chat/completions HTTP/1.1",
    "POST /v1//chat/completions HTTP/1.1",
    "POST /v1/chat/completions/ HTTP/1.1",
    "POST /v1/chat%2fcompletions HTTP/1.1",
    "POST /v1/chat/completion%73 HTTP/1.1",
    "POST /v1/./chat/completions HTTP/1.1",
    "POST /v1/x/../chat/completions HTTP/1.1",
    "POST /v1/chat/completions;x=1 HTTP/1.1",
    "POST /V1/Chat/Completions HTTP/1.1",
    "POST /v1/chat/completions%00 HTTP/1.1",
    "POST /v1/chat/completions\\ HTTP/1.1",
    "POST /v1/chat/completions/batch HTTP/1.1",
    "POST /invocations HTTP/1.1",
    "POST /tokenize HTTP/1.1",
    "GET /metrics HTTP/1.1",
    "GET /health HTTP/1.1",
    "GET / HTTP/1.1",
    "POST * HTTP/1.1",
    "OPTIONS * HTTP/1.1",
    "POST http://chat HTTP/1.1",
]


def test_what_is_not_served_reaches_nobody(gateway: RunningGateway, blue: Replica) -> None:
    """It gets a 404 as OpenAI words it, which is in no slot's log; odd spellings of what is served are among it."""
    start = gateway.cursor()
    for line in ODD:
        assert_own_error(say(gateway, request(line)), 404)
    gateway.ask()
    assert len(gateway.outcomes(start, 1)) == 1
    assert blue.asked == [GOOD]


@pytest.mark.parametrize("method", ["OPTIONS", "HEAD", "GET", "PUT", "DELETE", "PATCH", "TRACE", "post", "BREW"])
def test_other_methods_reach_nobody(gateway: RunningGateway, blue: Replica, method: str) -> None:
    """They get a 405, preflights among them: whoever wants browsers to call puts in front what says so."""
    start = gateway.cursor()
    said = say(gateway, request(f"{method} /v1/chat/completions HTTP/1.1", "origin: https://x.example"))
    if method == "HEAD":
        code, headers, _ = answered(said)
        assert code == 405
    else:
        headers = assert_own_error(said, 405)
    assert headers["allow"] == "post"
    assert not [name for name in headers if name.startswith("access-control")]
    gateway.ask()
    assert len(gateway.outcomes(start, 1)) == 1
    assert blue.asked == [GOOD]


@pytest.mark.parametrize(
    "target", ["/v1/chat/completions?api-version=1&x=/v1/models", "http://chat/v1/chat/completions?x=1"]
)
def test_a_replica_gets_the_path_alone(gateway: RunningGateway, blue: Replica, target: str) -> None:
    """Whatever of a query or a host stood in the target."""
    code, _, _ = answered(say(gateway, request(f"POST {target} HTTP/1.1")))
    assert code == 200
    assert blue.asked == [GOOD]


USERS = {
    "authorization": "Bearer users-own",
    "accept": "text/event-stream",
    "content-type": "application/json",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "anthropic-version": "2023-06-01",
    **dict.fromkeys(
        [
            *(
                "cookie",
                "x-user-id",
                "x-api-key",
                "api-key",
                "x-goog-api-key",
                "proxy-authorization",
                "accept-encoding",
            ),
            *("x-forwarded-for", "forwarded", "x-request-id", "baggage", "user-agent", "origin", "referer", "te"),
            *("openai-organization", "x-stainless-retry-count", "x-skyferry-hop", "x-skyferry-unanswered"),
            *("content-typex", "xaccept", "accept-", "x-Cookie", "content-encoding", "sec-fetch-site"),
        ],
        "0",
    ),
}
WANTED = {"host", "content-length", "content-type", "accept", "accept-encoding", "traceparent", "anthropic-version"}


@pytest.mark.parametrize("key", [None, "the-slots"])
def test_a_replica_gets_what_it_needs_and_no_more(gateway: RunningGateway, blue: Replica, key: str | None) -> None:
    """With a key of its slot and without: who the user is stays in the house."""
    gateway.by_socket.set_key("chat", "blue", key)
    say(gateway, request(GOOD, *(f"{name}: {value}" for name, value in USERS.items())))
    (seen,) = blue.seen
    assert seen.keys() == {*WANTED, "authorization"}
    assert seen["authorization"] == ("Bearer the-slots" if key else "Bearer users-own")
    assert seen["accept-encoding"] == "identity"


def test_a_user_gets_of_a_replicas_headers_what_an_answer_needs(gateway: RunningGateway) -> None:
    """Neither cookies nor rules for browsers come from a rented machine."""
    odd = ["set-cookie", "strict-transport-security", "access-control-allow-origin", "server", "x-skyferry-unanswered"]
    odd += ["alt-svc", "x-skyferry-x", "location", "www-authenticate", "link", "refresh", "x-request-id", "via"]
    headers = {**dict.fromkeys(odd, "1"), "retry-after": "7"}
    answer = gateway.ask(pieces=["{}"], type="application/json", answer_headers=headers)
    assert dict(answer.headers) == {
        "content-length": "2",
        "content-type": "application/json",
        "retry-after": "7",
        "x-content-type-options": "nosniff",
    }


@pytest.mark.parametrize(
    ("said", "got"),
    [
        ("text/html; charset=utf-8", "application/octet-stream"),
        ("image/svg+xml", "application/octet-stream"),
        ("application/json, text/html", "application/octet-stream"),
        ("", "application/octet-stream"),
        ("audio/mpeg", "audio/mpeg"),
        ("text/event-stream; charset=utf-8", "text/event-stream; charset=utf-8"),
    ],
)
def test_no_browser_runs_what_a_replica_says(gateway: RunningGateway, said: str, got: str) -> None:
    """A page from a rented machine would act in the name of the service."""
    assert gateway.ask(pieces=["<script>"], type=said).headers["content-type"] == got


def test_a_switch_to_another_protocol_does_not_happen(gateway: RunningGateway, blue: Replica) -> None:
    """Neither asked for by a user nor said by a replica."""
    key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="
    line = GOOD.replace("POST", "GET")
    said = say(
        gateway, f"{line}\r\nhost: chat\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n{key}\r\n\r\n".encode()
    )
    assert_own_error(said, 405)
    assert blue.asked == []


@pytest.mark.parametrize("head", ["content-length: 5", "transfer-encoding: chunked"])
def test_a_request_that_does_not_arrive_is_told_so(tmp_path: Path, head: str) -> None:
    """In JSON, and it is no slot's: nobody was asked."""
    with running_gateway(tmp_path / "run", request_seconds=0.3) as gateway:
        start = gateway.cursor()
        assert_own_error(say(gateway, f"{GOOD}\r\nhost: chat\r\n{head}\r\n\r\n".encode()), 408)
        (outcome,) = gateway.outcomes(start, 1)
        assert outcome.slot is None


def test_a_long_request_that_turns_out_to_be_none_is_no_slots(gateway: RunningGateway) -> None:
    """Its head and 256 KiB of it had reached a replica, when what followed was no HTTP."""
    start = gateway.cursor()
    head = f"{GOOD}\r\nhost: chat\r\ntransfer-encoding: chunked\r\n\r\n4b000\r\n".encode()
    assert_own_error(say(gateway, head + b"x" * 0x4B000 + b"\r\n", 0.2, b"no chunk\r\n"), 400)
    (outcome,) = gateway.outcomes(start, 1)
    assert (outcome.slot, outcome.status) == (None, 400)
