"""Requests in one by one, evidence out: what a stage has shown so far.

What is counted is users, for users are what the split distributes: of each user the first failure counts, and no other.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from math import exp, log
from zlib import crc32

from blocks.ports import Outcome, Slot
from flows.policy.measures import (
    HUNG_TIMES_P90,
    LEARNED_FROM,
    LINES,
    P90,
    SLOWER,
    TIMES_STABLE,
    CellCount,
    Count,
    Evidence,
    Limits,
    Measure,
    allowed,
    percentile,
    slowness_of,
    worth_of_harm,
)

CLIENT_ERROR, SERVER_ERROR, NO_ANSWER = 400, 500, -1
"""Where HTTP's ranges of statuses begin, and what `Outcome.status` says where there was none."""

REQUESTS_A_USER = 25
"""As good news, no user's requests count more often than this in a round."""
ROUND_REQUESTS = 2000
"""After so many requests of both slots it is forgotten who failed: a user who did long ago counts again as "lately"."""
REMEMBERED = 500
TRAIL = 48
PLACES = 1 << 16
"""Users are told apart by so many hashes. Two that share one count as one: evidence is lost that way, never made up."""

_FAILED, _REFUSED, _LEFT, _LATE, _TIMED, _HUNG, _SEEN = (1 << bit for bit in range(7))


def has_failed(outcome: Outcome) -> bool:
    """Whether the slot failed this user, though a retry or a fallback may have hidden it from them."""
    hidden = outcome.retried or outcome.by_fallback
    return hidden or outcome.status >= SERVER_ERROR or outcome.cut_short or outcome.is_empty


