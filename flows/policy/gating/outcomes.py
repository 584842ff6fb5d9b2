"""What happened to requests? Outcomes of the gateway in, columns of a batch out: the one form that is judged."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal, Self, get_args
from zlib import crc32

import numpy as np

from blocks.ports.gateway import Outcome, RequestKind, Slot
from flows.policy.gating.e_values import Flags, Floats, Ints

if TYPE_CHECKING:
    from flows.policy.gating.measures import Panel

CLIENT_ERROR, SERVER_ERROR, NO_ANSWER = 400, 500, -1
"""Where HTTP's ranges of statuses begin, and what `Outcome.status` says where there was none."""
OVERLOADED, NOT_IMPLEMENTED = int(HTTPStatus.TOO_MANY_REQUESTS), int(HTTPStatus.NOT_IMPLEMENTED)
"""An engine's 429 is a failure, for its users did nothing wrong; its 501 is a refusal: it cannot do that at all."""

BUCKETS = 1 << 16
"""Users are told apart by so many hashes. Two that share one count as one: evidence is lost that way, never made up."""
NAMELESS = BUCKETS
"""The bucket of requests without a user's hash; each is a user by itself."""

Event = Literal["answered", "failed", "refused", "left", "left midway"]
EVENTS: tuple[Event, ...] = get_args(Event)
KINDS: tuple[RequestKind, ...] = get_args(RequestKind)
_EVENT_NUMBER = {event: number for number, event in enumerate(EVENTS)}
_KIND_NUMBER = {kind: number for number, kind in enumerate(KINDS)}


def speaks(outcome: Outcome) -> bool:
    """Whether it can say anything of a slot: it asks a model, and is no request that was counted once.

    A list of models is no answer of one, and a request that an SDK sends again is no other draw of the split.
    """
    return outcome.kind != "other" and not outcome.is_repeat


def has_refused(outcome: Outcome) -> bool:
    """Whether the slot says that the request is at fault, or nothing that it can do."""
    named = outcome.error_status
    return _is_refusal(outcome.status if named is None else named) and not has_failed(outcome)


def has_failed(outcome: Outcome) -> bool:
    """Whether the slot failed this user, though a retry or a fallback may have hidden it from them.

    An error named in the body is judged as a status would be; one that names none of HTTP's refusals is a failure.
    """
    if outcome.retried or outcome.by_fallback:
        return True
    if outcome.error_status is not None:
        return not _is_refusal(outcome.error_status)
    is_error = outcome.status >= CLIENT_ERROR and not _is_refusal(outcome.status)
    return is_error or outcome.cut_short or outcome.is_empty


def _is_refusal(status: int) -> bool:
    return (CLIENT_ERROR <= status < SERVER_ERROR and status != OVERLOADED) or status == NOT_IMPLEMENTED


def event_of(outcome: Outcome) -> Event:
    """The one thing that it says of its slot."""
    if has_failed(outcome):
        return "failed"
    if has_refused(outcome):
        return "refused"
    if outcome.user_left:
        return "left" if outcome.status == NO_ANSWER else "left midway"
    return "answered"


@dataclass(frozen=True)
class Batch:
    """Requests of both slots that have ended, as columns of one length, in order of time."""

    is_candidate: Flags
    user: Ints
    """A hash of 32 bits; -1 where nobody is named."""
    began_seconds: Floats
    """Since the stage began; negative where the split of before has sent it."""
    event: Ints
    """Its number in `EVENTS`."""
    kind: Ints
    """Its number in `KINDS`."""
    cell: Ints
    """The number of the candidate's cell that answered; -1 for stable's and for those of no known cell."""
    tokens: Ints
    trials: Mapping[str, Flags]
    """Of each event measure, the requests that it is about."""
    hits: Mapping[str, Flags]
    ms: Mapping[str, Floats]
    """Of each latency measure; not a number where an answer has none."""

    def __len__(self) -> int:
        return len(self.is_candidate)

    @cached_property
    def bucket(self) -> Ints:
        return np.where(self.user < 0, NAMELESS, self.user % BUCKETS)

    @property
    def owner(self) -> Ints:
        """The rest of the user's hash."""
        return self.user // BUCKETS

    def some(self, at: Ints | Flags | slice) -> Self:
        return replace(
            self,
            is_candidate=self.is_candidate[at],
            user=self.user[at],
            began_seconds=self.began_seconds[at],
            event=self.event[at],
            kind=self.kind[at],
            cell=self.cell[at],
            tokens=self.tokens[at],
            trials={name: column[at] for name, column in self.trials.items()},
            hits={name: column[at] for name, column in self.hits.items()},
            ms={name: column[at] for name, column in self.ms.items()},
        )

    @classmethod
    def of(
        cls,
        outcomes: Iterable[Outcome],
        elapsed_seconds: float,
        candidate: Slot,
        panel: "Panel",
        cells: Mapping[str, int],
    ) -> Self:
        """Those that say something of a slot, by `elapsed_seconds` into the stage; `cells` has addresses' numbers."""
        some = [one for one in outcomes if one.slot is not None and speaks(one)]
        events: list[Event] = [event_of(one) for one in some]
        both: list[tuple[Outcome, Event]] = list(zip(some, events, strict=True))
        return cls(
            is_candidate=np.array([one.slot == candidate for one in some], bool),
            user=np.array([-1 if one.user is None else crc32(one.user.encode()) for one in some], np.int64),
            began_seconds=elapsed_seconds - np.array([one.total_ms for one in some], np.float64) / 1000,
            event=np.array([_EVENT_NUMBER[event] for event in events], np.int64),
            kind=np.array([_KIND_NUMBER[one.kind] for one in some], np.int64),
            cell=np.array([_cell(one, candidate, cells) for one in some], np.int64),
            tokens=np.array([one.tokens or 0 for one in some], np.int64),
            trials={m.name: np.array([m.is_trial(*one) for one in both], bool) for m in panel.events},
            hits={m.name: np.array([m.is_hit(*one) for one in both], bool) for m in panel.events},
            ms={m.name: _times([m.ms(one) for one in some]) for m in panel.shown_latencies},
        )


def _cell(outcome: Outcome, candidate: Slot, cells: Mapping[str, int]) -> int:
    return cells.get(outcome.address or "", -1) if cells and outcome.slot == candidate else -1


def _times(ms: Sequence[float | None]) -> Floats:
    return np.array([np.nan if one is None else one for one in ms], np.float64)


def is_event(batch: Batch, event: Event) -> Flags:
    return batch.event == _EVENT_NUMBER[event]


def repeats(bucket: Ints) -> tuple[Ints, Ints]:
    """An order of these users by their buckets, each one's requests in order of time; and how many came before each."""
    order = np.argsort(bucket.astype(np.uint16), kind="stable")  # of 16 bits, a radix sort
    ordered = bucket[order]
    begins = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))) if len(order) else order
    earlier = np.arange(len(order)) - np.repeat(begins, np.diff(np.append(begins, len(order))))
    return order, earlier
