"""How often does each gate's event happen, and to whom? Each user's first hit, and the e-processes on them.

What is counted is users, for users are what the split distributes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from flows.policy.gating.e_values import (
    Flags,
    Floats,
    Hypotheses,
    Ints,
    LabelEProcess,
    log_e_value,
    log_likelihood_ratios,
    log_mean,
    log_wealth,
    multiplied,
    number_of,
    part_of_hits,
)
from flows.policy.gating.evidence import Count, Series
from flows.policy.gating.limits import Limits
from flows.policy.gating.outcomes import BUCKETS, NAMELESS

TIMES_STABLE = (3, 6, 10, 40)
TIMES_THE_LIMIT = (2, 4, 8, 16)
"""Alternatives of the e-processes on harm: a rate so many times stable's, or the limit."""
NEVER = np.iinfo(np.int64).max


def over_stable(weight: float, ratio: float = 1.0, times: Sequence[float] = TIMES_STABLE) -> Hypotheses:
    """The claim "the candidate's rate is no more than `ratio` times stable's", of its part of all hits."""
    return part_of_hits(weight, ratio), tuple(part_of_hits(weight, ratio * times) for times in times)


def over_limit(limit: float) -> Hypotheses:
    """The claim "the candidate's rate is within the limit"."""
    return limit, tuple(multiplied(limit, times) for times in TIMES_THE_LIMIT)


@dataclass(frozen=True)
class Wealth:
    """What the e-processes of one gate go on with in the next stage: of each alternative by itself, as logarithms."""

    harm: tuple[float, ...]
    over_ratio: tuple[float, ...]
    over_rate: tuple[float, ...]
    """The last two are against "a little more than stable" and "too rarely to matter"; empty where nothing is that."""

    @property
    def log_e_value(self) -> float:
        return float(log_mean(np.array(self.harm)))

    @property
    def beyond_margin(self) -> float:
        """Of the last two, whichever is less."""
        return min(float(log_mean(np.array(some))) for some in (self.over_ratio, self.over_rate) if some)


@dataclass(frozen=True)
class Trials:
    """Requests of both slots in which a gate's event may happen, as columns in order, and what is known of each."""

    is_candidate: Flags
    user: Ints
    """A hash of 32 bits; -1 where nobody is named."""
    bucket: Ints
    """Of the user; `NAMELESS` where nobody is named."""
    number: Ints
    """In the stage."""
    assignment: Ints
    """Which of the known chances of being the candidate's its user has; -1 where it is known whose he is."""
    counts: Flags
    """Whether it is one of the first few of its user in this round."""
    cell: Ints
    """The number of the candidate's cell that answered; -1 for stable's and for those of no known cell."""
    at: Ints
    """When it became known, on the time line of `analyses`."""
    analyses: Ints
    """When there are interim analyses; each knows of what became known before."""

    def __len__(self) -> int:
        return len(self.is_candidate)

    @cached_property
    def rows(self) -> Ints:
        """How many of these requests each interim analysis knows of."""
        return np.searchsorted(self.at, self.analyses)

    def some(self, rows: Ints | Flags | slice) -> "Trials":
        return Trials(*(getattr(self, name)[rows] for name in COLUMNS), analyses=self.analyses)

    def where(self, is_some: Flags) -> "Trials":
        return self if is_some.all() else self.some(np.flatnonzero(is_some))

    def each_for_itself(self) -> "Trials":
        """As if nobody were named: all answers of a user count."""
        return self if self.is_nameless else replace(self, bucket=np.full(len(self), NAMELESS))

    @cached_property
    def is_nameless(self) -> bool:
        return bool((self.bucket == NAMELESS).all())


COLUMNS = ("is_candidate", "user", "bucket", "number", "assignment", "counts", "cell", "at")


def joined(parts: Sequence[Trials], known_at: int, analyses: Ints) -> Trials:
    """One after the other; all of them became known at the same time."""
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
    return Trials(**{**columns, "at": np.full(len(columns["at"]), known_at)}, analyses=analyses)


