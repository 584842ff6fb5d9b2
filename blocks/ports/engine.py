"""An engine, asked directly and past the gateway: its settings, its load, and its answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from blocks.ports.fleet import ModelKind, Replica


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


Expectation = Literal["text", "json", "tool", "continuation", "vector", "ranking"]
"""What an answer has to be: in a chat anything but nothing, a JSON value, or a call of the one tool that is offered,
with JSON; the text goes on; one vector; one score a document."""

EXPECTATIONS: Mapping[ModelKind, frozenset[Expectation]] = {
    "chat": frozenset({"text", "json", "tool"}),
    "completion": frozenset({"continuation"}),
    "embedding": frozenset({"vector"}),
    "rerank": frozenset({"ranking"}),
}
"""What can be expected of each kind of model."""


@dataclass(frozen=True)
class Prompt:
    """A question that a replica is asked as a test of it, and what its answer has to be."""

    text: str
    """For a ranking, the query."""
    max_tokens: int
    """Of an answer that is generated."""
    expects: Expectation
    documents: tuple[str, ...] = ()
    """What a ranking ranks."""


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
    vector: tuple[float, ...] = ()
    """Of what was embedded; finite, and empty where none came."""
    scores: tuple[float, ...] = ()
    """One a document, in the order in which they were handed over; finite, and empty where none came."""
    unsound: str = ""
    """Why what came is no vector or ranking that anybody can use, in words; empty where it is one, or was not asked."""


class Engine(Protocol):
    """A replica asked directly, past the gateway."""

    def is_healthy(self, replica: Replica) -> bool:
        """False while it loads, and while nothing answers."""
        ...

    def complete(self, replica: Replica, kind: ModelKind = "chat") -> str:
        """One real, short request of the model's kind, and in words or as it came what was answered.

        Unavailable where no answer comes back; Unsound where one does that nobody can use, such as a vector of zeros.
        """
        ...

    def ask(self, replica: Replica, prompt: Prompt) -> Answer:
        """Streamed where words are generated, as users ask; whatever comes, or does not, is an answer and no error."""
        ...

    def load(self, replica: Replica) -> Load | None:
        """None where what runs and waits cannot be known: that counts as busy, and never as good news."""
        ...
