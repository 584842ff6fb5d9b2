"""The judge of flows.policy for a whole stage at once: the same rulings at the same requests, in arrays.

`tests/benchmarks/test_gates.py` plays the same streams to both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.gates_worlds import Flags, Floats, Harm, Ints, Stream
from flows.policy.bets import share_at
from flows.policy.gates import SUSPICIOUS, Verdict
from flows.policy.judge import REQUESTS_A_USER, ROUND_REQUESTS
from flows.policy.latency import REMEMBERED
from flows.policy.measures import (
    FRACTIONS_OF_STABLE,
    FRACTIONS_OF_THE_LIMIT,
    HARM_THAT_MATTERS,
    HUNG_TIMES_P90,
    LATER_THAN_P90,
    LEARNED_FROM,
    LINES,
    P90,
    TIME_OF,
    TIMES,
    TIMES_STABLE,
    TIMES_THE_LIMIT,
    Limits,
    Measure,
    Time,
    limit_of,
    parts_of,
    percentile,
    slowness_of,
)

LOOK_EVERY = 20
"""Requests of both slots between two looks: production looks once a second, whatever has come by then."""


@dataclass(frozen=True)
class Held:
    """How a stage ended."""

    verdict: Verdict
    """`hold` where the requests were not enough to rule."""
    at: int
    """After so many requests of both slots."""
    gate: str
    slow_ms: dict[Time, tuple[float, ...]]
    """For the next stage."""


@dataclass(frozen=True)
class _Counts:
    """Of one measure after each request: the arrays behind `measures.Count`, and where the candidate's hits are."""

    hits: Ints
    all_hits: Ints
    of: Ints
    counted: Ints
    counted_hits: Ints
    events: Ints


@dataclass(frozen=True)
class _Timed:
    """Of one time after each request: what is counted of it, and what the bets on slowness are worth."""

    time: Time
    ms: Floats
    counts: dict[Measure, _Counts]
    slowness: Floats
    learned_at: int
    slow_ms: tuple[float, ...]


def hold(
    stream: Stream,
    harm: Harm,
    limits: Limits,
    *,
    share: float,
    budget: float,
    slow_ms: Mapping[Time, Sequence[float]],
    since: float,
) -> Held:
    """Rule on one stage that begins at `since` with the first of these requests."""
    mine = stream.user_luck < share
    failed = stream.failed(mine, harm)
    looks = np.arange(LOOK_EVERY, len(stream) + 1, LOOK_EVERY) - 1
    rounds = np.arange(len(stream)) // ROUND_REQUESTS
    good = _ranked(stream.place + rounds * (stream.place.max() + 1)) < REQUESTS_A_USER
    times = (stream.first_token_ms(mine, harm), stream.token_ms(mine, harm))
    timed = [
        _timed(time, ms, stream.place, mine, ~failed, good, share, limits, slow_ms.get(time, ()))
        for time, ms in zip(TIMES, times, strict=True)
    ]
    counts: dict[Measure, _Counts] = {"failed": _count(stream.place, mine, failed, good)}
    for one in timed:
        counts |= one.counts

    def bar(part: Measure) -> float:
        return float(-np.log(limits.false_alarm_percent / 100 * budget * parts_of(share, limits)[part]))

    crossings = [(len(stream), "")]
    for measure, count in counts.items():
        if (
            measure in parts_of(share, limits)
            and (over := count.events[_harm(measure, count, share, limits) >= bar(measure)]).size
        ):
            learned_at = next((one.learned_at for one in timed if one.time.hung == measure), 0)
            crossings.append((max(int(over[0]), learned_at), measure))
    crossings += _lately(stream.place, mine, failed, share, limits, bar("failed lately"))
    elapsed = stream.seconds[looks] - since
    passing = (elapsed >= limits.minimum_seconds) & (_sums(mine)[looks] >= limits.minimum_requests)
    passing &= _is_good_news(counts, looks, share, limits, bar)
    for one in timed if share < 1 else ():
        if (over := np.flatnonzero(one.slowness >= bar(one.time.slow))).size:
            crossings.append((max(int(over[0]), one.learned_at), one.time.slow))
        passing &= one.slowness[looks] < bar(one.time.slow) - SUSPICIOUS
        passing &= _is_like_stable(one, looks, share, limits)
    harm_at, gate = min(crossings)
    overdue = elapsed >= limits.deadline_seconds
    pass_look, late_look = (int(np.argmax(these)) if these.any() else len(looks) for these in (passing, overdue))
    harm_look = int(np.searchsorted(looks, harm_at))
    look = min(pass_look, late_look, harm_look)
    if look == len(looks):
        return Held("hold", len(stream), "", {})
    if look == harm_look:
        return Held("roll back", int(looks[look]) + 1, gate, {})
    if look < pass_look:
        return Held("roll back", int(looks[look]) + 1, "deadline", {})
    end = int(looks[look]) + 1
    return Held("promote", end, "", {one.time: _next_lines(one, (~mine & ~failed)[:end]) for one in timed})


