"""The judge of flows.policy for a whole stage at once: the same rulings at the same requests, in arrays.

`tests/benchmarks/test_gates.py` plays the same streams to both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.gates_worlds import Flags, Floats, Harm, Ints, Stream
from flows.policy.bets import share_at
from flows.policy.gates import SUSPICIOUS, Verdict
from flows.policy.judge import REMEMBERED, REQUESTS_A_USER, ROUND_REQUESTS
from flows.policy.measures import (
    FRACTIONS_OF_STABLE,
    FRACTIONS_OF_THE_LIMIT,
    HARM_THAT_MATTERS,
    HUNG_TIMES_P90,
    LATER_THAN_P90,
    LEARNED_FROM,
    LINES,
    P90,
    TIMES_STABLE,
    TIMES_THE_LIMIT,
    Limits,
    Measure,
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
    slow_ms: tuple[float, ...]
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


def hold(  # noqa: C901 - as many branches as a stage has ways to end; production is where it is taken apart
    stream: Stream,
    harm: Harm,
    limits: Limits,
    *,
    share: float,
    budget: float,
    slow_ms: Sequence[float],
    since: float,
) -> Held:
    """Rule on one stage that begins at `since` with the first of these requests."""
    mine = stream.user_luck < share
    failed, ms = stream.failed(mine, harm), stream.first_token_ms(mine, harm)
    answered = ~failed
    looks = np.arange(LOOK_EVERY, len(stream) + 1, LOOK_EVERY) - 1
    rounds = np.arange(len(stream)) // ROUND_REQUESTS
    good = _ranked(stream.place + rounds * (stream.place.max() + 1)) < REQUESTS_A_USER
    counts: dict[Measure, _Counts] = {"failed": _count(stream.place, mine, failed, good)}
    if limits.first_token_p95_ms is not None:
        late = ms > limits.first_token_p95_ms
        counts["late"] = _count(stream.place, mine & answered, late & mine & answered, good)
    learned_at = 0
    if not slow_ms:
        learning = np.flatnonzero(answered)[:LEARNED_FROM]
        if len(learning) == LEARNED_FROM:
            learned_at = int(learning[-1])
            slow_ms = tuple(percentile(np.sort(ms[learning]).tolist(), p) or 0.0 for p in LINES)
    slowness = np.zeros(len(stream))
    if slow_ms:
        lines = np.array(slow_ms)
        own = np.maximum(lines * limits.slower_than_stable, lines + limits.first_token_margin_ms)
        later = good & answered & (ms > np.where(mine, own[P90], lines[P90]))
        counted, hits = _sums(good & mine & answered), _sums(later & mine)
        counts["later than p90"] = _Counts(hits, _sums(later), counted, counted, hits, np.flatnonzero(later & mine))
        hung = answered & (ms > HUNG_TIMES_P90 * np.where(mine, own[P90], lines[P90]))
        counts["hung"] = _count(stream.place, mine & answered, hung, good)
        slowness = _slowness(stream.place, mine, answered, ms, lines, own, share)
    crossings = [(len(stream), "")]
    for measure, count in counts.items():
        if measure not in parts_of(share):
            continue
        bar = -np.log(limits.false_alarm_percent / 100 * budget * parts_of(share)[measure])
        if (over := count.events[_harm(measure, count, share, limits) >= bar]).size:
            crossings.append((max(int(over[0]), learned_at if measure == "hung" else 0), measure))
    slow_bar = -np.log(limits.false_alarm_percent / 100 * budget * parts_of(share).get("slow", 1))
    if share < 1 and (over := np.flatnonzero(slowness >= slow_bar)).size:
        crossings.append((max(int(over[0]), learned_at), "slow"))
    crossings += _lately(stream.place, mine, failed, share, limits, budget)
    harm_at, gate = min(crossings)
    passing = (slowness[looks] < slow_bar - SUSPICIOUS) & _passes(
        counts, _sums(mine), looks, learned_at, stream.seconds[looks] - since, share, limits, budget, bool(slow_ms)
    )
    overdue = stream.seconds[looks] - since >= limits.deadline_seconds
    pass_look, late_look = (int(np.argmax(these)) if these.any() else len(looks) for these in (passing, overdue))
    harm_look = int(np.searchsorted(looks, harm_at))
    look = min(pass_look, late_look, harm_look)
    if look == len(looks):
        return Held("hold", len(stream), "", ())
    if look == harm_look:
        return Held("roll back", int(looks[look]) + 1, gate, ())
    if look < pass_look:
        return Held("roll back", int(looks[look]) + 1, "deadline", ())
    end = int(looks[look]) + 1
    stables = np.sort(ms[:end][(~mine & answered)[:end]][-REMEMBERED:]).tolist()
    if len(stables) >= LEARNED_FROM:
        slow_ms = tuple(percentile(stables, percent) or 0.0 for percent in LINES)
    return Held("promote", end, "", tuple(slow_ms))


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
    return _above_limit(count.hits[at], count.of[at], limit * HARM_THAT_MATTERS if measure == "late" else limit)


def _lately(
    place: Ints, mine: Flags, failed: Flags, share: float, limits: Limits, budget: float
) -> list[tuple[int, str]]:
    """Where the bets of each round cross their bars."""
    crossings: list[tuple[int, str]] = []
    bar = -np.log(limits.false_alarm_percent / 100 * budget * parts_of(share)["failed lately"])
    for number, begin in enumerate(range(0, len(place), ROUND_REQUESTS)):
        part = slice(begin, begin + ROUND_REQUESTS)
        if not (failed[part] & mine[part]).any():
            continue
        count = _count(place[part], mine[part], failed[part], mine[part])
        harm = _harm("failed lately", count, share, limits) - np.log((number + 1) * (number + 2))
        if (over := count.events[harm >= bar]).size:
            crossings.append((begin + int(over[0]), "failed lately"))
    return crossings


def _passes(
    counts: dict[Measure, _Counts],
    requests: Ints,
    looks: Ints,
    learned_at: int,
    elapsed: Floats,
    share: float,
    limits: Limits,
    budget: float,
    has_lines: bool,  # noqa: FBT001 - private
) -> Flags:
    """At which looks all is good news."""
    sure = -np.log(limits.missed_harm_percent / 100)
    good = (elapsed >= limits.minimum_seconds) & (requests[looks] >= limits.minimum_requests)
    for measure in ("failed", "late"):
        if (limit := limit_of(measure, limits)) is not None:
            hits, counted = counts[measure].counted_hits[looks], counts[measure].counted[looks]
            others = [limit * fraction for fraction in FRACTIONS_OF_THE_LIMIT]
            good &= worth(hits, counted, _times(limit, HARM_THAT_MATTERS), others) >= sure
    for measure, count in counts.items():
        if measure in parts_of(share):
            bar = -np.log(limits.false_alarm_percent / 100 * budget * parts_of(share)[measure])
            now = np.where(count.hits[looks] > 0, _worth_of_harm(measure, count, looks, share, limits), 0.0)
            good &= now < bar - SUSPICIOUS
    if share == 1:
        return good
    if limits.first_token_p95_ms is not None:
        if not has_lines:
            return np.zeros(len(looks), bool)
        p90 = counts["later than p90"]
        hits, all_hits, counted = p90.hits[looks], p90.all_hits[looks], p90.counted[looks]
        beside = worth(
            hits, all_hits, share_at(share, HARM_THAT_MATTERS), [share_at(share, f) for f in FRACTIONS_OF_STABLE]
        )
        others = [LATER_THAN_P90 * fraction for fraction in FRACTIONS_OF_STABLE]
        alone = worth(hits, counted, LATER_THAN_P90 * HARM_THAT_MATTERS, others)
        good &= (np.logaddexp(beside + np.log(4), alone) - np.log(5) >= sure) & (looks >= learned_at)
    return good
