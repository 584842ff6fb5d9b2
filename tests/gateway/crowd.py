"""Users of a chat model as they are: most of them chat, and some send what it cannot answer, or send it oddly."""

import itertools
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Self

import httpx

from tests.gateway.running import wait_until

CHAT = "/v1/chat/completions"
ASKS = {"messages": [{"role": "user", "content": "Hello?"}]}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}


class Crowd:
    """They ask again and again, each in their own way, while the `with` block runs; what each got is counted."""

    def __init__(self, url: str, chatters: int = 6) -> None:
        self.got: Counter[tuple[str, int | str]] = Counter()
        """How often each way was answered by each status."""
        self._host, self._port = url.split("//")[1].split("/", maxsplit=1)[0].split(":")
        self._base = f"http://{self._host}:{self._port}"
        self._over = threading.Event()
        self._names = itertools.count()
        self._strays = itertools.cycle(("/", "/favicon.ico", "/health", "/metrics", "/v1/chat/completions/"))
        odd: dict[str, tuple[Callable[[httpx.Client], int], float]] = {
            "embedding": (self._embed, 0.15),
            "image": (self._show, 0.15),
            "ping": (self._ping, 0.15),
            "preflight": (self._preflight, 0.05),
            "model list": (self._list, 0.05),
            "nowhere": (self._stray, 0.1),
            "retry": (self._retry, 0.1),
            "slow upload": (self._upload, 0.1),
        }
        ways = [("chat", self._chat, 0.0)] * chatters + [(name, act, pause) for name, (act, pause) in odd.items()]
        self._threads = [threading.Thread(target=self._use, args=way) for way in ways]

    def _use(self, name: str, act: Callable[[httpx.Client], int], pause: float) -> None:
        with httpx.Client(base_url=self._base, timeout=20) as client:
            while not self._over.is_set():
                try:
                    got = act(client)
                except httpx.HTTPError as error:
                    got = repr(error)
                self.got[name, got] += 1
                self._over.wait(pause)

    def _post(
        self, client: httpx.Client, asked: Mapping[str, object], *, user: str | None = None, repeat: int | None = None
    ) -> int:
        headers = {
            "content-type": "application/json",
            **({"x-user-id": user} if user else {}),
            **({} if repeat is None else {"x-stainless-retry-count": str(repeat)}),
        }
        return client.post(CHAT, content=json.dumps(asked), headers=headers).status_code

    def _chat(self, client: httpx.Client) -> int:
        """Each time as another user, of whom half watch their answer come."""
        number = next(self._names)
        return self._post(client, {**ASKS, "stream": number % 2 == 0, "tokens": 6}, user=f"user-{number}")

    def _embed(self, client: httpx.Client) -> int:
        return client.post("/v1/embeddings", json={"input": "hello"}).status_code

    def _show(self, client: httpx.Client) -> int:
        return self._post(client, {"messages": [{"role": "user", "content": [IMAGE]}]}, user="painter")

    def _ping(self, client: httpx.Client) -> int:
        """As a monitor does, without a name."""
        return self._post(client, {**ASKS, "max_tokens": 1})

    def _preflight(self, client: httpx.Client) -> int:
        headers = {"origin": "https://app.example", "access-control-request-method": "POST"}
        return client.options(CHAT, headers=headers).status_code

    def _list(self, client: httpx.Client) -> int:
        return client.get("/v1/models").status_code

    def _stray(self, client: httpx.Client) -> int:
        return client.get(next(self._strays)).status_code

    def _retry(self, client: httpx.Client) -> int:
        """As an SDK, of a user who shows a picture: the same request up to three times, until one is answered."""
        asked = {"messages": [{"role": "user", "content": [IMAGE]}]}
        statuses = (self._post(client, asked, user="sdk", repeat=number) for number in range(3))
        return next((status for status in statuses if status < httpx.codes.INTERNAL_SERVER_ERROR), 500)

    def _upload(self, _: httpx.Client) -> int:
        """A long prompt over a slow line."""
        body = json.dumps({**ASKS, "stream": True, "tokens": 6, "document": "x" * 100_000}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: chat\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.create_connection((self._host, int(self._port)), timeout=20) as line:
            line.sendall(head.encode())
            for start in range(0, len(body), 25_000):
                self._over.wait(0.1)
                line.sendall(body[start : start + 25_000])
            answer = b"".join(iter(lambda: line.recv(1 << 16), b""))
        return int(answer.split()[1]) if answer else 0

    def goes_on(self, count: int = 50) -> None:
        """Wait for that many further answers to chats."""
        goal = self._chats() + count
        wait_until(f"{count} more chats", lambda: self._chats() >= goal, timeout_seconds=30)

    def _chats(self) -> int:
        return sum(times for (name, _), times in self.got.copy().items() if name == "chat")

    def of(self, name: str) -> set[int | str]:
        """What those got who ask in this way."""
        return {got for (way, got), _ in self.got.copy().items() if way == name}

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