def _timed(
    time: Time,
    ms: Floats,
    place: Ints,
    mine: Flags,
    answered: Flags,
    good: Flags,
    share: float,
    limits: Limits,
    slow_ms: Sequence[float],
) -> _Timed:
    counts: dict[Measure, _Counts] = {}
    if (limit_ms := time.limit_ms(limits)) is not None:
        counts[time.late] = _count(place, mine & answered, (ms > limit_ms) & mine & answered, good)
    learned_at = 0
    if not slow_ms:
        learning = np.flatnonzero(answered)[:LEARNED_FROM]
        if len(learning) < LEARNED_FROM:
            return _Timed(time, ms, counts, np.zeros(len(ms)), 0, ())
        learned_at = int(learning[-1])
        slow_ms = tuple(percentile(np.sort(ms[learning]).tolist(), p) or 0.0 for p in LINES)
    lines, own = np.array(slow_ms), np.array([time.allowed_ms(line, limits) for line in slow_ms])
    p90 = np.where(mine, own[P90], lines[P90])
    later = good & answered & (ms > p90)
    counted, hits = _sums(good & mine & answered), _sums(later & mine)
    counts[time.later] = _Counts(hits, _sums(later), counted, counted, hits, np.flatnonzero(later & mine))
    counts[time.hung] = _count(place, mine & answered, answered & (ms > HUNG_TIMES_P90 * p90), good)
    slowness = _slowness(place, mine, answered, ms, lines, own, share)
    return _Timed(time, ms, counts, slowness, learned_at, tuple(slow_ms))


def _next_lines(timed: _Timed, stables: Flags) -> tuple[float, ...]:
    times = np.sort(timed.ms[: len(stables)][stables][-REMEMBERED:]).tolist()
    if len(times) >= LEARNED_FROM:
        return tuple(percentile(times, percent) or 0.0 for percent in LINES)
    return timed.slow_ms


def _ranked(place: Ints) -> Ints:
    """For each request, how many its user has sent before."""
    order = np.argsort(place, kind="stable")
    ordered = place[order]
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    ranks = np.empty(len(place), np.int64)
    ranks[order] = np.arange(len(place)) - np.repeat(begins, np.diff(np.r_[begins, len(place)]))
    return ranks


def _count(place: Ints, trials: Flags, hit: Flags, good: Flags) -> _Counts:
    at = np.flatnonzero(hit)
    users, first = np.unique(place[at], return_index=True)
    first_hit = np.full(len(place), len(place))
    if len(users):
        found = np.minimum(np.searchsorted(users, place), len(users) - 1)
        first_hit = np.where(users[found] == place, at[first][found], len(place))
    index = np.arange(len(place))
    live = index <= first_hit
    new = index == first_hit
    events = np.flatnonzero(new & trials)
    return _Counts(
        hits=_sums(new & trials),
        all_hits=_sums(new),
        of=_sums(live & trials),
        counted=_sums(live & trials & good),
        counted_hits=_sums(new & trials & good),
        events=events,
    )


def _slowness(
    place: Ints, mine: Flags, answered: Flags, ms: Floats, lines: Floats, own: Floats, share: float
) -> Floats:
    """What the bets on slowness are worth after each request."""
    at = np.flatnonzero(answered)
    at = np.sort(at[np.unique(place[at], return_index=True)[1]])
    band = np.where(mine[at], np.searchsorted(own, ms[at]), np.searchsorted(lines, ms[at]))
    table = np.array(slowness_of(share))
    added = np.zeros((len(table), len(place)))
    added[:, at] = table[:, band, mine[at].astype(np.int64)]
    return np.logaddexp.reduce(np.cumsum(added, axis=1)) - np.log(len(table))


def _sums(these: Flags) -> Ints:
    return np.cumsum(these, dtype=np.int64)


