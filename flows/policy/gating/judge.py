"""Requests in one by one, evidence out: what a stage has shown so far."""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from math import log
from typing import Self
from zlib import crc32

from blocks.ports.gateway import Outcome, RequestKind, Slot
from flows.policy.gating.good_times import GoodTimes
from flows.policy.gating.latency import Latency
from flows.policy.gating.measures import (
    EACH_TOKEN,
    FIRST_TOKEN,
    TIMES,
    UNPROMISED,
    CellCount,
    Count,
    Evidence,
    Limits,
    Measure,
    Purses,
    Time,
    above_limit,
    added,
    allowed_alone,
)
from flows.policy.gating.tally import PLACES, Tally

CLIENT_ERROR, SERVER_ERROR, NO_ANSWER = 400, 500, -1
"""Where HTTP's ranges of statuses begin, and what `Outcome.status` says where there was none."""
OVERLOADED, NOT_IMPLEMENTED = int(HTTPStatus.TOO_MANY_REQUESTS), int(HTTPStatus.NOT_IMPLEMENTED)
"""An engine's 429 is a failure, for its users did nothing wrong; its 501 is a refusal: it cannot do that at all."""

REQUESTS_A_USER = 25
"""As good news, no user's requests count more often than this in a round."""
ROUND_REQUESTS = 2000
"""After so many requests of both slots it is forgotten who failed: a user who did long ago counts again as "lately"."""
TRAIL = 48

_FAILED, _REFUSED, _LEFT, _SEEN, _MINE, _STABLES, _LEFT_MIDWAY = (1 << bit for bit in range(7))
CANDIDATES = 255
"""In `Carried.seen`, beside the numbers of stages."""


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


@dataclass(frozen=True)
class Carried:
    """What one stage leaves to the next.

    Bets go on, for a release that is a little worse shows it little by little. They stay fair by who was seen before:
    a user is drawn once in a release, and shares only rise.
    """

    slow_ms: Mapping[Time, tuple[float, ...]] = field(default_factory=dict[Time, tuple[float, ...]])
    """What is slow until the stage has answers of its own."""
    budget: float = 0.0
    """Of the stage that the bets began in; 0 where there are none."""
    purses: Mapping[Measure, Purses] = field(default_factory=dict[Measure, Purses])
    slowness: Mapping[Time, tuple[Sequence[float], Sequence[float]]] = field(
        default_factory=dict[Time, tuple[Sequence[float], Sequence[float]]]
    )
    shares: tuple[float, ...] = ()
    """Of the stages so far."""
    seen: bytes = bytes(PLACES)
    """Of each place's user, in which stage he was last seen as stable's, from 1 on, or that he is the candidate's."""
    owners: bytes = bytes(2 * PLACES)
    """Who is each place's user: the rest of his hash, in two bytes. Of others at the place nobody knows."""
    shown: Mapping[Measure, tuple[int, int]] = field(default_factory=dict[Measure, tuple[int, int]])
    """Of what is not promised: hits of both slots in all stages so far, and of how many requests."""
    answered: frozenset[RequestKind] = frozenset()
    """Kinds of requests that somebody was answered well to."""

    @classmethod
    def after(cls, stages: Iterable[Evidence]) -> Self:
        """What the ledger still knows of a release's stages, where a flow takes it up: no bets, and no users.

        Older stages do not know of how many requests their hits were, nor what was answered, and say nothing.
        """
        shown: dict[Measure, tuple[int, int]] = {}
        answered: set[RequestKind] = set()
        for stage in stages:
            answered.update(stage.answered)
            for one in UNPROMISED:
                count = stage.count(one)
                if count.all_of:
                    shown[one] = added(shown.get(one, (0, 0)), (count.all_hits, count.all_of))
        return cls(shown=shown, answered=frozenset(answered))

    def chances(self, share: float) -> tuple[float, ...]:
        """Of being the candidate's at this share: of whom nobody saw, and of who was stable's in each stage so far."""
        return (share, *((share - before) / (1 - before) for before in self.shares))


