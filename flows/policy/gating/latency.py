"""One time of the answers in a stage, to the first token or per token: how late is it by the limit and by stable?"""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

from flows.policy.gating.measures import (
    HUNG_TIMES_P90,
    LEARNED_FROM,
    LINES,
    P90,
    Limits,
    Time,
    Timing,
    Weighed,
    percentile,
)
from flows.policy.gating.slowness import Slowness
from flows.policy.gating.tally import PLACES, Tally
from flows.policy.gating.user_weights import Weights

REMEMBERED = 500
"""Answers that lines are drawn from, and that are shown."""

_LATE, _HUNG, _TIMED = (1 << bit for bit in range(3))


class Latency:
    """Takes in the times of one kind, and counts in the tally what they say."""

    def __init__(
        self,
        time: Time,
        tally: Tally,
        limits: Limits,
        slow_ms: Sequence[float],
        chances: Sequence[float],
        begun: tuple[Sequence[float], Sequence[float]],
    ) -> None:
        """Judge by `slow_ms` what is slow, or learn it; the rest is as in `Slowness`."""
        self._time, self._tally, self._limits = time, tally, limits
        self._limit_ms = time.limit_ms(limits)
        self._is_judged = time.is_judged(limits)
        self._marks = bytearray(PLACES if self._is_judged else 0)
        self._weights = Weights() if self._is_judged else None
        self._bets = None
        if self._is_judged and chances[0] < 1:
            self._bets = (Slowness(chances, begun[0]), Slowness(chances, begun[1]))
        self._learning: list[tuple[float, bool, int | None, str | None, bool, int | None]] = []
        self._window: deque[float] = deque(maxlen=REMEMBERED)
        self._answers = 0
        self._recent: dict[bool, deque[float]] = {True: deque(maxlen=REMEMBERED), False: deque(maxlen=REMEMBERED)}
        self._draw_lines(slow_ms)

    @property
    def slow_ms(self) -> tuple[float, ...]:
        return self._lines[False]

    def take(
        self, ms: float, user: int | None, *, mine: bool, cell: str | None, counts: bool, draw: int | None
    ) -> None:
        self._recent[mine].append(ms)
        if not self._is_judged:
            return
        place = None if user is None else user % PLACES
        if mine and self._limit_ms is not None:
            late = ms > self._limit_ms
            self._tally.take(self._time.late, place, self._marks, _LATE, mine=True, hit=late, cell=cell, counts=counts)
        # From both slots together: whoever looks at labels before he draws his lines draws them where he likes. Anew
        # every so often: latency drifts, and lines that it has left behind tell nothing.
        if self.slow_ms:
            if self._answers and self._answers % LEARNED_FROM == 0:
                self._draw_lines(_percentiles(self._window))
            self._compare(ms, user, mine=mine, cell=cell, counts=counts, draw=draw)
        else:
            self._learning.append((ms, mine, user, cell, counts, draw))
        self._answers += 1
        self._window.append(ms)
        if len(self._learning) == LEARNED_FROM:
            self._draw_lines(_percentiles(self._window))
            learning, self._learning = self._learning, []
            for learned_ms, was_mine, whose, its_cell, counted, its_draw in learning:
                self._compare(learned_ms, whose, mine=was_mine, cell=its_cell, counts=counted, draw=its_draw)

    def _draw_lines(self, slow_ms: Sequence[float]) -> None:
        # The candidate's answers are measured by a stick that is as much longer as they may be later.
        own = tuple(self._time.allowed_ms(line, self._limits) for line in slow_ms)
        self._lines = {True: own, False: tuple(slow_ms)}

    def _compare(
        self, ms: float, user: int | None, *, mine: bool, cell: str | None, counts: bool, draw: int | None
    ) -> None:
        lines, tally, marks = self._lines[mine], self._tally, self._marks
        place = None if user is None else user % PLACES
        is_late = ms > lines[P90]
        tally.take(self._time.later, None, marks, 0, mine=mine, hit=is_late, cell=None, counts=counts)
        if self._weights is not None:
            self._weights.take(place, mine=mine, is_late=is_late)
        hung = ms > HUNG_TIMES_P90 * lines[P90]
        tally.take(self._time.hung, place, marks, _HUNG, mine=mine, hit=hung, cell=cell, draw=draw)
        if place is None or not marks[place] & _TIMED:
            if place is not None:
                marks[place] |= _TIMED
            tally.take(self._time.slow, None, marks, 0, mine=mine, hit=is_late, cell=cell)
        if self._bets is not None:
            harm, matters = self._bets
            harm.take(bisect_left(self.slow_ms, ms), user, mine=mine, draw=draw)
            matters.take(bisect_left(lines, ms), user, mine=mine, draw=draw)
            now, best, whole = min(harm.now, matters.now), (harm.best, matters.best), (harm.whole, matters.whole)
            tally.bet_on_slowness(self._time.slow, now, best, whole)

    def next_slow_ms(self) -> tuple[float, ...]:
        """What is slow in the next stage until it has answers of its own."""
        return _percentiles(self._window) if len(self._window) >= LEARNED_FROM else self.slow_ms

    @property
    def purses(self) -> tuple[Sequence[float], Sequence[float]] | None:
        """What the two bets on first answers go on with in the next stage."""
        return self._bets and (self._bets[0].purses, self._bets[1].purses)

    @property
    def weighed(self) -> Weighed | None:
        """What good news beside stable stands on."""
        return self._weights and self._weights.weighed()

    def timing(self) -> Timing:
        recent = [sorted(self._recent[mine]) for mine in (True, False)]
        return Timing(
            learned=len(self._learning),
            slow_ms=self.slow_ms,
            recent_ms=tuple(percentile(times, percent) for times in recent for percent in (50, 95)),
        )


def _percentiles(times: Sequence[float] | deque[float]) -> tuple[float, ...]:
    in_order = sorted(times)
    return tuple(percentile(in_order, percent) or 0.0 for percent in LINES)
