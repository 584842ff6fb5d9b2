"""An engine, asked directly and past the gateway: its settings, its load, and its answers."""

from dataclasses import dataclass
from typing import Literal, Protocol

from blocks.ports.fleet import Replica


@dataclass(frozen=True)
class Load:
    """What an engine's page of metrics says, of all its models and ranks together.

    Counters have run since the engine started; None where this engine does not count such a thing.
    """

    running: int
    """Requests that it answers now."""
    waiting: int
    """Requests that wait for their turn."""
    prompt_tokens: float | None = None
    """Read so far."""
    generated_tokens: float | None = None
    timed_tokens: float | None = None
    """Of the generated ones, those that `token_seconds` is the time of."""
    token_seconds: float | None = None
    queued_requests: float | None = None
    """Requests that have begun, after waiting for `queue_seconds` together."""
    queue_seconds: float | None = None
    preemptions: float | None = None
    """Requests that were put back into the queue because others needed their memory."""
    kv_cache: float | None = None
    """How full its cache for keys and values is, from 0 to 1; of several ranks, the fullest."""

    @property
    def in_flight(self) -> int:
        return self.running + self.waiting


@dataclass(frozen=True)
class Prompt:
    """A question that a replica is asked as a test of it, and what its answer has to be."""

    text: str
    max_tokens: int
    expects: Literal["text", "json", "tool"]
    """Anything but nothing; a JSON value; a call of the one tool that is offered, with JSON."""


A_HANDFUL = 5
"""Fewer tokens than this tell no pace."""


def pace_ms(first_token_ms: float | None, last_token_ms: float | None, tokens: int | None) -> float | None:
    """The time per token between the first and the last; None where they are too few to tell."""
    if first_token_ms is None or last_token_ms is None or tokens is None or tokens < A_HANDFUL:
        return None
    return (last_token_ms - first_token_ms) / (tokens - 1)


@dataclass(frozen=True)
class Answer:
    """What came back on a prompt, as far as it came."""

    status: int | None
    """Of HTTP; None where there was no answer at all."""
    text: str = ""
    tool_arguments: str | None = None
    """What the tool was called with; None where it was not."""
    has_thought: bool = False
    """It reasoned, which may have taken all its tokens."""
    first_token_ms: float | None = None
    last_token_ms: float | None = None
    tokens: int = 0
    total_ms: float = 0
    is_whole: bool = False
    """It came to its end, and that was a good one."""
    error_status: int | None = None
    """The HTTP status of the error that the body named under a good status in the head; None where it named none."""


class Engine(Protocol):
    """A replica asked directly, past the gateway."""

    def is_healthy(self, replica: Replica) -> bool:
        """False while it loads, and while nothing answers."""
        ...

    def complete(self, replica: Replica) -> str:
        """One real, short completion; Unavailable where none comes back."""
        ...

    def ask(self, replica: Replica, prompt: Prompt) -> Answer:
        """Streamed, as users ask; whatever comes, or does not, is an answer and no error."""
        ...

    def load(self, replica: Replica) -> Load | None:
        """None where what runs and waits cannot be known: that counts as busy, and never as good news."""
        ...