class Judge:
    """What one stage has shown so far; it takes in requests one by one, and no more room for a million than for ten."""

    def __init__(
        self,
        limits: Limits,
        candidate: Slot,
        *,
        share: float,
        budget: float = 1.0,
        carried: Carried | None = None,
        cells: Mapping[str, str] | None = None,
    ) -> None:
        """Go on with what the stage before left; `cells` tells which cell an address of the candidate is in."""
        self._limits, self._candidate, self._share, self._budget = limits, candidate, share, budget
        self._cells = dict(cells or {})
        self._dropped: set[str] = set()
        carried = carried or Carried()
        self._known = Carried(shown=carried.shown, answered=carried.answered)
        # Alone, no bet is on whose something is, and none goes on.
        self._begin(carried if share < 1 else self._what_is_known(carried.slow_ms))

    @property
    def limits(self) -> Limits:
        return self._limits

    def drop(self, cells: Sequence[str]) -> tuple[str, ...]:
        """Go on without these cells, and begin anew: what was seen so far was seen of the whole. Their addresses."""
        self._dropped.update(cells)
        self.begin_anew()
        return tuple(sorted(address for address, cell in self._cells.items() if cell in cells))

    def begin_anew(self) -> None:
        """Forget what was seen, as where some of it may have been lost; what is slow is still known."""
        self._begin(self._what_is_known(self.slow_ms))

    def _what_is_known(self, slow_ms: Mapping[Time, tuple[float, ...]]) -> Carried:
        """From the stages before, where no bets go on."""
        return replace(self._known, slow_ms=slow_ms)

    def _begin(self, carried: Carried) -> None:
        self._begun = carried
        self._marks, self._round_marks, self._requests_of = bytearray(PLACES), bytearray(PLACES), bytearray(PLACES)
        self._requests = self._stable_requests = self._users = self._in_round = self._rounds = 0
        self._tokens = self._stable_tokens = 0
        self._answered = set(carried.answered)
        measures: list[Measure] = ["failed", "failed lately", *UNPROMISED]
        for time in TIMES:
            if time.is_judged(self._limits):
                measures += (time.hung, time.slow, time.late, time.later)
        self._owners = array("H", carried.owners)
        limits, chances = self._limits, carried.chances(self._share)
        allowed: dict[Measure, float | None] = {
            one: allowed_alone(*seen, limits) for one, seen in carried.shown.items() if self._share == 1
        }
        self._tally = Tally(measures, self._share, limits, chances, carried.purses, allowed)
        self._good_times = GoodTimes(*above_limit(limits.error_percent / 100))
        self._latencies = {
            time: Latency(
                time,
                self._tally,
                limits,
                carried.slow_ms.get(time, ()),
                chances,
                carried.slowness.get(time, ((), ())),
            )
            for time in TIMES
        }
        self._handicap = log(2)
        self._cell_requests: dict[str, int] = {}
        self._trail: list[tuple[int, int]] = []
        self._pace = self._next_mark = 1

    def observe(self, outcome: Outcome, elapsed_seconds: float) -> None:
        """Take in one request that has ended by now, `elapsed_seconds` into the stage."""
        if outcome.slot is None or not speaks(outcome):
            return
        mine = outcome.slot == self._candidate
        began_seconds = elapsed_seconds - outcome.total_ms / 1000
        user = None if outcome.user is None else crc32(outcome.user.encode())
        draw = self._draw(user, mine=mine, began_before=began_seconds < 0)
        cell = self._cells.get(outcome.address or "") if mine else None
        if cell is not None and cell in self._dropped:
            return
        place, failed, refused = None if user is None else user % PLACES, has_failed(outcome), has_refused(outcome)
        if self._says_nothing(outcome.kind, failed=failed, refused=refused):
            return
        self._turn_the_round()
        take, marks = self._tally.take, self._marks
        if cell is not None:
            self._cell_requests[cell] = self._cell_requests.get(cell, 0) + 1
        if outcome.user_left and not failed and not refused:
            measure, bit = ("left", _LEFT) if outcome.status == NO_ANSWER else ("left midway", _LEFT_MIDWAY)
            take(measure, place, marks, bit, mine=mine, hit=True, cell=cell, draw=draw)
            return
        if not failed and not refused:
            self._answered.add(outcome.kind)
        self._add_up(outcome, mine=mine)
        take("refused", place, marks, _REFUSED, mine=mine, hit=refused, cell=cell, draw=draw)
        take("left", place, marks, _LEFT, mine=mine, hit=False, cell=cell, draw=draw)
        take("left midway", place, marks, _LEFT_MIDWAY, mine=mine, hit=False, cell=cell, draw=draw)
        # What was refused was not answered, and is no news of whether answers fail.
        if not refused:
            is_promised = not self._answered or outcome.kind in self._answered
            self._take_answer(
                outcome, user, began_seconds, cell, draw, mine=mine, failed=failed, is_promised=is_promised
            )

    def _take_answer(
        self,
        outcome: Outcome,
        user: int | None,
        began_seconds: float,
        cell: str | None,
        draw: int | None,
        *,
        mine: bool,
        failed: bool,
        is_promised: bool,
    ) -> None:
        """Whether it failed, and its times.

        What is not promised breaks no limit: a kind that nobody was answered to, where others were. Beside stable it is
        a bet all the same, for whose it is, is chance.
        """
        take, place = self._tally.take, None if user is None else user % PLACES
        counts = self._counts_as_good_news(place, mine=mine) and is_promised
        take("failed", place, self._marks, _FAILED, mine=mine, hit=failed, cell=cell, counts=counts, draw=draw)
        lately = self._round_marks
        take("failed lately", place, lately, _FAILED, mine=mine, hit=failed, cell=None, handicap=self._handicap)
        if is_promised:
            self._good_times.take(place, mine=mine, failed=failed, counts=counts)
        if mine:
            self._leave_a_mark()
        if began_seconds < self._limits.warm_up_seconds:
            return
        for time, ms in ((FIRST_TOKEN, outcome.first_token_ms), (EACH_TOKEN, outcome.per_token_ms)):
            if ms is not None:
                self._latencies[time].take(ms, user, mine=mine, cell=cell, counts=counts, draw=draw)

    def _says_nothing(self, kind: RequestKind, *, failed: bool, refused: bool) -> bool:
        """Whether it is of a kind that the candidate may not have to answer: a chat model cannot embed when asked to.

        A refusal speaks once somebody was answered well to that kind, in either slot, for a bet is unfair where whose
        a request is decides if it counts. A failure speaks at once beside stable, for it would come to both; alone,
        only where nothing was shown before.
        """
        if kind in self._answered:
            return False
        return refused or (failed and self._share == 1 and bool(self._known.answered))

    def _draw(self, user: int | None, *, mine: bool, began_before: bool) -> int | None:
        """Which chance this user has of being the candidate's; None where he is it, or nobody knows what he was.

        A request that began before the stage was sent by the share before.
        """
        if began_before and (user is None or not mine):
            return None
        if user is None:
            return 0
        place, who = user % PLACES, user // PLACES
        seen = self._begun.seen[place]
        if not seen and not self._marks[place] & (_MINE | _STABLES):
            self._owners[place] = who
        is_owner = self._owners[place] == who
        if is_owner:
            self._marks[place] |= _MINE if mine else _STABLES
        return seen if not began_before and (not seen or (is_owner and seen != CANDIDATES)) else None

    def _add_up(self, outcome: Outcome, *, mine: bool) -> None:
        if not mine:
            self._stable_requests += 1
            self._stable_tokens += outcome.tokens or 0
            return
        self._requests += 1
        self._tokens += outcome.tokens or 0

    def _leave_a_mark(self) -> None:
        """On the trail: every so many requests, and half as often each time that there are too many marks."""
        requests, failed = self._tally.of("failed")
        if requests >= self._next_mark:
            self._trail.append((requests, failed))
            if len(self._trail) == TRAIL:
                self._trail, self._pace = self._trail[1::2], self._pace * 2
            self._next_mark = requests + self._pace

    def _counts_as_good_news(self, place: int | None, *, mine: bool) -> bool:
        """Whether this request is one of the first few of its user in this round."""
        if place is None:
            self._users += mine
            return True
        if (before := self._requests_of[place]) == REQUESTS_A_USER:
            return False
        self._requests_of[place] = before + 1
        if mine and not self._marks[place] & _SEEN:
            self._marks[place] |= _SEEN
            self._users += 1
        return True

    def _turn_the_round(self) -> None:
        self._in_round += 1
        if self._in_round > ROUND_REQUESTS:
            self._in_round, self._rounds = 1, self._rounds + 1
            self._round_marks, self._requests_of = bytearray(PLACES), bytearray(PLACES)
            self._tally.forget("failed lately")
            # A later round has a smaller part of the budget, or a long stage would run out of it: 1/2, 1/6, 1/12 ...
            self._handicap = log((self._rounds + 1) * (self._rounds + 2))

    @property
    def slow_ms(self) -> dict[Time, tuple[float, ...]]:
        """Stable's lines of each time; none of one that is still to be learned."""
        return {time: latency.slow_ms for time, latency in self._latencies.items()}

    def carried(self) -> Carried:
        """What goes on in the next stage."""
        number = len(self._begun.shares) + 1
        return Carried(
            slow_ms={time: latency.next_slow_ms() for time, latency in self._latencies.items()},
            budget=self._begun.budget or self._budget,
            purses=self._tally.purses(),
            slowness={time: purses for time, latency in self._latencies.items() if (purses := latency.purses)},
            shares=(*self._begun.shares, self._share),
            seen=bytes(
                CANDIDATES if marks & _MINE else number if marks & _STABLES else before
                for before, marks in zip(self._begun.seen, self._marks, strict=True)
            ),
            owners=self._owners.tobytes(),
            shown=self._shown(),
            answered=frozenset(self._answered),
        )

    def _shown(self) -> dict[Measure, tuple[int, int]]:
        """In all stages so far."""
        before, now = self._known.shown, self._tally.shown()
        return {one: added(before.get(one, (0, 0)), seen) for one, seen in now.items()}

    def _counts(self) -> dict[Measure, Count]:
        counts, good = self._tally.counts(), self._good_times
        counts["failed"] = replace(
            counts["failed"],
            counted=good.counted,
            counted_hits=good.hits,
            set_aside=good.set_aside,
            set_aside_hits=good.set_aside_hits,
        )
        for time, latency in self._latencies.items():
            if time.later in counts:
                counts[time.later] = replace(counts[time.later], weighed=latency.weighed)
        return counts

    def evidence(self) -> Evidence:
        first, each = (self._latencies[time].timing() for time in (FIRST_TOKEN, EACH_TOKEN))
        return Evidence(
            share=self._share,
            budget=self._budget,
            whole_budget=self._begun.budget,
            requests=self._requests,
            stable_requests=self._stable_requests,
            users=self._users,
            counts=self._counts(),
            cells={
                cell: CellCount(requests, dict(self._tally.cell_hits.get(cell, {})))
                for cell, requests in sorted(self._cell_requests.items())
            },
            trail=tuple(self._trail),
            dropped=tuple(sorted(self._dropped)),
            learned=first.learned,
            slow_ms=first.slow_ms,
            first_token_ms=first.recent_ms,
            each_token=each,
            tokens=self._tokens,
            stable_tokens=self._stable_tokens,
            answered=tuple(sorted(self._answered)),
        )
