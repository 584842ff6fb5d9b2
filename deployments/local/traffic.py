"""Users of the quickstart: requests that come when they come, and a count of what became of each.

Open loop: nothing waits for an answer before the next request is sent, so a slow service is asked no less.
"""

import argparse
import asyncio
import json
import signal
import time
from bisect import insort
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx

from blocks.files import write_atomically

MAX_TOKENS = (3, 6)
QUESTION_WORDS = (2, 4)
ANSWER_TIMEOUT = httpx.Timeout(60, connect=5)
LAST_ANSWERS_SECONDS = 30
"""How long the end waits for what is in flight."""
REPORT_SECONDS = 1
FAILURES_KEPT = 50
MESSAGE_CHARACTERS = 200
WORDS = (
    *("river", "garden", "window", "letter", "summer", "market", "bridge", "music", "winter", "teacher", "mountain"),
    *("village", "doctor", "paper", "table", "story", "ocean", "kitchen", "forest", "island", "station", "machine"),
    *("picture", "question", "answer", "morning", "evening", "family", "friend", "money", "number", "water", "fire"),
)


@dataclass(frozen=True)
class Request:
    user: str
    prompt: str
    max_tokens: int
    is_streamed: bool


def requests(random: Random, *, users: int, long_share: float, long_tokens: int) -> Iterator[Request]:
    """One request after another, for ever; the same ones for the same random numbers.

    The longer ones ask about one document, whose tokens an engine keeps: on a small machine each new one takes seconds.
    Who sends a document waits for the whole answer; the others watch theirs come.
    """
    document = f"Read this: {' '.join(random.choices(WORDS, k=long_tokens))}."
    while True:
        question = f"Tell me about {' '.join(random.choices(WORDS, k=random.randint(*QUESTION_WORDS)))}."
        is_long = random.random() < long_share
        yield Request(
            user=f"user-{random.randrange(users)}",
            prompt=f"{document} {question}" if is_long else question,
            max_tokens=random.randint(*MAX_TOKENS),
            is_streamed=not is_long,
        )


@dataclass
class Answer:
    """What a user got, as far as it came."""

    status: int | None = None
    """None where there was no answer at all."""
    is_stream: bool = False
    is_whole: bool = False
    error: str = ""
    first_token_ms: float | None = None


@dataclass
class Tally:
    """What became of the requests: sent = answered + lost + refused + streams_cut + in_flight."""

    started_at: float = field(default_factory=time.time)
    sent: int = 0
    answered: int = 0
    lost: int = 0
    """No answer, or one that says that the service failed."""
    refused: int = 0
    """The service says that the request is wrong."""
    streams_started: int = 0
    streams_cut: int = 0
    first_token_ms: list[float] = field(default_factory=list)
    """In order; of streams only."""
    total_ms: list[float] = field(default_factory=list)
    """In order; of what was answered."""
    users: set[str] = field(default_factory=set)
    users_who_saw_a_failure: set[str] = field(default_factory=set)
    failures: deque[dict[str, float | int | str | None]] = field(default_factory=lambda: deque(maxlen=FAILURES_KEPT))

    def begin(self, request: Request) -> None:
        self.sent += 1
        self.users.add(request.user)

    def end(self, request: Request, answer: Answer, total_ms: float) -> None:
        self.streams_started += answer.is_stream
        if answer.first_token_ms is not None:
            insort(self.first_token_ms, answer.first_token_ms)
        if answer.is_whole:
            self.answered += 1
            insort(self.total_ms, total_ms)
            return
        if answer.is_stream:
            self.streams_cut += 1
        elif answer.status is not None and httpx.codes.is_client_error(answer.status):
            self.refused += 1
        else:
            self.lost += 1
        self.users_who_saw_a_failure.add(request.user)
        self.failures.append({"at": time.time(), "status": answer.status, "message": answer.error[:MESSAGE_CHARACTERS]})

    def report(self) -> str:
        return json.dumps(
            {
                "started_at": self.started_at,
                "seconds": time.time() - self.started_at,
                "sent": self.sent,
                "answered": self.answered,
                "lost": self.lost,
                "refused": self.refused,
                "streams_started": self.streams_started,
                "streams_cut": self.streams_cut,
                "in_flight": self.sent - self.answered - self.lost - self.refused - self.streams_cut,
                "first_token_ms": percentiles(self.first_token_ms),
                "total_ms": percentiles(self.total_ms),
                "users": len(self.users),
                "users_who_saw_a_failure": len(self.users_who_saw_a_failure),
                "failures": list(self.failures),
            },
            indent=1,
        )


