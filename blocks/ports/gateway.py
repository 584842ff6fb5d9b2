"""A gateway, where users' traffic passes: its split, its servers, and its log of requests."""

from dataclasses import dataclass
from typing import Literal, Protocol

Slot = Literal["blue", "green"]
"""One of the two places that a release can stand in behind a service."""


def other(slot: Slot) -> Slot:
    return "blue" if slot == "green" else "green"


WHOLE = 10_000
"""All traffic, in basis points."""


@dataclass(frozen=True)
class Split:
    """Who gets what share of a service's traffic."""

    green_basis_points: int

    def __post_init__(self) -> None:
        if not 0 <= self.green_basis_points <= WHOLE:
            raise ValueError(f"green's share is {self.green_basis_points} basis points; give 0 to {WHOLE}")

    @classmethod
    def giving(cls, slot: Slot, basis_points: int) -> "Split":
        return cls(basis_points if slot == "green" else WHOLE - basis_points)

    def weight_of(self, slot: Slot) -> int:
        """In basis points."""
        return self.green_basis_points if slot == "green" else WHOLE - self.green_basis_points


@dataclass(frozen=True)
class Server:
    """A replica as the gateway sees it."""

    slot: Slot
    address: str
    state: Literal["up", "down", "draining"]
    in_flight: int
    """Requests that the gateway has sent there, or holds for it, and that have not ended."""


RequestKind = Literal[
    "chat", "completion", "response", "message", "embedding", "rerank", "score", "transcription", "speech", "other"
]
"""What a request asked for, by its method and path; `other` asks no model: a list of models, a preflight, a mistake."""


@dataclass(frozen=True)
class Outcome:
    """One request as its user saw it."""

    id: str
    at: float
    """Unix seconds at which it was accepted."""
    slot: Slot | None
    """Where the split sent it; None where there was nowhere to send it."""
    address: str | None
    """The replica that answered; None where none of that slot did."""
    status: int
    """The HTTP status that the user got; -1 where the user left first."""
    first_token_ms: float | None
    """None for answers that were not streamed, and for errors."""
    tokens: int | None
    """The events of a streamed answer that said something; None for answers that were not streamed."""
    per_token_ms: float | None
    """Between its first token and its last; None where they are too few to tell."""
    total_ms: float
    user: str | None
    """A hash of the user, never the user."""
    retried: bool
    """It was sent again because the first replica did not answer."""
    by_fallback: bool
    """Another slot or the outside provider answered in place of this one."""
    cut_short: bool
    """The answer began and came to no good end: broken off, without one, or an error that is no refusal."""
    is_empty: bool
    """It ended well, and nothing was generated."""
    user_left: bool
    """The user broke it off: before the answer began where `status` is -1, else in the middle of it, after `tokens`."""
    kind: RequestKind = "chat"
    is_repeat: bool = False
    """The client's SDK sent it again after a failure: the same request, and no other draw of the split."""
    error_status: int | None = None
    """The HTTP status of the error that the body named under a good status in the head; None where it named none."""


@dataclass(frozen=True)
class Reading:
    """What the request log had to say since a cursor."""

    outcomes: tuple[Outcome, ...]
    cursor: str
    """Hand it to the next call."""
    is_complete: bool
    """False where requests may have been logged and lost between the two readings."""


class Router(Protocol):
    def split(self, service: str) -> Split: ...

    def set_split(self, service: str, split: Split) -> None:
        """Returns once the gateway reports that split."""
        ...


class Pool(Protocol):
    def servers(self, service: str) -> tuple[Server, ...]: ...

    def attach(self, service: str, slot: Slot, address: str, *, is_tls: bool) -> None:
        """Send requests of that slot there as well, once it is healthy; attached already is no error."""
        ...

    def set_key(self, service: str, slot: Slot, key: str | None) -> None:
        """Send this key to the slot's replicas in place of what the user sent; with None, what the user sent."""
        ...

    def drain(self, service: str, slot: Slot, address: str) -> None:
        """Send nothing new there; what is in flight goes on."""
        ...

    def detach(self, service: str, slot: Slot, address: str) -> None:
        """Forget the server; forgotten already is no error."""
        ...


class RequestLog(Protocol):
    def requests(self, service: str, after: str | None) -> Reading:
        """The requests that ended since the cursor `after`; with None no requests, only the cursor of now."""
        ...


class Gateway(Router, Pool, RequestLog, Protocol):
    """A gateway in front of all replicas of its services."""