def sampled(before: float, added: Ints | Floats | Flags, analyses: Ints) -> Floats:
    """A sum that was so much `before`, at each interim analysis."""
    sums = np.empty(len(added) + 1)
    sums[0] = before
    np.cumsum(added, out=sums[1:])
    sums[1:] += before
    return sums[analyses]


def peaks(before: float, at: Ints, values: Floats, analyses: Ints) -> Floats:
    """The most that e-values ever were which changed at these requests, at each interim analysis."""
    path = np.maximum.accumulate(np.concatenate(([before], values)))
    return path[np.searchsorted(at, analyses)]


@dataclass(frozen=True)
class Question:
    """How a gate asks for harm: beside stable by whose the hits are, alone by a rate; neither where it asks nothing."""

    weight: float
    limits: Limits
    alone: Hypotheses | None = None
    """The claim at 100 %."""
    is_asked: bool = True
    times: Sequence[float] = TIMES_STABLE
    """Beside stable, the alternatives."""
    has_margin: bool = True
    """False where the margins are in the hits already."""

    def e_values(self, hits: Floats, all_hits: Floats, of: Floats) -> tuple[Floats, Floats]:
        """The log e-values on harm, and on more than the margins excuse."""
        if not self.is_asked:
            return np.zeros(np.shape(hits)), np.zeros(np.shape(hits))
        if self.weight == 1:
            alone = np.zeros(np.shape(hits)) if self.alone is None else log_e_value(hits, of, self.alone)
            return alone, alone
        harm = log_e_value(hits, all_hits, over_stable(self.weight, 1.0, self.times))
        if not self.has_margin:
            return harm, harm
        beyond = log_e_value(hits, all_hits, over_stable(self.weight, self.limits.more_than_stable, self.times))
        if margin := self.limits.error_margin_percent / 100:
            beyond = np.minimum(beyond, log_e_value(hits, of, over_limit(margin)))
        return harm, beyond