def worth(hits: Ints | int, of: Ints | int, null: float, others: Sequence[float]) -> Floats:
    """`flows.policy.bets.worth`, of arrays."""
    misses = np.asarray(of) - hits
    worths = np.stack([hits * np.log(p / null) + misses * (np.log1p(-p) - np.log1p(-null)) for p in others])
    return np.logaddexp.reduce(worths) - np.log(len(others))


def _times(rate: float, times: float) -> float:
    return min(rate * times, 1 - (1 - rate) / times)


def _above_limit(hits: Ints, of: Ints, limit: float) -> Floats:
    return worth(hits, of, limit, [_times(limit, times) for times in TIMES_THE_LIMIT])


def _above_stable(measure: Measure, hits: Ints, all_hits: Ints, of: Ints, share: float, limits: Limits) -> Floats:
    ratio = limits.more_than_stable
    others = [share_at(share, ratio * times) for times in TIMES_STABLE[measure]]
    more = worth(hits, all_hits, share_at(share, ratio), others)
    if not limits.error_margin_percent:
        return more
    return np.minimum(more, _above_limit(hits, of, limits.error_margin_percent / 100))


def _harm(measure: Measure, count: _Counts, share: float, limits: Limits) -> Floats:
    """What the bet on harm is worth at each of the candidate's hits."""
    return _worth_of_harm(measure, count, count.events, share, limits)


def _worth_of_harm(measure: Measure, count: _Counts, at: Ints, share: float, limits: Limits) -> Floats:
    if share < 1:
        return _above_stable(measure, count.hits[at], count.all_hits[at], count.of[at], share, limits)
    limit = limit_of(measure, limits)
    if limit is None:
        return np.zeros(len(at))
    return _above_limit(count.hits[at], count.of[at], limit * HARM_THAT_MATTERS if measure in TIME_OF else limit)


def _lately(place: Ints, mine: Flags, failed: Flags, share: float, limits: Limits, bar: float) -> list[tuple[int, str]]:
    """Where the bets of each round cross their bars."""
    crossings: list[tuple[int, str]] = []
    for number, begin in enumerate(range(0, len(place), ROUND_REQUESTS)):
        part = slice(begin, begin + ROUND_REQUESTS)
        if not (failed[part] & mine[part]).any():
            continue
        count = _count(place[part], mine[part], failed[part], mine[part])
        harm = _harm("failed lately", count, share, limits) - np.log((number + 1) * (number + 2))
        if (over := count.events[harm >= bar]).size:
            crossings.append((begin + int(over[0]), "failed lately"))
    return crossings


def _is_good_news(
    counts: dict[Measure, _Counts], looks: Ints, share: float, limits: Limits, bar: Callable[[Measure], float]
) -> Flags:
    """At which looks every limit is kept and nothing is suspicious."""
    sure = -np.log(limits.missed_harm_percent / 100)
    good = np.ones(len(looks), bool)
    for measure, count in counts.items():
        if (limit := limit_of(measure, limits)) is not None:
            others = [limit * fraction for fraction in FRACTIONS_OF_THE_LIMIT]
            null = _times(limit, HARM_THAT_MATTERS)
            good &= worth(count.counted_hits[looks], count.counted[looks], null, others) >= sure
        if measure in parts_of(share, limits):
            now = np.where(count.hits[looks] > 0, _worth_of_harm(measure, count, looks, share, limits), 0.0)
            good &= now < bar(measure) - SUSPICIOUS
    return good


def _is_like_stable(timed: _Timed, looks: Ints, share: float, limits: Limits) -> Flags:
    """At which looks the candidate is plainly not later than stable's p90 twice as often as stable."""
    if not timed.slow_ms:
        return np.zeros(len(looks), bool)
    count = timed.counts[timed.time.later]
    hits, all_hits, counted = count.hits[looks], count.all_hits[looks], count.counted[looks]
    fractions = [share_at(share, f) for f in FRACTIONS_OF_STABLE]
    beside = worth(hits, all_hits, share_at(share, HARM_THAT_MATTERS), fractions)
    others = [LATER_THAN_P90 * fraction for fraction in FRACTIONS_OF_STABLE]
    alone = worth(hits, counted, LATER_THAN_P90 * HARM_THAT_MATTERS, others)
    sure = -np.log(limits.missed_harm_percent / 100)
    return (np.logaddexp(beside + np.log(4), alone) - np.log(5) >= sure) & (looks >= timed.learned_at)
