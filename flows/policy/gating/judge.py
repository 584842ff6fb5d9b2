"""Requests in, evidence out: what a stage has shown so far. Batches of any size give the same evidence."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log
from typing import Self

import numpy as np

from blocks.ports.fleet import ModelKind
from blocks.ports.gateway import Outcome, RequestKind, Slot
from flows.policy.gating.e_values import Flags, Ints, confidence_interval, multiplied
from flows.policy.gating.evidence import CellCount, Count, Evidence, Series, Trajectory
from flows.policy.gating.hits import NEVER, HitCounter, Question, Trials, Wealth, over_limit, sampled
from flows.policy.gating.latency import CarriedLatency, Latency
from flows.policy.gating.limits import Limits
from flows.policy.gating.measures import MEASURES, EventMeasure, Measure, panel_of
from flows.policy.gating.outages import SharedOutages
from flows.policy.gating.outcomes import BUCKETS, KINDS, Batch, is_event, repeats

REQUESTS_A_USER = 25
"""As non-inferiority evidence, no user's requests count more often than this in a round."""
ROUND_REQUESTS = 2000
"""After so many requests of both slots it is forgotten who failed: a user who did long ago counts again as "lately"."""
TRAIL = 48
CANDIDATES = 255
"""In `Carried.seen`, beside the numbers of stages."""
EXCUSED_ALONE = 0.1
"""A rate of what is not promised that is excused at 100 %, however rare it was before, or `error_percent` if more.

There nobody can tell a model that refuses from a stranger who asks for it.
"""
SHOWN_FOR_SURE = 0.01
"""What was shown before is taken for as much as it may be: a rate over that has this chance, at all times together."""
TWICE_SHOWN = 2


def allowed_alone(hits: int, of: int, limits: Limits) -> float | None:
    """The rate of what nobody promised that is excused alone, after so many hits before; None where none can be told.

    Twice what was shown, and that is taken for as much as it may be.
    """
    if hits >= of:
        return None
    _, at_most = confidence_interval(hits, of, SHOWN_FOR_SURE)
    return max(EXCUSED_ALONE, limits.error_percent / 100, multiplied(at_most, TWICE_SHOWN))


@dataclass(frozen=True)
class Carried:
    """What one stage leaves to the next.

    E-processes go on, for a release that is a little worse shows it little by little. They stay fair by who was seen
    before: a user is assigned once in a release, and the candidate's weight only rises.
    """

    latencies: Mapping[str, CarriedLatency] = field(default_factory=dict[str, CarriedLatency])
    alpha: float = 0.0
    """Of the stage that the e-processes began in; 0 where there are none."""
    wealth: Mapping[str, Wealth] = field(default_factory=dict[str, Wealth])
    """By event measure."""
    weights: tuple[float, ...] = ()
    """The candidate's in the stages so far."""
    seen: bytes = bytes(BUCKETS)
    """Of each bucket's user, in which stage he was last seen as stable's, from 1 on, or that he is the candidate's."""
    owners: bytes = bytes(2 * BUCKETS)
    """Who is each bucket's user: the rest of his hash, in two bytes. Of others in the bucket nobody knows."""
    shown: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """Of each event: hits of both slots in all stages so far, and of how many requests."""
    answered: frozenset[RequestKind] = frozenset()
    """Kinds of requests that somebody was answered well to."""

    @classmethod
    def after(cls, stages: Iterable[Evidence], measures: Sequence[Measure] = MEASURES) -> Self:
        """What the ledger still knows of a release's stages, where a flow takes it up: no e-processes, and no users.

        Older stages do not know of how many requests their hits were, nor what was answered, and say nothing.
        """
        shown: dict[str, tuple[int, int]] = {}
        answered: set[RequestKind] = set()
        events = [one.name for one in measures if isinstance(one, EventMeasure)]
        for stage in stages:
            answered.update(stage.answered)
            for name in events:
                count = stage.count(name)
                if count.all_of:
                    shown[name] = _added(shown.get(name, (0, 0)), (count.all_hits, count.all_of))
        return cls(shown=shown, answered=frozenset(answered))

    def chances(self, weight: float) -> tuple[float, ...]:
        """Of being the candidate's now: of whom nobody saw, and of who was stable's in each stage so far."""
        return (weight, *((weight - before) / (1 - before) for before in self.weights))


