"""Puts the key in front of every path of vLLM: its own check leaves open /invocations, /pause and many others.

The file is sent to the machine beside `node.py`, and vLLM is told of it with `--middleware key_guard.KeyGuard`.
"""

import hmac
import json
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

REFUSAL = {"error": {"message": "This replica answers its gateway only.", "type": "invalid_request_error", "code": 401}}


class KeyGuard:
    """Lets through whoever has the key, and everybody's GET /health."""

    def __init__(self, app: App, env: Mapping[str, str] = os.environ) -> None:
        self._app = app
        if not (key := env.get("VLLM_API_KEY")):
            raise RuntimeError("VLLM_API_KEY is not set, and without a key anybody would be let in; set it")
        self._wanted = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._may_pass(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": json.dumps(REFUSAL).encode()})

    def _may_pass(self, scope: Scope) -> bool:
        if scope["type"] == "lifespan":  # the server's own start and end
            return True
        if scope["type"] == "http" and (scope["method"], scope["path"]) == ("GET", "/health"):
            return True
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._wanted)
