"""One latency of the answers in a stage: how late is it by the limit and by stable?"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from flows.policy.gating.design_effect import UserWeights
from flows.policy.gating.e_values import Flags, Floats, Ints
from flows.policy.gating.evidence import EDGES, P90, Count, Series, Timing, percentile
from flows.policy.gating.hits import COLUMNS, HitCounter, Question, Trials, Wealth, joined, over_limit
from flows.policy.gating.latency_e_values import SlownessEProcesses
from flows.policy.gating.limits import Limits
from flows.policy.gating.measures import LatencyMeasure
from flows.policy.gating.outcomes import BUCKETS, NAMELESS

LEARNED_FROM = 100
"""Answers that the first edges are drawn from; they are drawn anew after so many more."""
REMEMBERED = 500
"""Answers that edges are drawn from, and that are shown."""
HUNG_TIMES_P90 = 3
LATE_PART = 0.05
"""What a p95 allows."""
TWICE = 2
"""Alone, a bad hour cannot be told from a slow model: late answers are harm where the promise is broken twice over."""


@dataclass(frozen=True)
class CarriedLatency:
    """What one stage leaves to the next of a latency."""

    edges_ms: tuple[float, ...] = ()
    """What is late until the stage has answers of its own."""
    harm: tuple[float, ...] = ()
    beyond_margin: tuple[float, ...] = ()
    """The wealth of the two e-processes on first answers that go on, of each alternative, as logarithms."""
    hung: Wealth | None = None


class Latency:
    """Takes in one latency of all answers, and counts what it says."""

    def __init__(
        self,
        measure: LatencyMeasure,
        limits: Limits,
        weight: float,
        chances: Sequence[float],
        carried: CarriedLatency,
        *,
        cells: int,
    ) -> None:
        """Judge by the edges that are carried, or learn them; `chances` as in `SlownessEProcesses`."""
        self._measure, self._limits, self._weight = measure, limits, weight
        self._is_judged = measure.is_judged(limits)
        self._edges = carried.edges_ms
        self._window = np.zeros(0)
        self._learning: list[tuple[Trials, Floats]] = []
        self._compared = 0
        self._answers = [0, 0]
        self._recent = deque[float](maxlen=REMEMBERED), deque[float](maxlen=REMEMBERED)
        if not self._is_judged:
            return
        alone = Question(weight, limits, over_limit(LATE_PART * TWICE), is_asked=weight == 1)
        self._over_limit = HitCounter(alone, chances, cells=cells)
        beside = Question(weight, limits, is_asked=weight < 1)
        self._hung = HitCounter(beside, chances, carried.hung, cells=cells, goes_on=True)
        self._late = HitCounter(replace(beside, is_asked=False), chances)
        self._first = HitCounter(replace(beside, is_asked=False), chances, cells=cells)
        self._has_answered, self._number = np.zeros(BUCKETS + 1, bool), np.zeros(BUCKETS + 1, np.int64)
        self._weights = UserWeights()
        self._slowness = SlownessEProcesses(chances, (carried.harm, carried.beyond_margin)) if weight < 1 else None

    def take(self, trials: Trials, ms: Floats) -> dict[str, Series]:
        """Of each of its gates, the series at the interim analyses; `trials` are the answers that took so long."""
        for slot, recent in enumerate(self._recent):
            its = ms[trials.is_candidate == slot]
            self._answers[slot] += len(its)
            recent.extend(its[-REMEMBERED:].tolist())
        if not self._is_judged:
            return {}
        series = {self._measure.gate("over limit"): self._take_limit(trials, ms)}
        if self._edges:
            return series | self._compare(trials, ms, np.ones(len(trials.analyses), bool))
        return series | self._learn(trials, ms)

    def _take_limit(self, trials: Trials, ms: Floats) -> Series:
        own = trials.some(trials.is_candidate)
        limit_ms = self._measure.limit_ms(self._limits)
        late = ms[trials.is_candidate] > (np.inf if limit_ms is None else limit_ms)
        return self._over_limit.take(own, late)

    def _learn(self, trials: Trials, ms: Floats) -> dict[str, Series]:
        """From both slots together: whoever looks at labels before he draws his edges draws them where he likes."""
        missing = LEARNED_FROM - sum(len(times) for _, times in self._learning)
        if len(ms):
            self._learning.append((trials.some(slice(missing)), ms[:missing]))
        if len(ms) < missing:
            return self._compare(trials.some(slice(0)), ms[:0], np.zeros(len(trials.analyses), bool))
        known_at = int(trials.at[missing - 1])
        learning = joined([some for some, _ in self._learning], known_at, trials.analyses)
        times = np.concatenate([some for _, some in self._learning])
        self._edges = _quantiles(times)
        rest = trials.some(slice(missing, None))
        columns = {name: np.concatenate([getattr(some, name) for some in (learning, rest)]) for name in COLUMNS}
        self._learning = []
        whole = Trials(**columns, analyses=trials.analyses)
        return self._compare(whole, np.concatenate([times, ms[missing:]]), trials.analyses > known_at)

    def _compare(self, trials: Trials, ms: Floats, is_known: Flags) -> dict[str, Series]:
        gate, edges = self._measure.gate, self._edges_of_each(ms)
        is_candidate = trials.is_candidate
        # The candidate's answers are measured by a stick that is as much longer as they may be later.
        own = np.where(is_candidate[:, None], self._measure.allowed_ms(edges, self._limits), edges)
        p90 = own[:, P90]
        is_late = ms > p90
        late = self._late.take(trials.each_for_itself(), is_late)
        weighed = self._weights.take(trials.bucket, is_candidate, is_late)[:, trials.rows]
        hung = self._hung.take(trials, ms > HUNG_TIMES_P90 * p90)
        # What is shown beside the e-processes on distributions is each user's first answer of the stage.
        first = self._first_answers(trials.bucket)
        slower = self._first.take(trials.some(first).each_for_itself(), is_late[first])
        if self._slowness is not None:
            bins = np.stack([(ms[:, None] > some).sum(axis=1) for some in (edges, own)])
            peak, current, cumulative = self._slowness.take(bins, trials, first)
            slower = replace(
                slower,
                peak=peak[0],
                peak_beyond_margin=peak[1],
                current=current,
                cumulative_peak=cumulative[0],
                cumulative_peak_beyond_margin=cumulative[1],
            )
        return {
            gate("hung"): replace(hung, is_known=is_known),
            gate("slower"): replace(slower, is_known=is_known),
            gate("later than p90"): replace(
                late,
                weighed_hits=weighed[0],
                weighed_all_hits=weighed[1],
                weighed_of=weighed[2],
                is_known=is_known,
            ),
        }

    def _first_answers(self, bucket: Ints) -> Ints:
        """Which of these answers are their users' first of the stage."""
        fresh = np.flatnonzero(~self._has_answered[bucket])[::-1]
        self._number[bucket[fresh]] = fresh
        fresh = fresh[::-1]
        self._has_answered[bucket] = True
        self._has_answered[NAMELESS] = False
        return fresh[(self._number[bucket[fresh]] == fresh) | (bucket[fresh] == NAMELESS)]

    def _edges_of_each(self, ms: Floats) -> Floats:
        """The edges that each of these answers is judged by, drawn anew every so many: (answers, edges).

        Latency drifts, and edges that it has left behind tell nothing.
        """
        before, window = self._compared, np.concatenate([self._window, ms])
        known, drawn = len(self._window), [self._edges]
        begin = -(-max(before, 1) // LEARNED_FROM) * LEARNED_FROM
        for boundary in range(begin, before + len(ms), LEARNED_FROM):
            until = known + boundary - before
            drawn.append(_quantiles(window[max(0, until - REMEMBERED) : until]))
        block = (before + np.arange(len(ms))) // LEARNED_FROM - max(before - 1, 0) // LEARNED_FROM
        self._compared, self._window, self._edges = before + len(ms), window[-REMEMBERED:], drawn[-1]
        return np.array(drawn).reshape(len(drawn), -1)[block] if drawn[0] else np.zeros((len(ms), len(EDGES)))

    def carried(self) -> CarriedLatency:
        """What goes on in the next stage."""
        enough = self._is_judged and len(self._window) >= LEARNED_FROM
        edges = _quantiles(self._window) if enough else self._edges
        if not self._is_judged or self._slowness is None:
            return CarriedLatency(edges)
        harm, beyond = self._slowness.wealth
        return CarriedLatency(edges, harm, beyond, self._hung.wealth)

    @property
    def edges_ms(self) -> tuple[float, ...]:
        """Empty while they are learned."""
        return self._edges

    def counters(self) -> dict[str, HitCounter]:
        if not self._is_judged:
            return {}
        counters = {
            "over limit": self._over_limit,
            "hung": self._hung,
            "slower": self._first,
            "later than p90": self._late,
        }
        return {f"{self._measure.name} {what}": counter for what, counter in counters.items()}

    def counts(self) -> dict[str, Count]:
        """Of each of its gates."""
        counts = {gate: counter.count() for gate, counter in self.counters().items()}
        if not counts:
            return counts
        late, slower = self._measure.gate("later than p90"), self._measure.gate("slower")
        counts[late] = replace(counts[late], weighed=self._weights.weighed)
        if self._slowness is not None:
            (peak, beyond), (whole, whole_beyond) = (
                self._slowness.peak.tolist(),
                self._slowness.cumulative_peak.tolist(),
            )
            counts[slower] = replace(
                counts[slower],
                peak=peak,
                peak_beyond_margin=beyond,
                current=self._slowness.current,
                cumulative_peak=whole,
                cumulative_peak_beyond_margin=whole_beyond,
            )
        return counts

    def timing(self) -> Timing:
        stable, candidate = (sorted(times) for times in self._recent)
        return Timing(
            learned=sum(len(times) for _, times in self._learning),
            edges_ms=self._edges,
            recent_ms=tuple(percentile(times, percent) for times in (candidate, stable) for percent in (50, 95)),
            answers=(self._answers[1], self._answers[0]),
        )


RANKS = {count: [ceil(count * percent / 100) - 1 for percent in EDGES] for count in (LEARNED_FROM, REMEMBERED)}


def _quantiles(ms: Floats) -> tuple[float, ...]:
    """By nearest rank."""
    ranks = RANKS.get(len(ms)) or [ceil(len(ms) * percent / 100) - 1 for percent in EDGES]
    return tuple(np.sort(ms)[ranks].tolist())