def percentiles(in_order: list[float]) -> dict[str, float | None]:
    """The nearest-rank percentiles; None where there is nothing to rank."""
    last = len(in_order) - 1
    return {f"p{percent}": in_order[round(last * percent / 100)] if in_order else None for percent in (50, 95, 99)}


async def send(client: httpx.AsyncClient, request: Request, tally: Tally) -> None:
    """Ask once, as a user who does not ask again, and count what comes."""
    begun = time.monotonic()
    answer = Answer()
    tally.begin(request)
    try:
        await _ask(client, request, answer, begun)
    except httpx.HTTPError as error:
        answer.error = f"{type(error).__name__}: {error}"
    tally.end(request, answer, _ms_since(begun))


async def _ask(client: httpx.AsyncClient, request: Request, answer: Answer, begun: float) -> None:
    """Note in the answer how far it came, also where it breaks off."""
    body = {
        "messages": [{"role": "user", "content": request.prompt}],
        "max_tokens": request.max_tokens,
        "temperature": 0,
        "stream": request.is_streamed,
    }
    headers = {"x-user-id": request.user}
    async with client.stream("POST", "chat/completions", json=body, headers=headers) as response:
        answer.status = response.status_code
        answer.is_stream = response.is_success and request.is_streamed
        answer.error = "the answer is not whole" if response.is_success else response.reason_phrase
        if not answer.is_stream:
            answer.is_whole = response.is_success and "message" in _first_choice(await response.aread())
            return
        async for line in response.aiter_lines():
            choice = _first_choice(line.removeprefix("data: "))
            if answer.first_token_ms is None and choice.get("delta", {}).get("content"):
                answer.first_token_ms = _ms_since(begun)
            # vLLM ends its streams with "abort" where it is shut down.
            if line == "data: [DONE]" or choice.get("finish_reason") not in (None, "abort"):
                answer.is_whole = True


def _ms_since(begun: float) -> float:
    return 1000 * (time.monotonic() - begun)


def _first_choice(body: str | bytes) -> dict[str, Any]:
    """Nothing, where it is half an answer, an error or no JSON at all."""
    try:
        return json.loads(body)["choices"][0]
    except (ValueError, LookupError, TypeError):
        return {}


async def run(
    url: str, rate: float, arrivals: Iterator[Request], random: Random, report: Path, stop: asyncio.Event
) -> None:
    """Send as a Poisson process of that many requests a second until told to stop, then wait for the last answers."""
    tally = Tally()
    loop = asyncio.get_running_loop()
    # A service that is slow has as many connections as requests that wait: any limit here would close the loop.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=2)
    async with httpx.AsyncClient(base_url=url, timeout=ANSWER_TIMEOUT, limits=limits, trust_env=False) as client:
        reporting = asyncio.create_task(_report_again_and_again(tally, report))
        due = loop.time()
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as patience, asyncio.TaskGroup() as group:
                for request in arrivals:
                    due += random.expovariate(rate)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(stop.wait(), max(0, due - loop.time()))
                    if stop.is_set():
                        break
                    group.create_task(send(client, request, tally))
                patience.reschedule(loop.time() + LAST_ANSWERS_SECONDS)
        reporting.cancel()
    write_atomically(report, tally.report())


async def _report_again_and_again(tally: Tally, report: Path) -> None:
    while True:
        write_atomically(report, tally.report())
        await asyncio.sleep(REPORT_SECONDS)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="the service, up to and with /v1")
    parser.add_argument("--rate", type=float, required=True, help="requests a second, on average")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, required=True, help="the JSON file that is rewritten every second")
    # Who is in a stage of 5 % is drawn anew for each release: of 200 it could be three, who call too rarely to tell.
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--long-share", type=float, default=0.1, help="of the requests, those with long prompts")
    parser.add_argument("--long-tokens", type=int, default=300, help="about how long those are")
    given = parser.parse_args()
    stop = asyncio.Event()
    for ending in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(ending, stop.set)
    random = Random(given.seed)  # noqa: S311 - it makes up users, not secrets
    arrivals = requests(random, users=given.users, long_share=given.long_share, long_tokens=given.long_tokens)
    await run(given.url, given.rate, arrivals, random, given.report, stop)


if __name__ == "__main__":
    asyncio.run(main())
