"""How strongly do the latencies of answers say that the candidate is slower than stable?

An answer lies in one of the bins between quantile edges, and a slower candidate has more of its answers in the later
ones. If the slots are alike, whose an answer is has nothing to do with its bin; but it is the user who is the
candidate's or not, and once that is known, the next answer of this user is no news. So there are two e-processes:

- On each user's first answer, after every answer. It is a martingale in what first answers tell of who is whose.
- On all answers of all users, at interim analyses that are fixed beforehand in answers of both slots. There each user
  is one draw: given all answers, the ratio `ratio ** is_candidate / (weight * ratio + 1 - weight)` is 1 on average,
  whatever the ratio is made of, and so is the product over users, who are drawn independently. No martingale joins two
  analyses, for labels are known by the second; but the parts of all analyses together are 1 on average at the end, and
  their sum never falls, so by Markov's inequality it ever reaches 1/alpha with a chance of alpha at most.

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
from flows.policy.gating.hits import Trials, peaks
from flows.policy.gating.outcomes import BUCKETS


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


QUESTIONS = ("slower", "beyond the margin")


def first_answer_table(weight: float) -> Floats:
    """What a first answer adds to each log e-process, where the slots are alike: (bins, stable's or not, alternatives).

    One that pays more for the candidate's answers the later they are loses on average where the slots are alike, and
    more so where the candidate is the faster one.
    """
    ratios = np.array(SLOWER).T
    norm = np.log(weight * ratios + 1 - weight)
    return np.stack([-norm, np.log(ratios) - norm], axis=1)


class SlownessEProcesses:
    """The two e-processes of one latency in one stage, each by two questions, as logarithms.

    The questions are "slower at all" and "slower than margins excuse"; where there are two numbers, they are theirs.
    """

    def __init__(self, chances: Sequence[float], initial: Sequence[Sequence[float]] = ((), ())) -> None:
        """Beside the e-processes of the stage, those on first answers go on that have `initial` wealth.

        `chances` of being the candidate's: the weight first, which is that of everybody for the stage's own.
        """
        self._weight = chances[0]
        tables = np.array([first_answer_table(chance) for chance in chances])
        self._first = [LabelEProcess(tables) for _ in QUESTIONS]
        self._all_stages = [LabelEProcess(tables, wealth) for wealth in initial]
        self._goes_on = all(initial)
        self._sums = np.zeros((len(QUESTIONS) * len(ON_ALL), BUCKETS))
        self._answers, self._owner = np.zeros(BUCKETS, np.int32), np.zeros(BUCKETS, np.int32)
        self._is_candidate = np.zeros(BUCKETS, bool)
        self._nameless = np.zeros(len(self._sums))
        self._taken = self._analyses = 0
        self._last, self._sum = np.full(len(QUESTIONS), -inf), np.full(len(QUESTIONS), -inf)
        self.peak = np.zeros(len(QUESTIONS))
        """The most that the e-processes of this stage ever were."""
        began = [log(ON_FIRST) + one.log_e_value for one in self._all_stages]
        self.cumulative_peak = np.array(began) if self._goes_on else np.zeros(len(QUESTIONS))
        """The most that those were that go on."""

    @property
    def current(self) -> float:
        """The lesser of the two now: of all answers once they were analysed, for they know of first answers as well."""
        return float(min(self._last)) if self._analyses else min(one.log_e_value for one in self._first)

    @property
    def wealth(self) -> tuple[tuple[float, ...], ...]:
        """What the e-processes on first answers go on with in the next stage."""
        return tuple(one.wealth for one in self._all_stages)

    def take(self, bins: Ints, trials: Trials, first: Ints) -> tuple[Floats, Floats, Floats]:
        """Peaks, the lesser of the two now, and cumulative peaks at each interim analysis: (2, analyses) but for that.

        `bins` of each answer by each question; `first` are the answers that are their users' first.
        """
        is_candidate, at, analyses = trials.is_candidate[first], trials.at[first], trials.analyses
        before, own = self.current, np.zeros(len(first), np.int64)
        paths = np.array([p.take(own, some, is_candidate) for p, some in zip(self._first, bins[:, first], strict=True)])
        peak = self._peaks(self.peak, at, paths, analyses)
        if self._analyses:
            current = np.full(len(analyses), before)
        else:
            current = np.concatenate(([before], paths.min(axis=0)))[np.searchsorted(at, analyses)]
        cumulative = np.repeat(self.cumulative_peak[:, None], len(analyses), axis=1)
        drawn = np.flatnonzero(trials.assignment[first] >= 0)
        chance, drawn_bins = trials.assignment[first[drawn]], bins[:, first[drawn]]
        whole = np.array(
            [
                process.take(chance, some, is_candidate[drawn])
                for process, some in zip(self._all_stages, drawn_bins, strict=True)
            ]
        )
        if self._goes_on:
            cumulative = self._peaks(self.cumulative_peak, at[drawn], whole, analyses)
        self._take_all(bins, trials, peak, current)
        return peak, current, cumulative

    @staticmethod
    def _peaks(known: Floats, at: Ints, paths: Floats, analyses: Ints) -> Floats:
        """The most that those on first answers ever were at each interim analysis; `known` is what it was, and is."""
        found = np.array(
            [peaks(most, at, path + log(ON_FIRST), analyses) for most, path in zip(known, paths, strict=True)]
        )
        if paths.shape[1]:
            np.maximum(known, paths.max(axis=1) + log(ON_FIRST), out=known)
        return found

    def _take_all(self, bins: Ints, trials: Trials, peak: Floats, current: Floats) -> None:
        """Take in all answers; where they are analysed, what was known until then is set right."""
        begin, answers = 0, len(trials)
        while begin < answers:
            left = INTERIM_ANALYSES[self._analyses] - self._taken if self._analyses < len(INTERIM_ANALYSES) else answers
            end = min(answers, begin + left)
            part = slice(begin, end)
            self._add(bins[:, part], trials.user[part], trials.is_candidate[part])
            if end - begin == left and self._analyses < len(INTERIM_ANALYSES):
                e_values, after = self._analyse(), trials.analyses > trials.at[end - 1]
                current[after] = min(self._last)
                peak[:, after] = np.maximum(peak[:, after], e_values[:, None])
            begin = end

    def _add(self, bins: Ints, user: Ints, is_candidate: Flags) -> None:
        """To each user's ratio. Of two in one bucket the first counts: who, is settled without labels."""
        self._taken += len(user)
        named = user >= 0
        if not named.all():
            ratios = np.concatenate([ON_ALL[:, some[~named]] for some in bins])
            self._nameless += self._of_users(ratios, is_candidate[~named])
            bins, user, is_candidate = bins[:, named], user[named], is_candidate[named]
        if not len(user):
            return
        bucket, owner = user % BUCKETS, user // BUCKETS
        unowned = np.flatnonzero(self._answers[bucket] == 0)[::-1]
        self._owner[bucket[unowned]] = owner[unowned]
        is_owner = self._owner[bucket] == owner
        if not is_owner.all():
            bins, bucket, is_candidate = bins[:, is_owner], bucket[is_owner], is_candidate[is_owner]
        np.add.at(self._answers, bucket, 1)
        ratios = np.concatenate([ON_ALL[:, some] for some in bins])
        for sums, added in zip(self._sums, ratios, strict=True):
            np.add.at(sums, bucket, added)
        # Who changed the slot within a stage is whose he was last.
        self._is_candidate[bucket] = is_candidate

    def _of_users(self, ratios: Floats, is_candidate: Flags) -> Floats:
        return (ratios * is_candidate - np.log(self._weight * np.exp(ratios) + 1 - self._weight)).sum(axis=1)

    def _analyse(self) -> Floats:
        """The log e-values of all analyses so far: all users as one draw each; n answers weigh by the design effect."""
        self._analyses += 1
        users = np.flatnonzero(self._answers)
        effect = 1 + ALIKE_WITHIN * (self._answers[users] - 1)
        total = self._of_users(self._sums[:, users] / effect, self._is_candidate[users]) + self._nameless
        self._last = log_mean(total.reshape(len(QUESTIONS), -1).T)
        self._sum = np.logaddexp(self._sum, self._last - log(len(INTERIM_ANALYSES)))
        e_values = log(1 - ON_FIRST) + self._sum
        np.maximum(self.peak, e_values, out=self.peak)
        return e_values
