"""Who gets past the key in front of vLLM."""

import asyncio
import signal
from typing import Any

import pytest

from blocks.on_machine.key_guard import KeyGuard, Receive, Scope, Send

KEY = "k" * 64


async def engine(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001 - what ASGI calls
    await send({"type": "engine"})


def answer(scope: dict[str, Any], *authorization: str) -> list[dict[str, Any]]:
    sent: list[Any] = []

    async def receive() -> Scope:
        return {"type": "http.request"}

    async def send(message: Scope) -> None:
        sent.append(message)

    headers = [(b"authorization", value.encode()) for value in authorization]
    asyncio.run(KeyGuard(engine, {"VLLM_API_KEY": KEY})({"headers": headers, **scope}, receive, send))
    return sent


def request(method: str, path: str) -> dict[str, Any]:
    return {"type": "http", "method": method, "path": path}


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/invocations", "/pause", "/metrics", "/", "/health/../pause"]
)
@pytest.mark.parametrize("given", [(), ("Bearer wrong",), (KEY,), (f"Bearer {KEY}", f"Bearer {KEY}")])
def test_no_path_opens_without_the_key(path: str, given: tuple[str, ...]) -> None:
    """Not those that vLLM leaves open either; the refusal is OpenAI's, and says nothing of the key."""
    start, body = answer(request("POST", path), *given)
    assert start["status"] == 401
    assert KEY.encode() not in body["body"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/invocations", "/metrics"])
def test_every_path_opens_with_the_key(path: str) -> None:
    """The gateway and the flows have it."""
    assert answer(request("POST", path), f"Bearer {KEY}") == [{"type": "engine"}]


def test_health_needs_no_key() -> None:
    """The gateway asks for it twice a second and has nothing to hide; what changes something does need one."""
    assert answer(request("GET", "/health")) == [{"type": "engine"}]
    assert answer(request("POST", "/health"))[0]["status"] == 401


def test_sockets_need_the_key_as_well() -> None:
    """A websocket is closed before it opens."""
    assert answer({"type": "websocket", "path": "/v1/realtime"}) == [{"type": "websocket.close", "code": 1008}]
    assert answer({"type": "websocket", "path": "/v1/realtime"}, f"Bearer {KEY}") == [{"type": "engine"}]


def test_the_servers_own_start_passes() -> None:
    """Lifespan messages come from the server and carry no headers."""
    assert answer({"type": "lifespan"}) == [{"type": "engine"}]


@pytest.mark.parametrize("env", [{}, {"VLLM_API_KEY": ""}])
def test_without_a_key_nothing_starts(env: dict[str, str]) -> None:
    """An empty key would let anybody in."""
    with pytest.raises(RuntimeError, match="VLLM_API_KEY is not set"):
        KeyGuard(engine, env)


def test_from_sigterm_on_it_says_that_it_ends() -> None:
    """Its health is 503, new requests too, and its metrics are open: whoever stops it sees what it still answers."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    sent: list[Any] = []

    async def send(message: Scope) -> None:
        sent.append(message)

    async def receive() -> Scope:
        return {"type": "lifespan.startup"}

    async def through_its_life() -> None:
        guard = KeyGuard(engine, {"VLLM_API_KEY": KEY})
        await guard({"type": "lifespan"}, receive, send)
        asked = [request("GET", "/health"), request("POST", "/v1/chat/completions"), request("GET", "/metrics")]
        key = {"headers": [(b"authorization", f"Bearer {KEY}".encode())]}
        for scope in asked:
            await guard({**scope, **key}, receive, send)
        signal.raise_signal(signal.SIGTERM)
        for scope in asked:
            await guard({**scope, **key}, receive, send)

    try:
        asyncio.run(through_its_life())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert sent[:4] == [{"type": "engine"}] * 4
    assert [message["status"] for message in sent[4:] if "status" in message] == [503, 503]
    assert sent[-1] == {"type": "engine"}
    assert heard == [signal.SIGTERM]