def _added(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]


class Judge:
    """What one stage has shown so far; it takes no more room for a million requests than for ten."""

    def __init__(
        self,
        limits: Limits,
        candidate: Slot,
        *,
        weight: float,
        alpha: float = 1.0,
        carried: Carried | None = None,
        cells: Mapping[str, str] | None = None,
        kind: ModelKind = "chat",
        measures: tuple[Measure, ...] = MEASURES,
    ) -> None:
        """Go on with what the stage before left; `cells` tells which cell an address of the candidate is in."""
        self._limits, self._weight, self._alpha = limits, weight, alpha
        self._candidate: Slot = candidate
        self._kind: ModelKind = kind
        self._panel = panel_of(kind, limits, measures)
        self._cells = dict(cells or {})
        self._cell_names = sorted(set(self._cells.values()))
        self._cell_numbers = {address: self._cell_names.index(cell) for address, cell in self._cells.items()}
        self._dropped: set[str] = set()
        carried = carried or Carried()
        self._known = Carried(shown=carried.shown, answered=carried.answered)
        # Alone, no e-process is on whose something is, and none goes on.
        self._begin(carried if weight < 1 else self._what_is_known(carried.latencies))

    @property
    def limits(self) -> Limits:
        return self._limits

    def drop(self, cells: Sequence[str]) -> tuple[str, ...]:
        """Go on without these cells, and begin anew: what was seen so far was seen of the whole. Their addresses."""
        self._dropped.update(cells)
        self.begin_anew()
        return tuple(sorted(address for address, cell in self._cells.items() if cell in cells))

    def begin_anew(self) -> None:
        """Forget what was seen, as where some of it may have been lost; edges are still known."""
        edges = {name: CarriedLatency(latency.edges_ms) for name, latency in self._latencies.items()}
        self._begin(self._what_is_known(edges))

    def _what_is_known(self, latencies: Mapping[str, CarriedLatency]) -> Carried:
        """From the stages before, where no e-processes go on."""
        return replace(self._known, latencies={name: CarriedLatency(one.edges_ms) for name, one in latencies.items()})

    def _begin(self, carried: Carried) -> None:
        self._begun, limits = carried, self._limits
        chances, cells = carried.chances(self._weight), len(self._cell_names)
        self._arrived = self._taken = self._in_round = self._rounds = 0
        self._requests = self._stable_requests = self._users = self._tokens = self._stable_tokens = 0
        self._seen = np.frombuffer(carried.seen, np.uint8)
        self._owners = np.frombuffer(carried.owners, np.uint16).copy()
        self._is_stables, self._is_candidates = np.zeros(BUCKETS, bool), np.zeros(BUCKETS, bool)
        self._requests_of, self._is_counted = np.zeros(BUCKETS, np.int64), np.zeros(BUCKETS, bool)
        self._answered_at = np.array([-1 if kind in carried.answered else NEVER for kind in KINDS])
        self._cell_requests = np.zeros(cells, np.int64)
        self._trail: list[tuple[int, int]] = []
        self._trail_step = self._next_on_trail = 1
        self._events: dict[str, HitCounter] = {}
        self._lately: dict[str, HitCounter] = {}
        self._outages: dict[str, SharedOutages] = {}
        for one in self._panel.events:
            limit, allowed = one.limit(limits), None
            if limit is None and self._weight == 1 and one.name in carried.shown:
                allowed = allowed_alone(*carried.shown[one.name], limits)
            rate = limit if limit is not None else allowed
            question = Question(self._weight, limits, None if rate is None else over_limit(rate))
            self._events[one.name] = HitCounter(
                question, chances, carried.wealth.get(one.name), cells=cells, allowed=allowed, goes_on=True
            )
            if any(one.lately):
                self._lately[one.name] = HitCounter(question, chances)
                self._lately[one.name].begin_round(_penalty(0))
            if limit is not None:
                self._outages[one.name] = SharedOutages(over_limit(limit))
        self._latencies = {
            one.name: Latency(
                one, limits, self._weight, chances, carried.latencies.get(one.name, CarriedLatency()), cells=cells
            )
            for one in self._panel.shown_latencies
        }

    def take(self, outcomes: Iterable[Outcome], elapsed_seconds: float) -> None:
        """Take in requests that have ended by now, `elapsed_seconds` into the stage."""
        batch = Batch.of(outcomes, elapsed_seconds, self._candidate, self._panel, self._cell_numbers)
        if len(batch):
            self.take_batch(batch)

    def take_batch(self, batch: Batch, analyses: Ints | None = None) -> Trajectory:
        """Take in requests in order of time; the stage after each of so many of them, or after all."""
        if analyses is None:
            analyses = np.array([len(batch)])
        assignment = self._assign(batch)
        is_kept, is_promised = self._what_speaks(batch)
        kept = np.flatnonzero(is_kept)
        if len(kept) < len(batch):
            batch, assignment, is_promised = batch.some(kept), assignment[kept], is_promised[kept]
            analyses = np.searchsorted(kept, analyses)
        parts = [
            self._take_part(batch.some(part), assignment[part], is_promised[part], analyses[some] - part.start)
            for part, some in self._rounds_of(len(batch), analyses)
        ]
        if len(parts) == 1:
            return parts[0]
        series = {
            gate: Series(*(np.concatenate([getattr(part.series[gate], name) for part in parts]) for name in FIELDS))
            for gate in parts[0].series
        }
        return Trajectory(np.concatenate([part.requests for part in parts]), series)

    def _rounds_of(self, requests: int, analyses: Ints) -> Iterator[tuple[slice, Flags]]:
        """The requests of each round, and the interim analyses among them; one begins once the one before is full."""
        begin = 0
        while begin < requests or not begin:
            if self._in_round == ROUND_REQUESTS:
                self._begin_round()
            end = min(requests, begin + ROUND_REQUESTS - self._in_round)
            yield slice(begin, end), (analyses <= end) & ((analyses > begin) | (begin == 0))
            self._in_round += end - begin
            if end == begin:
                return
            begin = end

    def _begin_round(self) -> None:
        self._in_round, self._rounds = 0, self._rounds + 1
        self._requests_of[:] = 0
        for counter in self._lately.values():
            counter.begin_round(_penalty(self._rounds))

    def _assign(self, batch: Batch) -> Ints:
        """Which chance each request's user has of being the candidate's; -1 where it is known whose he is, or nothing.

        A request that began before the stage was sent by the split of before.
        """
        began_before, is_candidate = batch.began_seconds < 0, batch.is_candidate
        assignment = np.where(began_before, -1, 0)
        rows = np.flatnonzero((batch.user >= 0) & (is_candidate | ~began_before))
        bucket, owner, own = batch.bucket[rows], batch.owner[rows], is_candidate[rows]
        seen = self._seen[bucket].astype(np.int64)
        new = np.flatnonzero((seen == 0) & ~self._is_stables[bucket] & ~self._is_candidates[bucket])[::-1]
        self._owners[bucket[new]] = owner[new]
        is_owner = self._owners[bucket] == owner
        self._is_candidates[bucket[is_owner & own]] = True
        self._is_stables[bucket[is_owner & ~own]] = True
        is_drawn = ~began_before[rows] & ((seen == 0) | (is_owner & (seen != CANDIDATES)))
        assignment[rows] = np.where(is_drawn, seen, -1)
        return assignment

    def _what_speaks(self, batch: Batch) -> tuple[Flags, Flags]:
        """Which requests say something, and which of those are of a kind that is promised to be answered.

        A chat model cannot embed, and anybody may ask it to. So a refusal speaks once somebody was answered well to
        that kind, in either slot, for an e-process is unfair where whose a request is decides if it counts. A failure
        speaks at once beside stable, for it would come to both; alone, only where nothing was shown before. And of a
        kind that nobody was answered to, where others were, it breaks no promise.
        """
        number = self._arrived + np.arange(len(batch))
        self._arrived += len(batch)
        is_kept = np.ones(len(batch), bool)
        if self._dropped:
            dropped = [number for number, name in enumerate(self._cell_names) if name in self._dropped]
            is_kept &= ~np.isin(batch.cell, dropped)
        answered = is_kept & is_event(batch, "answered")
        for kind in set(batch.kind[answered].tolist()):
            if self._answered_at[kind] == NEVER:
                self._answered_at[kind] = number[np.argmax(answered & (batch.kind == kind))]
        is_known = number >= self._answered_at[batch.kind]
        says_nothing = is_event(batch, "refused")
        if self._weight == 1 and self._known.answered:
            says_nothing |= is_event(batch, "failed")
        return is_kept & (is_known | ~says_nothing), is_known | (number < self._answered_at.min())

    def _take_part(self, batch: Batch, assignment: Ints, is_promised: Flags, analyses: Ints) -> Trajectory:
        """Requests of one round."""
        is_candidate = batch.is_candidate
        has_stayed = ~is_event(batch, "left") & ~is_event(batch, "left midway")
        is_refused = is_event(batch, "refused")
        requests = sampled(self._requests, has_stayed & is_candidate, analyses)
        self._add_up(batch, has_stayed)
        trials = Trials(
            is_candidate=is_candidate,
            user=batch.user,
            bucket=batch.bucket,
            number=self._taken + np.arange(len(batch)),
            assignment=assignment,
            counts=self._count_requests(batch, has_stayed & ~is_refused) & is_promised,
            cell=batch.cell,
            at=np.arange(len(batch)),
            analyses=analyses,
        )
        self._taken += len(batch)
        series: dict[str, Series] = {}
        for one in self._panel.events:
            series |= self._take_event(one, batch, trials, is_promised)
        is_warm = batch.began_seconds >= self._limits.warm_up_seconds
        answers = is_warm & is_event(batch, "answered")
        for name, latency in self._latencies.items():
            ms = batch.ms[name]
            is_timed = answers & ~np.isnan(ms)
            series |= latency.take(trials.where(is_timed), ms[is_timed])
        return Trajectory(requests, series)

    def _take_event(self, measure: EventMeasure, batch: Batch, trials: Trials, is_promised: Flags) -> dict[str, Series]:
        name, is_trial, hit = measure.name, batch.trials[measure.name], batch.hits[measure.name]
        # Beside stable, whose a request is that the split of before has sent is no news of this one.
        is_drawn = is_trial & (batch.began_seconds >= 0) if self._weight < 1 else is_trial
        drawn, its_hits, counter = trials.where(is_drawn), hit[is_drawn], self._events[name]
        series = {name: counter.take(drawn, its_hits)}
        if name in self._lately:
            series[measure.lately_name] = self._lately[name].take(drawn, its_hits)
        if (outages := self._outages.get(name)) is not None:
            self._leave_a_trail(counter)
            start = outages.counted, outages.hits
            is_news = is_trial & is_promised
            some = trials.where(is_news)
            paths = outages.take(some.bucket, some.is_candidate, hit[is_news], some.counts)
            counted, hits = (
                np.concatenate(([begun], path))[some.rows].astype(np.float64)
                for begun, path in zip(start, paths, strict=True)
            )
            series[name] = replace(series[name], counted=counted, counted_hits=hits)
        return series

    def _add_up(self, batch: Batch, has_stayed: Flags) -> None:
        is_candidate = batch.is_candidate
        own = has_stayed & is_candidate
        requests = int(own.sum())
        self._requests += requests
        self._stable_requests += int(has_stayed.sum()) - requests
        tokens = int(batch.tokens[own].sum())
        self._tokens += tokens
        self._stable_tokens += int(batch.tokens[has_stayed].sum()) - tokens
        if len(self._cell_requests):
            self._cell_requests += np.bincount(batch.cell[batch.cell >= 0], minlength=len(self._cell_requests))

    def _count_requests(self, batch: Batch, is_answer: Flags) -> Flags:
        """Whether each request is one of the first few of its user in this round."""
        rows = np.flatnonzero(is_answer & (batch.user >= 0))
        bucket, counts = batch.bucket[rows], np.ones(len(batch), bool)
        order, earlier = repeats(bucket)
        counts[rows[order]] = self._requests_of[bucket[order]] + earlier < REQUESTS_A_USER
        np.add.at(self._requests_of, bucket, 1)
        own = bucket[counts[rows] & batch.is_candidate[rows]]
        self._users += len(set(own[~self._is_counted[own]].tolist()))
        self._is_counted[own] = True
        self._users += int((is_answer & batch.is_candidate & (batch.user < 0)).sum())
        return counts

    def _leave_a_trail(self, counter: HitCounter) -> None:
        """For the board's picture: every so many requests, and half as often each time that there are too many."""
        if counter.of >= self._next_on_trail:
            self._trail.append((counter.of, counter.hits))
            if len(self._trail) == TRAIL:
                self._trail, self._trail_step = self._trail[1::2], self._trail_step * 2
            self._next_on_trail = counter.of + self._trail_step

    @property
    def edges_ms(self) -> dict[str, tuple[float, ...]]:
        """Of each latency; none of one whose edges are still to be learned."""
        return {name: latency.edges_ms for name, latency in self._latencies.items()}

    def carried(self) -> Carried:
        """What goes on in the next stage."""
        number = len(self._begun.weights) + 1
        seen = np.where(self._is_stables, np.uint8(number), self._seen)
        return Carried(
            latencies={name: latency.carried() for name, latency in self._latencies.items()},
            alpha=self._begun.alpha or self._alpha,
            wealth={name: wealth for name, one in self._events.items() if (wealth := one.wealth)},
            weights=(*self._begun.weights, self._weight),
            seen=np.where(self._is_candidates, np.uint8(CANDIDATES), seen).astype(np.uint8).tobytes(),
            owners=self._owners.tobytes(),
            shown=self._shown(),
            answered=self._answered,
        )

    def _shown(self) -> dict[str, tuple[int, int]]:
        """In all stages so far."""
        before = self._known.shown
        return {
            name: _added(before.get(name, (0, 0)), (self._events[name].all_hits, self._events[name].all_of))
            for name in self._events
        }

    @property
    def _answered(self) -> frozenset[RequestKind]:
        known = zip(KINDS, self._answered_at.tolist(), strict=True)
        return frozenset(kind for kind, at in known if at < self._arrived)

    def _counts(self) -> dict[str, Count]:
        counts: dict[str, Count] = {}
        for one in self._panel.events:
            counts[one.name] = self._events[one.name].count()
            if one.name in self._outages:
                good = self._outages[one.name]
                counts[one.name] = replace(
                    counts[one.name],
                    counted=good.counted,
                    counted_hits=good.hits,
                    set_aside=good.set_aside,
                    set_aside_hits=good.set_aside_hits,
                )
            if one.name in self._lately:
                counts[one.lately_name] = self._lately[one.name].count()
        for latency in self._latencies.values():
            counts |= latency.counts()
        return counts

    def evidence(self) -> Evidence:
        return Evidence(
            weight=self._weight,
            alpha=self._alpha,
            cumulative_alpha=self._begun.alpha,
            requests=self._requests,
            stable_requests=self._stable_requests,
            users=self._users,
            counts=self._counts(),
            cells={
                name: CellCount(requests, self._hits_of_cell(number))
                for number, (name, requests) in enumerate(
                    zip(self._cell_names, self._cell_requests.tolist(), strict=True)
                )
                if requests
            },
            trail=tuple(self._trail),
            dropped=tuple(sorted(self._dropped)),
            timings={name: latency.timing() for name, latency in self._latencies.items()},
            tokens=self._tokens,
            stable_tokens=self._stable_tokens,
            answered=tuple(sorted(self._answered)),
            kind=self._kind,
        )

    def _hits_of_cell(self, number: int) -> dict[str, int]:
        counters = dict(self._events)
        for latency in self._latencies.values():
            counters |= latency.counters()
        return {
            gate: int(one.cell_hits[number])
            for gate, one in counters.items()
            if len(one.cell_hits) and one.cell_hits[number]
        }


FIELDS = tuple(Series.__dataclass_fields__)


def _penalty(rounds: int) -> float:
    """The multiplicity penalty: a later round has a smaller part of alpha, or a long stage would run out of it.

    1/2, 1/6, 1/12 …
    """
    return log((rounds + 1) * (rounds + 2))