class HitCounter:
    """Hits of both slots, the candidate's requests, and the e-processes on harm at their peak, of one gate."""

    def __init__(
        self,
        question: Question,
        chances: Sequence[float],
        initial: Wealth | None = None,
        *,
        cells: int = 0,
        allowed: float | None = None,
        goes_on: bool = False,
    ) -> None:
        """Beside the e-processes of the stage, those go on that have `initial` wealth; `chances` are of assignments.

        `allowed`: alone, the rate that is excused of what nobody promised, as far as it is known.
        """
        self._question, self._allowed = question, allowed
        self._first: Ints | None = None
        """The number of each bucket's first hit; None before there is one of somebody named."""
        self.hits = self.all_hits = self.of = self.all_of = self.counted = self.counted_hits = 0
        self._peak = self._beyond = 0.0
        self._penalty = 0.0
        self.cell_hits = np.zeros(cells, np.int64)
        self._goes_on = goes_on and question.is_asked and question.weight < 1
        self._initial = initial if self._goes_on else None
        if self._goes_on:
            ratios = (1.0, question.limits.more_than_stable)
            tables = [np.array([[log_likelihood_ratios(over_stable(c, ratio))] for c in chances]) for ratio in ratios]
            begun = (initial.harm, initial.over_ratio) if initial else ((), ())
            self._harm, self._over_ratio = (LabelEProcess(*one) for one in zip(tables, begun, strict=True))
            self._drawn_hits = self._drawn_of = 0
        self._cumulative = initial.log_e_value if initial else 0.0
        self._cumulative_beyond = initial.beyond_margin if initial else 0.0

    def begin_round(self, penalty: float) -> None:
        """Count anew, at a multiplicity penalty on the e-values; their peaks stay."""
        self._first = None
        self.hits = self.all_hits = self.of = self.all_of = self.counted = self.counted_hits = 0
        self._penalty = penalty

    def take(self, trials: Trials, hit: Flags) -> Series:
        if not self.all_hits and not hit.any():
            return self._take_no_hit(trials)
        is_candidate, analyses = trials.is_candidate, trials.rows
        live, new = self._first_hits(trials, hit)
        own, own_new = is_candidate & live, new & is_candidate
        zeros = np.zeros(len(analyses))
        of = sampled(self.of, own, analyses)
        hits, all_hits, counted_hits, current = zeros, zeros, zeros, zeros
        has_hits = bool(self.hits) or bool(own_new.any())
        if has_hits:
            hits, all_hits = sampled(self.hits, own_new, analyses), sampled(self.all_hits, new, analyses)
            counted_hits = sampled(self.counted_hits, own_new & trials.counts, analyses)
        counted = sampled(self.counted, own & trials.counts, analyses)
        cumulative = self._go_on(trials, live, new)
        peak, beyond = self._peaks(own, new, own_new, analyses)
        if has_hits and not self._penalty and self._question.is_asked and len(analyses):
            current = np.where(hits > 0, np.minimum(*self._question.e_values(hits, all_hits, of)), 0.0)
        self._add_up(live, new, own, own_new, trials.counts)
        if len(self.cell_hits) and has_hits:
            cells = trials.cell[own_new]
            self.cell_hits += np.bincount(cells[cells >= 0], minlength=len(self.cell_hits))
        return Series(
            hits=hits,
            all_hits=all_hits,
            of=of,
            counted=counted,
            counted_hits=counted_hits,
            peak=peak,
            peak_beyond_margin=beyond,
            current=current,
            cumulative_peak=cumulative[0],
            cumulative_peak_beyond_margin=cumulative[1],
            weighed_hits=zeros,
            weighed_all_hits=zeros,
            weighed_of=zeros,
            is_known=np.ones(len(analyses), bool),
        )

    def _take_no_hit(self, trials: Trials) -> Series:
        """There has been none yet: all users are without, and no e-value has risen in this stage."""
        is_candidate, number = trials.is_candidate, len(trials.analyses)
        own = number_of(is_candidate)
        zeros, of, counted = np.zeros(number), self.of, self.counted
        mine_counted = is_candidate & trials.counts
        self.of, self.all_of = of + own, self.all_of + len(trials)
        self.counted = counted + number_of(mine_counted)
        if self._goes_on:
            self._drawn_of += number_of(is_candidate & (trials.assignment >= 0))
        return Series(
            hits=zeros,
            all_hits=zeros,
            of=sampled(of, is_candidate, trials.rows),
            counted=sampled(counted, mine_counted, trials.rows),
            counted_hits=zeros,
            peak=zeros + self._peak,
            peak_beyond_margin=zeros + self._beyond,
            current=zeros,
            cumulative_peak=zeros + self._cumulative,
            cumulative_peak_beyond_margin=zeros + self._cumulative_beyond,
            weighed_hits=zeros,
            weighed_all_hits=zeros,
            weighed_of=zeros,
            is_known=np.ones(number, bool),
        )

    def _first_hits(self, trials: Trials, hit: Flags) -> tuple[Flags, Flags]:
        """Requests of users without a hit before, and those of them that are hits."""
        at = np.flatnonzero(hit)
        named = at[trials.bucket[at] != NAMELESS]
        if self._first is None:
            if not len(named):
                return np.ones(len(trials), bool), hit
            self._first = np.full(BUCKETS + 1, NEVER)
        bucket, number, first = trials.bucket, trials.number, self._first
        new = named[first[bucket[named]] == NEVER][::-1]
        first[bucket[new]] = number[new]
        live = number <= first[bucket]
        return live, hit & live

    def _peaks(self, own: Flags, new: Flags, own_new: Flags, analyses: Ints) -> tuple[Floats, Floats]:
        """E-values on harm rise at the candidate's hits alone, so this is an analysis after each request."""
        at = np.flatnonzero(own_new)
        if not len(at) or not self._question.is_asked:
            return np.full(len(analyses), self._peak), np.full(len(analyses), self._beyond)
        hits = self.hits + np.arange(1.0, len(at) + 1)
        all_hits, of = (
            begun + np.cumsum(some, dtype=np.float64)[at] for begun, some in ((self.all_hits, new), (self.of, own))
        )
        harm, beyond = self._question.e_values(hits, all_hits, of)
        both = [
            peaks(before, at, values - self._penalty, analyses)
            for before, values in ((self._peak, harm), (self._beyond, beyond))
        ]
        self._peak = max(self._peak, float(harm.max()) - self._penalty)
        self._beyond = max(self._beyond, float(beyond.max()) - self._penalty)
        return both[0], both[1]

    def _go_on(self, trials: Trials, live: Flags, new: Flags) -> tuple[Floats, Floats]:
        """The e-processes that go on, of those who are drawn: by the chance that each of them had."""
        is_candidate, analyses = trials.is_candidate, trials.rows
        flat = np.full(len(analyses), self._cumulative), np.full(len(analyses), self._cumulative_beyond)
        if not self._goes_on:
            return flat
        drawn = live & (trials.assignment >= 0)
        if not new.any():
            self._drawn_of += number_of(drawn & is_candidate)
            return flat
        at = np.flatnonzero(drawn & new)
        own, chance = is_candidate[at], trials.assignment[at]
        of = self._drawn_of + np.cumsum(drawn & is_candidate)
        hits = self._drawn_hits + np.cumsum(own)
        harm, over = self._harm.take(chance, 0, own), self._over_ratio.take(chance, 0, own)
        if self._initial is not None and own.any():
            over = np.minimum(over, self._over_rate(hits, of[at])) if self._initial.over_rate else over
            rises = at[own]
            flat = (
                peaks(self._cumulative, rises, harm[own], analyses),
                peaks(self._cumulative_beyond, rises, over[own], analyses),
            )
            self._cumulative = max(self._cumulative, float(harm[own].max()))
            self._cumulative_beyond = max(self._cumulative_beyond, float(over[own].max()))
        if len(of):
            self._drawn_of = int(of[-1])
        self._drawn_hits += int(own.sum())
        return flat

    def _over_rate(self, hits: Ints, of: Ints) -> Floats:
        return log_mean(self._wealth_over_rate(hits, of))

    def _wealth_over_rate(self, hits: Ints | int, of: Ints | int) -> Floats:
        margin = self._question.limits.error_margin_percent / 100
        wealth = log_wealth(np.asarray(hits, np.float64), np.asarray(of, np.float64), over_limit(margin))
        if self._initial is None:
            return wealth
        return wealth + np.array(self._initial.over_rate).reshape(-1, *[1] * np.ndim(hits))

    def _add_up(self, live: Flags, new: Flags, own: Flags, own_new: Flags, counts: Flags) -> None:
        self.of += number_of(own)
        self.all_of += number_of(live)
        self.counted += number_of(own & counts)
        if (all_hits := number_of(new)) > 0:
            self.all_hits += all_hits
            self.hits += number_of(own_new)
            self.counted_hits += number_of(own_new & counts)

    @property
    def wealth(self) -> Wealth | None:
        """What the e-processes go on with in the next stage; None where there are none."""
        if not self._goes_on:
            return None
        has_margin = self._question.limits.error_margin_percent > 0
        over_rate = self._wealth_over_rate(self._drawn_hits, self._drawn_of).tolist() if has_margin else []
        return Wealth(self._harm.wealth, self._over_ratio.wealth, tuple(over_rate))

    def count(self) -> Count:
        current = 0.0
        if self.hits and not self._penalty:
            counts = (float(count) for count in (self.hits, self.all_hits, self.of))
            harm, beyond = self._question.e_values(*(np.array(count) for count in counts))
            current = float(min(harm, beyond))
        return Count(
            hits=self.hits,
            all_hits=self.all_hits,
            of=self.of,
            counted=self.counted,
            counted_hits=self.counted_hits,
            peak=self._peak,
            peak_beyond_margin=self._beyond,
            current=current,
            cumulative_peak=self._cumulative,
            cumulative_peak_beyond_margin=self._cumulative_beyond,
            all_of=self.all_of,
            allowed=self._allowed,
        )
