"""How strongly do the latencies of answers say that the candidate is slower than stable?

An answer lies in one of the bins between quantile edges, and a slower candidate has more of its answers in the later
ones. If the slots are alike, whose an answer is has nothing to do with its bin; but it is the user who is the
candidate's or not, and once that is known, the next answer of this user is no news. So there are two e-processes:

- On each user's first answer, after every answer. It is a martingale in what first answers tell of who is whose.
- On all answers of all users, at interim analyses that are fixed beforehand in answers of both slots. There each user is
  one draw: given all answers, the ratio `ratio ** is_candidate / (weight * ratio + 1 - weight)` is 1 on average, whatever
  the ratio is made of, and so is the product over users, who are drawn independently. No martingale joins two analyses,
  for labels are known by the second; but the parts of all analyses together are 1 on average at the end, and their sum
  never falls, so by Markov's inequality it ever reaches 1/alpha with a chance of alpha at most.

The first of them is also held over all stages so far: whoever was the candidate's in an earlier one is no draw any
more, and who was stable's is the candidate's with another chance than a user whom nobody saw.

The candidate's answers are put into bins by edges that are later by what is excused, which lowers their ratios, and
with them both e-processes. The edges are drawn from both slots, so that where those are alike they know of no slot.

The two e-processes know different things, so their wealth must not be pooled (Choe and Ramdas, arXiv 2402.09698: an
average of e-processes of two filtrations is none); each is held against its own part of the threshold.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import inf, log
from statistics import NormalDist

import numpy as np

from flows.policy.gating.design_effect import ALIKE_WITHIN
from flows.policy.gating.e_values import Flags, Floats, Ints, LabelEProcess, log_mean
from flows.policy.gating.evidence import EDGES
from flows.policy.gating.hits import peaks
from flows.policy.gating.outcomes import BUCKETS, NAMELESS


def _ratios(shift: float) -> tuple[float, ...]:
    """How many times as often as stable's a candidate's answers lie in each bin, shifted by so many deviations."""
    edges = [0.0, *(edge / 100 for edge in EDGES), 1.0]
    normal = NormalDist()
    shifted = [0.0, *(normal.cdf(normal.inv_cdf(edge) - shift) for edge in edges[1:-1]), 1.0]
    parts = zip(pairwise(shifted), pairwise(edges), strict=True)
    return tuple((high - low) / (to - begin) for (low, high), (begin, to) in parts)


SLOWER = (_ratios(0.36), _ratios(0.8), _ratios(1.6))
"""The alternatives: a little, half as much again, twice as slow, where times spread as is usual."""
ON_ALL = np.log(np.array(SLOWER[:2]))
"""Of all answers, as logarithms; twice as slow shows in first answers before anybody has given many."""
ON_FIRST = 0.75
"""Of the wealth, what is on first answers; the rest is on all."""
INTERIM_ANALYSES = tuple(round(1000 * 1.4**number) for number in range(14))
"""After so many answers of both slots all of them are analysed; each analysis has an equal part of the wealth."""


def first_answer_table(weight: float) -> Floats:
    """What a first answer adds to each log e-process, where the slots are alike: (bins, stable's or not, alternatives).

    One that pays more for the candidate's answers the later they are loses on average where the slots are alike, and
    more so where the candidate is the faster one.
    """
    ratios = np.array(SLOWER).T
    norm = np.log(weight * ratios + 1 - weight)
    return np.stack([-norm, np.log(ratios) - norm], axis=1)


class SlownessEProcesses:
    """The e-processes of one latency in one stage, as logarithms."""

    def __init__(self, chances: Sequence[float], initial: Sequence[float] = ()) -> None:
        """Beside the e-processes of the stage, that on first answers goes on which has `initial` wealth.

        `chances` of being the candidate's: the weight first, which is that of everybody for the stage's own.
        """
        self._weight = chances[0]
        tables = np.array([first_answer_table(chance) for chance in chances])
        self._first, self._all_stages = LabelEProcess(tables), LabelEProcess(tables, initial)
        self._goes_on = bool(initial)
        self._sums = np.zeros((len(ON_ALL), BUCKETS))
        self._answers, self._owner = np.zeros(BUCKETS, np.int64), np.full(BUCKETS, -1)
        self._is_candidate = np.zeros(BUCKETS, bool)
        self._nameless = np.zeros(len(ON_ALL))
        self._taken = self._analyses = 0
        self._last = self._sum = -inf
        self.peak = 0.0
        """The most that the e-processes of this stage ever were."""
        self.cumulative_peak = log(ON_FIRST) + self._all_stages.log_e_value if initial else 0.0
        """The most that the one was that goes on."""

    @property
    def current(self) -> float:
        """What it is now: of all answers once they were analysed, for they know of first answers as well."""
        return self._last if self._analyses else self._first.log_e_value

    @property
    def wealth(self) -> tuple[float, ...]:
        """What the e-process on first answers goes on with in the next stage."""
        return self._all_stages.wealth

    def take(
        self, bins: Ints, user: Ints, is_candidate: Flags, assignment: Ints, at: Ints, analyses: Ints
    ) -> tuple[Floats, Floats, Floats]:
        """Peak, current and cumulative peak at each interim analysis; `at` is when each of the answers was known."""
        bucket = np.where(user < 0, NAMELESS, user % BUCKETS)
        first = self._first_answers(bucket)
        path = self._first.take(np.zeros(len(first), np.int64), bins[first], is_candidate[first])
        rises, values = at[first], [path + log(ON_FIRST)]
        peak_before = self.peak
        peak = peaks(peak_before, rises, values[0], analyses)
        now = np.concatenate(([self.current if not self._analyses else self._last], path))
        current = now[np.searchsorted(rises, analyses)] if not self._analyses else np.full(len(analyses), self._last)
        self.peak = max(peak_before, float(values[0].max(initial=-inf)))
        cumulative = np.full(len(analyses), self.cumulative_peak)
        drawn = first[assignment[first] >= 0]
        whole = self._all_stages.take(assignment[drawn], bins[drawn], is_candidate[drawn]) + log(ON_FIRST)
        if self._goes_on:
            cumulative = peaks(self.cumulative_peak, at[drawn], whole, analyses)
            self.cumulative_peak = max(self.cumulative_peak, float(whole.max(initial=-inf)))
        begin = 0
        while begin < len(bins):
            left = INTERIM_ANALYSES[self._analyses] - self._taken if self._analyses < len(INTERIM_ANALYSES) else inf
            end = int(min(len(bins), begin + left))
            part = slice(begin, end)
            self._add(bins[part], user[part], is_candidate[part])
            if end - begin == left:
                e_value, after = self._analyse(), analyses > at[end - 1]
                current = np.where(after, self._last, current)
                peak = np.where(after, np.maximum(peak, e_value), peak)
            begin = end
        return peak, current, cumulative

    def _first_answers(self, bucket: Ints) -> Ints:
        """Which of these answers are their user's first."""
        named = np.flatnonzero(bucket != NAMELESS)
        new = named[self._answers[bucket[named]] == 0]
        firsts = new[np.unique(bucket[new], return_index=True)[1]]
        return np.sort(np.concatenate([firsts, np.flatnonzero(bucket == NAMELESS)]))

    def _add(self, bins: Ints, user: Ints, is_candidate: Flags) -> None:
        """To each user's ratio. Of two in one bucket the first counts: who, is settled without labels."""
        self._taken += len(bins)
        named = user >= 0
        if not named.all():
            ratios, mine = ON_ALL[:, bins[~named]], is_candidate[~named]
            self._nameless += self._of_users(ratios, mine)
        if not named.any():
            return
        bins, user, is_candidate = bins[named], user[named], is_candidate[named]
        bucket, owner = user % BUCKETS, user // BUCKETS
        unowned = np.flatnonzero(self._owner[bucket] < 0)[::-1]
        self._owner[bucket[unowned]] = owner[unowned]
        is_owner = self._owner[bucket] == owner
        bins, bucket, is_candidate = bins[is_owner], bucket[is_owner], is_candidate[is_owner]
        np.add.at(self._answers, bucket, 1)
        for sums, ratios in zip(self._sums, ON_ALL, strict=True):
            np.add.at(sums, bucket, ratios[bins])
        # Who changed the slot within a stage is whose he was last.
        self._is_candidate[bucket] = is_candidate

    def _of_users(self, ratios: Floats, is_candidate: Flags) -> Floats:
        return (ratios * is_candidate - np.log(self._weight * np.exp(ratios) + 1 - self._weight)).sum(axis=1)

    def _analyse(self) -> float:
        """The log e-value of all analyses so far: all users that have answers, each as one draw; n answers weigh by the design effect."""
        self._analyses += 1
        users = np.flatnonzero(self._answers)
        effect = 1 + ALIKE_WITHIN * (self._answers[users] - 1)
        total = self._of_users(self._sums[:, users] / effect, self._is_candidate[users]) + self._nameless
        self._last = float(log_mean(total))
        self._sum = float(np.logaddexp(self._sum, self._last - log(len(INTERIM_ANALYSES))))
        e_value = log(1 - ON_FIRST) + self._sum
        self.peak = max(self.peak, e_value)
        return e_value
