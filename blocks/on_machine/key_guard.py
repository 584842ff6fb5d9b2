"""Puts the key in front of every path of vLLM: its own check leaves open /invocations, /pause and many others.

And says so where vLLM ends: from SIGTERM on vLLM finishes what it has in flight, and answers each new request with HTTP
500 at once while its /health stays 200, so that a gateway that looks for the least busy replica would send it them all.

The file is sent to the machine beside `node.py`, and vLLM is told of it with `--middleware key_guard.KeyGuard`.
"""

import hmac
import json
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from types import FrameType
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

REFUSAL = {"error": {"message": "This replica answers its gateway only.", "type": "invalid_request_error", "code": 401}}
ENDS = {"error": {"message": "This replica ends; ask again.", "type": "server_error", "code": 503}}


class KeyGuard:
    """Lets through whoever has the key, and everybody's GET /health; from SIGTERM on, to its metrics alone."""

    def __init__(self, app: App, env: Mapping[str, str] = os.environ) -> None:
        self._app = app
        if not (key := env.get("VLLM_API_KEY")):
            raise RuntimeError("VLLM_API_KEY is not set, and without a key anybody would be let in; set it")
        self._wanted = f"Bearer {key}".encode()
        self._ends = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # the server's own start and end
            self._listen_for_the_end()
            await self._app(scope, receive, send)
        elif not self._may_pass(scope):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await _answer(send, 401, REFUSAL, (b"www-authenticate", b"Bearer"))
        elif self._ends and scope["type"] == "http" and scope["path"] != "/metrics":
            await _answer(send, 503, ENDS, (b"connection", b"close"))
        else:
            await self._app(scope, receive, send)

    def _listen_for_the_end(self) -> None:
        """Before whoever listens already: vLLM's event loop is woken by a descriptor, and hears of it all the same."""
        before = signal.getsignal(signal.SIGTERM)
        if not callable(before):
            return  # SIGTERM ends the process at once, and has to go on doing so

        def note(number: int, frame: FrameType | None) -> None:
            self._ends = True
            before(number, frame)

        signal.signal(signal.SIGTERM, note)

    def _may_pass(self, scope: Scope) -> bool:
        if scope["type"] == "http" and (scope["method"], scope["path"]) == ("GET", "/health"):
            return True
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._wanted)


async def _answer(send: Send, status: int, said: Mapping[str, Any], header: tuple[bytes, bytes]) -> None:
    await send(
        {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json"), header]}
    )
    await send({"type": "http.response.body", "body": json.dumps(said).encode()})