class Judge:
    """What one stage has shown so far; it takes in requests one by one, and no more room for a million than for ten."""

    def __init__(
        self,
        limits: Limits,
        candidate: Slot,
        *,
        share: float,
        budget: float = 1.0,
        slow_ms: Sequence[float] = (),
        cells: Mapping[str, str] | None = None,
    ) -> None:
        """Judge by `slow_ms` what is slow, or learn it; `cells` tells which cell an address of the candidate is in."""
        self._limits, self._candidate, self._share, self._budget = limits, candidate, share, budget
        self._cells = dict(cells or {})
        self._dropped: set[str] = set()
        self._slow_ms = tuple(slow_ms)
        self._slowness_of = slowness_of(share)
        self._begin()

    @property
    def limits(self) -> Limits:
        return self._limits

    def drop(self, cells: Sequence[str]) -> tuple[str, ...]:
        """Go on without these cells, and begin anew: what was seen so far was seen of the whole. Their addresses."""
        self._dropped.update(cells)
        self._begin()
        return tuple(sorted(address for address, cell in self._cells.items() if cell in cells))

    def begin_anew(self) -> None:
        """Forget what was seen, as where some of it may have been lost."""
        self._begin()

    def _begin(self) -> None:
        self._marks, self._round_marks, self._requests_of = bytearray(PLACES), bytearray(PLACES), bytearray(PLACES)
        self._requests = self._stable_requests = self._users = self._in_round = self._rounds = 0
        self._hits: dict[Measure, int] = dict.fromkeys((*TIMES_STABLE, "late", "later than p90"), 0)
        self._all_hits, self._of, self._counted = dict(self._hits), dict(self._hits), dict(self._hits)
        self._counted_hits = dict(self._hits)
        self._slowness, self._slow_now = [0.0] * len(SLOWER), 0.0
        self._harm: dict[Measure, float] = dict.fromkeys(self._hits, 0.0)
        self._cell_requests: dict[str, int] = {}
        self._cell_hits: dict[str, dict[Measure, int]] = {}
        self._trail: list[tuple[int, int]] = []
        self._pace = self._next_mark = 1
        self._learning: list[tuple[float, bool, int | None, str | None, bool]] = []
        self._times: dict[bool, deque[float]] = {True: deque(maxlen=REMEMBERED), False: deque(maxlen=REMEMBERED)}

    def observe(self, outcome: Outcome, elapsed_seconds: float) -> None:
        """Take in one request that has ended by now, `elapsed_seconds` into the stage."""
        if outcome.slot is None:
            return
        mine = outcome.slot == self._candidate
        cell = self._cells.get(outcome.address or "") if mine else None
        if cell is not None and cell in self._dropped:
            return
        place = None if outcome.user is None else crc32(outcome.user.encode()) % PLACES
        failed = has_failed(outcome)
        self._turn_the_round()
        if outcome.user_left and not failed:
            if outcome.status == NO_ANSWER:
                self._take("left", _LEFT, place, mine=mine, hit=True, cell=cell)
            return
        self._stable_requests += not mine
        counts = self._counts_as_good_news(place, mine=mine)
        if mine:
            self._requests += 1
            if cell is not None:
                self._cell_requests[cell] = self._cell_requests.get(cell, 0) + 1
        self._take("failed", _FAILED, place, mine=mine, hit=failed, cell=cell, counts=counts)
        self._take("failed lately", _FAILED, place, mine=mine, hit=failed, cell=None, marks=self._round_marks)
        if mine:
            self._leave_a_mark()
        refused = CLIENT_ERROR <= outcome.status < SERVER_ERROR
        self._take("refused", _REFUSED, place, mine=mine, hit=refused, cell=cell)
        self._take("left", _LEFT, place, mine=mine, hit=False, cell=cell)
        warm = elapsed_seconds - outcome.total_ms / 1000 >= self._limits.warm_up_seconds
        if outcome.first_token_ms is not None and warm:
            self._take_time(outcome.first_token_ms, place, mine=mine, cell=cell, counts=counts)

    def _leave_a_mark(self) -> None:
        """On the trail: every so many requests, and half as often each time that there are too many marks."""
        requests = self._of["failed"]
        if requests >= self._next_mark:
            self._trail.append((requests, self._hits["failed"]))
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
            for counts in (self._hits, self._all_hits, self._of, self._counted):
                counts["failed lately"] = 0

    def _take_time(self, ms: float, place: int | None, *, mine: bool, cell: str | None, counts: bool) -> None:
        self._times[mine].append(ms)
        if mine and self._limits.first_token_p95_ms is not None:
            late = ms > self._limits.first_token_p95_ms
            self._take("late", _LATE, place, mine=True, hit=late, cell=cell, counts=counts)
        if self._slow_ms:
            self._compare_time(ms, place, mine=mine, cell=cell, counts=counts)
            return
        self._learning.append((ms, mine, place, cell, counts))
        if len(self._learning) == LEARNED_FROM:
            # From both slots together: whoever looks at labels before he draws his lines draws them where he likes.
            times = sorted(ms for ms, *_ in self._learning)
            self._slow_ms = tuple(percentile(times, percent) or 0.0 for percent in LINES)
            learning, self._learning = self._learning, []
            for learned_ms, was_mine, its_place, its_cell, counted in learning:
                self._compare_time(learned_ms, its_place, mine=was_mine, cell=its_cell, counts=counted)

    def _compare_time(self, ms: float, place: int | None, *, mine: bool, cell: str | None, counts: bool) -> None:
        # The candidate's answers are measured by a stick that is as much longer as they may be later.
        lines = self._own_lines if mine else self._slow_ms
        is_late = ms > lines[P90]
        if counts:
            self._take("later than p90", 0, None, mine=mine, hit=is_late, cell=None, counts=True)
        self._take("hung", _HUNG, place, mine=mine, hit=ms > HUNG_TIMES_P90 * lines[P90], cell=cell)
        if place is not None:
            if self._marks[place] & _TIMED:
                return
            self._marks[place] |= _TIMED
        self._take("slow", 0, None, mine=mine, hit=is_late, cell=cell)
        if self._share < 1:
            band = bisect_left(lines, ms)
            self._slowness = [
                worth + bands[band][mine] for worth, bands in zip(self._slowness, self._slowness_of, strict=True)
            ]
            best = max(self._slowness)
            now = best + log(sum(exp(worth - best) for worth in self._slowness) / len(self._slowness))
            self._slow_now, self._harm["slow"] = now, max(self._harm["slow"], now)

    @property
    def _own_lines(self) -> tuple[float, ...]:
        return tuple(allowed(line, self._limits) for line in self._slow_ms)

    def _take(
        self,
        measure: Measure,
        bit: int,
        place: int | None,
        *,
        mine: bool,
        hit: bool,
        cell: str | None,
        counts: bool = False,
        marks: bytearray | None = None,
    ) -> None:
        marks = self._marks if marks is None else marks
        if place is not None:
            if marks[place] & bit:
                return
            if hit:
                marks[place] |= bit
        if mine:
            self._of[measure] += 1
            self._counted[measure] += counts
        if not hit:
            return
        self._all_hits[measure] += 1
        if not mine:
            return
        self._hits[measure] += 1
        self._counted_hits[measure] += counts
        if cell is not None:
            hits = self._cell_hits.setdefault(cell, {})
            hits[measure] = hits.get(measure, 0) + 1
        # Bets on harm rise at the candidate's hits alone, so this is looking after each request.
        count = Count(self._hits[measure], self._all_hits[measure], self._of[measure])
        # A later round has a smaller part of the budget, or a long stage would run out of it: 1/2, 1/6, 1/12 and so on.
        handicap = log((self._rounds + 1) * (self._rounds + 2)) if measure == "failed lately" else 0.0
        if measure != "slow":
            harm = worth_of_harm(measure, count, self._share, self._limits) - handicap
            self._harm[measure] = max(self._harm[measure], harm)

    def _harm_now(self, measure: Measure) -> float:
        if measure == "slow":
            return self._slow_now
        count = Count(self._hits[measure], self._all_hits[measure], self._of[measure])
        return worth_of_harm(measure, count, self._share, self._limits) if count.hits else 0.0

    def next_slow_ms(self) -> tuple[float, ...]:
        """What is slow in the next stage: by stable's last answers, or as before where it gave too few."""
        times = sorted(self._times[False])
        if len(times) < LEARNED_FROM:
            return self._slow_ms
        return tuple(percentile(times, percent) or 0.0 for percent in LINES)

    def evidence(self) -> Evidence:
        mine, stables = sorted(self._times[True]), sorted(self._times[False])
        return Evidence(
            share=self._share,
            budget=self._budget,
            requests=self._requests,
            stable_requests=self._stable_requests,
            users=self._users,
            counts={
                measure: Count(
                    hits=self._hits[measure],
                    all_hits=self._all_hits[measure],
                    of=self._of[measure],
                    counted=self._counted[measure],
                    counted_hits=self._counted_hits[measure],
                    harm=self._harm[measure],
                    harm_now=self._harm_now(measure),
                )
                for measure in self._hits
            },
            cells={
                cell: CellCount(requests, dict(self._cell_hits.get(cell, {})))
                for cell, requests in sorted(self._cell_requests.items())
            },
            trail=tuple(self._trail),
            dropped=tuple(sorted(self._dropped)),
            learned=len(self._learning),
            slow_ms=self._slow_ms,
            first_token_ms=tuple(percentile(times, percent) for times in (mine, stables) for percent in (50, 95)),
        )
