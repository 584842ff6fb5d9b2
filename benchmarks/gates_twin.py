"""The judge of flows.policy for a whole stage at once: the same rulings at the same requests, in arrays.

`tests/benchmarks/test_gates.py` plays the same streams to both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from benchmarks.gates_worlds import HASHES, Flags, Floats, Harm, Ints, Stream
from flows.policy.bets import share_at
from flows.policy.gates import NEEDLESS, SUSPICIOUS, Verdict, requests_needed
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
)
from flows.policy.probes import ENOUGH_TIMES, NOT_BEFORE, RULE_OF_THREE
from flows.policy.slowness import ALIKE_WITHIN, LOOKS, ON_FIRST, SLOWER_ON_ALL, slowness_of
from flows.policy.tally import PLACES

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
    is_thin: bool = False
    """Production may have sent probes."""


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
    slowness_now: Floats
    slowness: Floats
    """At its best."""
    slowness_that_matters: Floats
    """The same by lines that are later by what is excused."""
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
    place = _places(stream.user)
    good = _ranked(place + rounds * (place.max() + 1)) < REQUESTS_A_USER
    times = (stream.first_token_ms(mine, harm), stream.token_ms(mine, harm))
    timed = [
        _timed(time, ms, stream.user, mine, ~failed, good, share, limits, slow_ms.get(time, ()))
        for time, ms in zip(TIMES, times, strict=True)
    ]
    counts: dict[Measure, _Counts] = {"failed": _count(place, mine, failed, good)}
    for one in timed:
        counts |= one.counts

    def bar(part: Measure) -> float:
        return float(-np.log(limits.false_alarm_percent / 100 * budget * parts_of(share, limits)[part]))

    crossings = [(len(stream), ""), *_lately(place, mine, failed, share, limits, bar("failed lately"), budget)]
    for measure in counts.keys() & parts_of(share, limits).keys():
        worths = _worths(measure, counts[measure], counts[measure].events, share, limits)
        if (over := counts[measure].events[_crossing(*worths, bar(measure), budget)]).size:
            learned_at = next((one.learned_at for one in timed if one.time.hung == measure), 0)
            crossings.append((max(int(over[0]), learned_at), measure))
    elapsed = stream.seconds[looks] - since
    passing = (elapsed >= limits.minimum_seconds) & (_sums(mine)[looks] >= limits.minimum_requests)
    passing &= _is_good_news(counts, looks, share, limits)
    for one in timed if share < 1 else ():
        if (over := _crossing(one.slowness, one.slowness_that_matters, bar(one.time.slow), budget)).size:
            crossings.append((max(int(over[0]), one.learned_at), one.time.slow))
        passing &= one.slowness_now[looks] <= SUSPICIOUS
        passing &= _is_like_stable(one, looks, share, limits)
    harm_at, gate = min(crossings)
    overdue = elapsed >= limits.deadline_seconds
    pass_look, late_look = (int(np.argmax(these)) if these.any() else len(looks) for these in (passing, overdue))
    harm_look = int(np.searchsorted(looks, harm_at))
    look = min(pass_look, late_look, harm_look)
    if look == len(looks):
        return Held("hold", len(stream), "", {})
    is_thin = _may_be_thin(counts["failed"].counted[looks[: look + 1]], elapsed[: look + 1], share, limits)
    if look == harm_look:
        return Held("roll back", int(looks[look]) + 1, gate, {}, is_thin)
    if look < pass_look:
        return Held("roll back", int(looks[look]) + 1, "deadline", {}, is_thin)
    end = int(looks[look]) + 1
    return Held("promote", end, "", {one.time: _next_lines(one, ~failed[:end]) for one in timed}, is_thin)


def _may_be_thin(counted: Ints, elapsed: Floats, share: float, limits: Limits) -> bool:
    """Whether `probes.is_too_thin` may be so at one of these looks; what margins excuse makes it rarer."""
    pace = (counted + RULE_OF_THREE) / elapsed
    by_then = counted + pace * np.maximum(0, limits.deadline_seconds - elapsed)
    thin = by_then < ENOUGH_TIMES * requests_needed(limits, share)
    return bool((thin & (elapsed >= NOT_BEFORE * limits.deadline_seconds)).any())


def _timed(
    time: Time,
    ms: Floats,
    user: Ints,
    mine: Flags,
    answered: Flags,
    good: Flags,
    share: float,
    limits: Limits,
    slow_ms: Sequence[float],
) -> _Timed:
    counts: dict[Measure, _Counts] = {}
    place = _places(user)
    if (limit_ms := time.limit_ms(limits)) is not None:
        counts[time.late] = _count(place, mine & answered, (ms > limit_ms) & mine & answered, good)
    at = np.flatnonzero(answered)
    learned_at = 0
    if not slow_ms:
        if len(at) < LEARNED_FROM:
            return _Timed(time, ms, counts, zeros := np.zeros(len(ms)), zeros, zeros, 0, ())
        learned_at = int(at[LEARNED_FROM - 1])
    drawn = _drawn(ms[at], slow_ms)
    own = np.array([[time.allowed_ms(line, limits) for line in lines] for lines in drawn.tolist()])
    block = (np.cumsum(answered) - answered) // LEARNED_FROM
    p90 = np.where(mine, own[block, P90], drawn[block, P90])
    later = good & answered & (ms > p90)
    counted, hits = _sums(good & mine & answered), _sums(later & mine)
    counts[time.later] = _Counts(hits, _sums(later), counted, counted, hits, np.flatnonzero(later & mine))
    counts[time.hung] = _count(place, mine & answered, answered & (ms > HUNG_TIMES_P90 * p90), good)
    now, best, matters = np.zeros(len(ms)), np.zeros(len(ms)), np.zeros(len(ms))
    if share < 1:
        excused = np.where(mine[at, None], own[block[at]], drawn[block[at]])
        bands = [(ms[at, None] > lines).sum(axis=1) for lines in (drawn[block[at]], excused)]
        (harm_now, harm), (matters_now, mattering) = (_slowness(user[at], mine[at], band, share) for band in bands)
        for whole, answers in ((now, np.minimum(harm_now, matters_now)), (best, harm), (matters, mattering)):
            whole[:] = np.concatenate([[0.0], answers])[np.cumsum(answered)]
    return _Timed(time, ms, counts, now, best, matters, learned_at, tuple(drawn[0].tolist()))


def _drawn(ms: Floats, slow_ms: Sequence[float]) -> Floats:
    """The lines for each so many answers, drawn from the last ones of both slots before them."""
    lines = [tuple(slow_ms) or _percentiles(ms[:LEARNED_FROM])]
    lines += [_percentiles(ms[:end]) for end in range(LEARNED_FROM, min(REMEMBERED, len(ms) + 1), LEARNED_FROM)]
    if len(ms) < REMEMBERED:
        return np.array(lines)
    whole = np.sort(sliding_window_view(ms, REMEMBERED)[::LEARNED_FROM], axis=1)
    ranks = [ceil(REMEMBERED * percent / 100) - 1 for percent in LINES]
    return np.concatenate([np.array(lines), whole[:, ranks]])


def _percentiles(ms: Floats) -> tuple[float, ...]:
    in_order = np.sort(ms).tolist()
    return tuple(percentile(in_order, percent) or 0.0 for percent in LINES)


def _next_lines(timed: _Timed, answered: Flags) -> tuple[float, ...]:
    times = timed.ms[: len(answered)][answered][-REMEMBERED:]
    return _percentiles(times) if len(times) >= LEARNED_FROM else timed.slow_ms


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


def _slowness(user: Ints, mine: Flags, band: Ints, share: float) -> tuple[Floats, Floats]:
    """What the bets on slowness are worth after each answer, now and at their best."""
    table, place = np.array(slowness_of(share)), _places(user)
    first = np.unique(place, return_index=True)[1]
    added = np.zeros((len(table), len(user)))
    added[:, first] = table[:, band[first], mine[first].astype(np.int64)]
    worth = _coins(np.cumsum(added, axis=1))
    last_look, all_looks = np.full(len(user), -np.inf), np.full(len(user), -np.inf)
    total = -np.inf
    for look in (look for look in LOOKS if look <= len(user)):
        now = _worth_of_all(user[:look], mine[:look], band[:look], share)
        total = np.logaddexp(total, now - np.log(len(LOOKS)))
        last_look[look - 1 :], all_looks[look - 1 :] = now, total
    best = np.maximum(np.maximum.accumulate(worth) + np.log(ON_FIRST), all_looks + np.log(1 - ON_FIRST))
    return np.where(np.arange(1, len(user) + 1) < LOOKS[0], worth, last_look), np.maximum(best, 0)


def _worth_of_all(user: Ints, mine: Flags, band: Ints, share: float) -> Floats:
    """What all answers so far are worth, of each place the user who came first."""
    _, first, number = np.unique(_places(user), return_index=True, return_inverse=True)
    counts = user == user[first][number]
    answers = np.bincount(number[counts])
    worths: list[Floats] = []
    for bands in SLOWER_ON_ALL:
        weight = np.bincount(number[counts], np.log(bands)[band[counts]]) / (1 + ALIKE_WITHIN * (answers - 1))
        worths.append((weight * mine[first] - np.log(share * np.exp(weight) + 1 - share)).sum(keepdims=True))
    return _coins(np.array(worths))[0]


def _places(user: Ints) -> Ints:
    return np.where(user < HASHES, user % PLACES, user)


def _coins(worths: Floats) -> Floats:
    """The mean of bets, as logarithms."""
    return np.logaddexp.reduce(worths) - np.log(len(worths))


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


def _above_stable(hits: Ints, all_hits: Ints, share: float, ratio: float = 1.0) -> Floats:
    others = [share_at(share, ratio * times) for times in TIMES_STABLE]
    return worth(hits, all_hits, share_at(share, ratio), others)


def _worths(measure: Measure, count: _Counts, at: Ints, share: float, limits: Limits) -> tuple[Floats, Floats]:
    """`measures.worth_of_harm` and `worth_that_matters`."""
    hits, all_hits, of, limit = count.hits[at], count.all_hits[at], count.of[at], limit_of(measure, limits)
    if share < 1:
        more = _above_stable(hits, all_hits, share, limits.more_than_stable)
        often = _above_limit(hits, of, limits.error_margin_percent / 100) if limits.error_margin_percent else more
        return _above_stable(hits, all_hits, share), np.minimum(more, often)
    if limit is None:
        return np.zeros(len(at)), np.zeros(len(at))
    harm = _above_limit(hits, of, limit * HARM_THAT_MATTERS if measure in TIME_OF else limit)
    return harm, harm


def _crossing(harm: Floats, matters: Floats, bar: float, budget: float) -> Ints:
    """Where the bets have been worth enough, each at its best until then."""
    best, best_matters = np.maximum.accumulate(harm), np.maximum.accumulate(matters)
    return np.flatnonzero((best >= bar) & (best_matters >= min(bar, -np.log(NEEDLESS * budget))))


def _lately(
    place: Ints, mine: Flags, failed: Flags, share: float, limits: Limits, bar: float, budget: float
) -> list[tuple[int, str]]:
    """Where the bets of each round cross their bars."""
    crossings: list[tuple[int, str]] = []
    for number, begin in enumerate(range(0, len(place), ROUND_REQUESTS)):
        part = slice(begin, begin + ROUND_REQUESTS)
        if not (failed[part] & mine[part]).any():
            continue
        count = _count(place[part], mine[part], failed[part], mine[part])
        handicap = np.log((number + 1) * (number + 2))
        harm, matters = (w - handicap for w in _worths("failed lately", count, count.events, share, limits))
        if (over := count.events[_crossing(harm, matters, bar, budget)]).size:
            crossings.append((begin + int(over[0]), "failed lately"))
    return crossings


def _is_good_news(counts: dict[Measure, _Counts], looks: Ints, share: float, limits: Limits) -> Flags:
    """At which looks every limit is kept and nothing is suspicious."""
    sure = -np.log(limits.missed_harm_percent / 100)
    good = np.ones(len(looks), bool)
    for measure, count in counts.items():
        if (limit := limit_of(measure, limits)) is not None:
            others = [limit * fraction for fraction in FRACTIONS_OF_THE_LIMIT]
            null = _times(limit, HARM_THAT_MATTERS)
            good &= worth(count.counted_hits[looks], count.counted[looks], null, others) >= sure
        if measure in parts_of(share, limits):
            worths = _worths(measure, count, looks, share, limits)
            now = np.where(count.hits[looks] > 0, np.minimum(*worths), 0.0)
            good &= now <= SUSPICIOUS
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
