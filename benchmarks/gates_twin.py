"""The judge of flows.policy for a whole stage at once: the same rulings at the same requests, in arrays.

`tests/benchmarks/test_gates.py` plays the same streams to both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from benchmarks.gates_worlds import HASHES, Flags, Floats, Harm, Ints, Stream
from flows.policy.gating.bets import mean_of, share_at
from flows.policy.gating.gates import NEEDLESS, SUSPICIOUS, Verdict, requests_needed
from flows.policy.gating.good_times import BEYOND_THE_LIMIT, BLOCK_REQUESTS
from flows.policy.gating.judge import CANDIDATES, REQUESTS_A_USER, ROUND_REQUESTS, Carried
from flows.policy.gating.latency import REMEMBERED
from flows.policy.gating.measures import (
    FRACTIONS_OF_STABLE,
    FRACTIONS_OF_THE_LIMIT,
    HARM_THAT_MATTERS,
    HUNG_TIMES_P90,
    LATER_THAN_P90,
    LEARNED_FROM,
    LINES,
    ONE_COIN,
    P90,
    TIME_OF,
    TIMES,
    TIMES_STABLE,
    Count,
    Limits,
    Measure,
    Purses,
    Time,
    above_limit,
    limit_of,
    parts_of,
    percentile,
    purses_of_harm,
)
from flows.policy.gating.probes import ENOUGH_TIMES, NOT_BEFORE, RULE_OF_THREE
from flows.policy.gating.slowness import ALIKE_WITHIN, LOOKS, ON_FIRST, SLOWER, SLOWER_ON_ALL, slowness_of
from flows.policy.gating.tally import PLACES

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
    carried: Carried | None
    """Into the next stage."""
    is_thin: bool = False
    """Production may have sent probes."""


@dataclass(frozen=True)
class _Wager:
    """Of one measure, the bets on whose its hits are that go on: what each part is worth after each request."""

    at_first: Purses
    harm: Floats
    more: Floats
    often: Floats

    def worths(self, at: Ints) -> tuple[Floats, Floats]:
        """Of harm, and of what matters."""
        often = _coins(self.often[:, at]) if len(self.often) else np.inf
        matters = np.minimum(_coins(self.more[:, at]), often)
        return np.maximum(_coins(self.harm[:, at]), mean_of(self.at_first.harm)), np.maximum(
            matters, self.at_first.matters
        )

    def after(self, requests: int) -> Purses:
        return Purses(*(tuple(bet[:, requests - 1].tolist()) for bet in (self.harm, self.more, self.often)))


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
class _Weighed:
    """`measures.Weighed` after each request."""

    hits: Floats
    all_hits: Floats
    of: Floats


@dataclass(frozen=True)
class _Timed:
    """Of one time after each request: what is counted of it, and what the bets on slowness are worth."""

    time: Time
    ms: Floats
    counts: dict[Measure, _Counts]
    weighed: _Weighed
    slowness_now: Floats
    slowness: tuple[Floats, Floats]
    """At its best; and the same by lines that are later by what is excused."""
    whole: tuple[Floats, Floats]
    """The same of the bets that go on."""
    learned_at: int
    slow_ms: tuple[float, ...]
    bets: "tuple[_Bets, _Bets] | None" = None


@dataclass(frozen=True)
class _Bets:
    """What the bets on slowness are worth after each answer."""

    now: Floats
    best: Floats
    whole: Floats
    """Of each alternative, the bet on first answers that goes on."""
    at_first: float

    def after(self, answers: int) -> tuple[float, ...]:
        return tuple(self.whole[:, answers - 1].tolist())


def hold(
    stream: Stream,
    harm: Harm,
    limits: Limits,
    *,
    share: float,
    budget: float,
    carried: Carried,
    since: float,
) -> Held:
    """Rule on one stage that begins at `since` with the first of these requests."""
    begun = carried if share < 1 else Carried(slow_ms=carried.slow_ms)
    mine = stream.user_luck < share
    failed = stream.failed(mine, harm)
    looks = np.arange(LOOK_EVERY, len(stream) + 1, LOOK_EVERY) - 1
    rounds = np.arange(len(stream)) // ROUND_REQUESTS
    place = _places(stream.user)
    chance = _chances(stream.user, share, begun)
    good = _ranked(place + rounds * (place.max() + 1)) < REQUESTS_A_USER
    times = (stream.first_token_ms(mine, harm), stream.token_ms(mine, harm))
    timed = [
        _timed(time, ms, stream.user, mine, ~failed, good, chance, share, limits, begun)
        for time, ms in zip(TIMES, times, strict=True)
    ]
    counts: dict[Measure, _Counts] = {"failed": _count(place, mine, failed, good)}
    for one in timed:
        counts |= one.counts
    good_times = _good_times(place, mine, failed, good, limits)
    wagers = _wagers(counts, mine, chance, share, limits, begun)

    learned_at: dict[Measure, int] = {one.time.hung: one.learned_at for one in timed}
    crossings = [(len(stream), ""), *_lately(place, mine, failed, share, limits, budget)]
    for measure in counts.keys() & parts_of(share, limits).keys():
        at = counts[measure].events
        of_stage = _worths(measure, counts[measure], at, share, limits)
        whole = wagers[measure].worths(at) if begun.budget else of_stage
        over = at[_crossing([(of_stage, budget), (whole, begun.budget)], measure, share, limits)]
        crossings += [(max(int(first), learned_at.get(measure, 0)), measure) for first in over[:1]]
    elapsed = stream.seconds[looks] - since
    passing = (elapsed >= limits.minimum_seconds) & (_sums(mine)[looks] >= limits.minimum_requests)
    passing &= _is_good_news(counts, good_times, looks, share, limits)
    for one in timed if share < 1 else ():
        over = _crossing([(one.slowness, budget), (one.whole, begun.budget)], one.time.slow, share, limits)
        crossings += [(max(int(first), one.learned_at), one.time.slow) for first in over[:1]]
        passing &= one.slowness_now[looks] <= SUSPICIOUS
        passing &= _is_like_stable(one, looks, share, limits)
    harm_at, gate = min(crossings)
    overdue = elapsed >= limits.deadline_seconds
    pass_look, late_look = (int(np.argmax(these)) if these.any() else len(looks) for these in (passing, overdue))
    harm_look = int(np.searchsorted(looks, harm_at))
    look = min(pass_look, late_look, harm_look)
    if look == len(looks):
        return Held("hold", len(stream), "", None)
    is_thin = _may_be_thin(good_times, looks[: look + 1], elapsed[: look + 1], share, limits)
    if look == harm_look:
        return Held("roll back", int(looks[look]) + 1, gate, None, is_thin)
    if look < pass_look:
        return Held("roll back", int(looks[look]) + 1, "deadline", None, is_thin)
    end = int(looks[look]) + 1
    seen, owners = _who_was_seen(stream.user[:end], mine[:end], begun)
    left = Carried(
        budget=begun.budget or budget,
        slow_ms={one.time: _next_lines(one, ~failed[:end]) for one in timed},
        purses={measure: wager.after(end) for measure, wager in wagers.items()},
        slowness=_slowness_after(int((~failed[:end]).sum()), timed),
        shares=(*begun.shares, share),
        seen=seen,
        owners=owners,
    )
    return Held("promote", end, "", left, is_thin)


def _slowness_after(answers: int, timed: Sequence[_Timed]) -> dict[Time, tuple[Sequence[float], Sequence[float]]]:
    return {one.time: (one.bets[0].after(answers), one.bets[1].after(answers)) for one in timed if one.bets}


def _chances(user: Ints, share: float, begun: Carried) -> Floats:
    """`Judge._draw`: of each request's user to be the candidate's; no number where nothing is bet on him."""
    place, chances = user % PLACES, np.full(len(user), share)
    seen = np.frombuffer(begun.seen, np.uint8)[place]
    is_owner = np.frombuffer(begun.owners, np.uint16)[place] == user // PLACES
    for number, chance in enumerate(begun.chances(share)):
        chances[seen == number] = chance
    chances[(seen > 0) & ~is_owner | (seen == CANDIDATES)] = np.nan
    return np.where(user < HASHES, chances, share)


def _who_was_seen(user: Ints, mine: Flags, begun: Carried) -> tuple[bytes, bytes]:
    """In which stage, and who each place's user is, once this one is over."""
    user, mine = user[user < HASHES], mine[user < HASHES]
    seen, owners = np.frombuffer(begun.seen, np.uint8).copy(), np.frombuffer(begun.owners, np.uint16).copy()
    places, first = np.unique(user % PLACES, return_index=True)
    new = seen[places] == 0
    owners[places[new]] = user[first[new]] // PLACES
    owned = owners[user % PLACES] == user // PLACES
    seen[user[owned] % PLACES] = np.where(mine[owned], CANDIDATES, len(begun.shares) + 1)
    return seen.tobytes(), owners.tobytes()


def _may_be_thin(good_times: tuple[Ints, Ints], looks: Ints, elapsed: Floats, share: float, limits: Limits) -> bool:
    """Whether `probes.is_too_thin` may be so at one of these looks; what margins excuse makes it rarer."""
    counted, hits = (these[looks] for these in good_times)
    pace = (counted + RULE_OF_THREE) / elapsed
    by_then = counted + pace * np.maximum(0, limits.deadline_seconds - elapsed)
    thin = by_then < np.maximum(ENOUGH_TIMES * requests_needed(limits, share), _enough(hits, limits))
    return bool((thin & (elapsed >= NOT_BEFORE * limits.deadline_seconds)).any())


def _enough(hits: Ints, limits: Limits) -> Floats:
    """So many requests with these failures are good news by one of the bets alone, and so by all of them."""
    limit, sure = limits.error_percent / 100, -np.log(limits.missed_harm_percent / 100)
    null, needs = _times(limit, HARM_THAT_MATTERS), list[Floats]()
    for other in (limit * fraction for fraction in FRACTIONS_OF_THE_LIMIT):
        lost = hits * np.log(null / other)
        needs.append(hits + 1 + (sure + np.log(len(FRACTIONS_OF_THE_LIMIT)) + lost) / np.log((1 - other) / (1 - null)))
    return np.minimum.reduce(needs)


def _timed(
    time: Time,
    ms: Floats,
    user: Ints,
    mine: Flags,
    answered: Flags,
    good: Flags,
    chance: Floats,
    share: float,
    limits: Limits,
    begun: Carried,
) -> _Timed:
    counts: dict[Measure, _Counts] = {}
    slow_ms = begun.slow_ms.get(time, ())
    place = _places(user)
    if (limit_ms := time.limit_ms(limits)) is not None:
        counts[time.late] = _count(place, mine & answered, (ms > limit_ms) & mine & answered, good)
    at = np.flatnonzero(answered)
    learned_at = 0
    if not slow_ms:
        if len(at) < LEARNED_FROM:
            zeros = np.zeros(len(ms))
            return _Timed(time, ms, counts, _Weighed(zeros, zeros, zeros), zeros, (zeros, zeros), (zeros, zeros), 0, ())
        learned_at = int(at[LEARNED_FROM - 1])
    lines = _lines(ms[at], slow_ms)
    own = np.array([[time.allowed_ms(line, limits) for line in some] for some in lines.tolist()])
    block = (np.cumsum(answered) - answered) // LEARNED_FROM
    p90 = np.where(mine, own[block, P90], lines[block, P90])
    weighed = _weigh(place, mine, answered, ms > p90)
    counts[time.hung] = _count(place, mine & answered, answered & (ms > HUNG_TIMES_P90 * p90), good)
    if share == 1:
        zeros = np.zeros(len(ms))
        return _Timed(
            time, ms, counts, weighed, zeros, (zeros, zeros), (zeros, zeros), learned_at, tuple(lines[0].tolist())
        )
    excused = np.where(mine[at, None], own[block[at]], lines[block[at]])
    bands = [(ms[at, None] > some).sum(axis=1) for some in (lines[block[at]], excused)]
    harm, mattering = (
        _slowness(user[at], mine[at], band, chance[at], share, had)
        for band, had in zip(bands, begun.slowness.get(time, ((), ())), strict=True)
    )

    def after_each_request(answers: Floats) -> Floats:
        return np.concatenate([[0.0], answers])[np.cumsum(answered)]

    return _Timed(
        time,
        ms,
        counts,
        weighed,
        after_each_request(np.minimum(harm.now, mattering.now)),
        (after_each_request(harm.best), after_each_request(mattering.best)),
        (after_each_request(_of_whole(harm)), after_each_request(_of_whole(mattering))),
        learned_at,
        tuple(lines[0].tolist()),
        (harm, mattering),
    )


def _lines(ms: Floats, slow_ms: Sequence[float]) -> Floats:
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


def _weigh(place: Ints, mine: Flags, answered: Flags, late: Flags) -> _Weighed:
    """Each user of a slot weighs as his answers do, which resemble each other."""
    at = np.flatnonzero(answered)
    whose, hit = place[at] * 2 + mine[at], late[at]
    order = np.argsort(whose, kind="stable")
    ordered = whose[order]
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[begins, len(at)])
    number = np.arange(len(at)) - np.repeat(begins, lengths) + 1
    sums = np.cumsum(hit[order])
    hits = sums - np.repeat(sums[begins] - hit[order][begins], lengths)

    def added(so_far: Ints, before: Ints) -> Floats:
        effect, effect_before = (
            1 + ALIKE_WITHIN * (number - 1),
            1 + ALIKE_WITHIN * np.maximum(number - 2, 0),
        )
        in_order, added = so_far / effect - before / effect_before, np.zeros(len(place))
        added[at[order]] = in_order
        return added

    of, late_ones = added(number, number - 1), added(hits, hits - hit[order])
    return _Weighed(np.cumsum(late_ones * mine), np.cumsum(late_ones), np.cumsum(of * mine))


def _good_times(place: Ints, mine: Flags, failed: Flags, good: Flags, limits: Limits) -> tuple[Ints, Ints]:
    """`good_times.GoodTimes` after each request: what counts of the candidate, and what of it failed."""
    counted, hits = np.zeros(len(place), np.int64), np.zeros(len(place), np.int64)
    limit, index = above_limit(limits.error_percent / 100), np.unique(place, return_inverse=True)[1]
    has_failed = np.zeros(len(place), bool)
    begun_counted = begun_hits = 0
    for begin in range(0, len(place), BLOCK_REQUESTS):
        part = slice(begin, begin + BLOCK_REQUESTS)
        user, ours, bad = index[part], mine[part], failed[part]
        live = ~has_failed[user]
        first = {whose: at for at in reversed(np.flatnonzero(live & bad).tolist()) for whose in (int(user[at]),)}
        for whose, at in first.items():
            live[at + 1 :] &= user[at + 1 :] != whose
        its_counted, its_hits = _sums(live & ours & good[part]), _sums(live & ours & good[part] & bad)
        at = np.flatnonzero(live & ~ours & bad)
        theirs, stables = np.arange(1, len(at) + 1), _sums(live & ~ours)[at]
        over = at[worth(theirs, stables, *limit) >= BEYOND_THE_LIMIT] if len(at) else at
        if len(over):
            its_counted[over[0] :] = its_hits[over[0] :] = 0
        else:
            has_failed[list(first)] = True
        counted[part], hits[part] = begun_counted + its_counted, begun_hits + its_hits
        begun_counted, begun_hits = int(counted[part][-1]), int(hits[part][-1])
    return counted, hits


def _slowness(user: Ints, mine: Flags, band: Ints, chance: Floats, share: float, begun: Sequence[float]) -> _Bets:
    first = np.unique(_places(user), return_index=True)[1]
    worth = _coins(_first_answers(first, mine, band, np.full(len(user), share)))
    whole = _first_answers(first, mine, band, chance)
    last_look, all_looks = np.full(len(user), -np.inf), np.full(len(user), -np.inf)
    total = -np.inf
    for look in (look for look in LOOKS if look <= len(user)):
        now = _worth_of_all(user[:look], mine[:look], band[:look], share)
        total = np.logaddexp(total, now - np.log(len(LOOKS)))
        last_look[look - 1 :], all_looks[look - 1 :] = now, total
    best = np.maximum(_on_first(worth), all_looks + np.log(1 - ON_FIRST))
    now = np.where(np.arange(1, len(user) + 1) < LOOKS[0], worth, last_look)
    return _Bets(now, np.maximum(best, 0), whole + np.array(begun or [0.0])[:, None], mean_of(begun or [0.0]))


def _of_whole(bets: _Bets) -> Floats:
    return _on_first(np.maximum(_coins(bets.whole), bets.at_first))


def _on_first(worth: Floats) -> Floats:
    return np.maximum.accumulate(worth) + np.log(ON_FIRST)


def _first_answers(first: Ints, mine: Flags, band: Ints, chance: Floats) -> Floats:
    """What each part of the bet on first answers wins until each answer, of those who are drawn with some chance."""
    added = np.zeros((len(SLOWER), len(mine)))
    for its_chance in np.unique(chance[~np.isnan(chance)]).tolist():
        these, table = first[chance[first] == its_chance], np.array(slowness_of(its_chance))
        added[:, these] = table[:, band[these], mine[these].astype(np.int64)]
    return np.cumsum(added, axis=1)


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


def worth(hits: Ints | Floats, of: Ints | Floats, null: float, others: Sequence[float]) -> Floats:
    """`flows.policy.gating.bets.worth`, of arrays."""
    return _coins(_purses(hits, of - hits, null, others))


def _purses(hits: Ints | Floats, misses: Ints | Floats, null: float, others: Sequence[float]) -> Floats:
    return np.stack([hits * np.log(p / null) + misses * (np.log1p(-p) - np.log1p(-null)) for p in others])


def _times(rate: float, times: float) -> float:
    return min(rate * times, 1 - (1 - rate) / times)


def _above_stable(chance: float, ratio: float = 1.0) -> tuple[float, list[float]]:
    return share_at(chance, ratio), [share_at(chance, ratio * times) for times in TIMES_STABLE]


def _wagers(
    counts: dict[Measure, _Counts], mine: Flags, chance: Floats, share: float, limits: Limits, begun: Carried
) -> dict[Measure, _Wager]:
    bet_on = counts.keys() & parts_of(share, limits).keys() if share < 1 else ()
    return {one: _wager(counts[one], mine, chance, limits, begun.purses.get(one, ONE_COIN)) for one in bet_on}


def _wager(count: _Counts, mine: Flags, chance: Floats, limits: Limits, begun: Purses) -> _Wager:
    """`measures.purses_of_harm` after each request."""
    at_first, margin = purses_of_harm([(0.5, Count())], limits, begun), limits.error_margin_percent / 100
    drawn = ~np.isnan(chance)
    new = np.flatnonzero(_steps(count.all_hits) & drawn)
    harm, more = np.zeros((len(TIMES_STABLE), len(mine))), np.zeros((len(TIMES_STABLE), len(mine)))
    for its_chance in np.unique(chance[new]).tolist():
        at = new[chance[new] == its_chance]
        ours = mine[at].astype(np.int64)
        for bet, ratio in ((harm, 1.0), (more, limits.more_than_stable)):
            bet[:, at] = _purses(ours, 1 - ours, *_above_stable(its_chance, ratio))
    hits, of = _sums(_steps(count.hits) & drawn), _sums(_steps(count.of) & drawn)
    often = _purses(hits, of - hits, *above_limit(margin)) if margin else np.zeros((0, len(mine)))
    had = [np.array(bet)[:, None] for bet in (at_first.harm, at_first.more, at_first.often)]
    return _Wager(
        at_first, had[0] + np.cumsum(harm, 1), had[1] + np.cumsum(more, 1), had[2] + often if margin else often
    )


def _steps(sums: Ints) -> Flags:
    return np.diff(sums, prepend=0) > 0


def _worths(measure: Measure, count: _Counts, at: Ints, share: float, limits: Limits) -> tuple[Floats, Floats]:
    """`measures.worth_of_harm` and `worth_that_matters`."""
    hits, all_hits, of = count.hits[at], count.all_hits[at], count.of[at]
    if share < 1:
        more = worth(hits, all_hits, *_above_stable(share, limits.more_than_stable))
        margin = limits.error_margin_percent / 100
        often = worth(hits, of, *above_limit(margin)) if margin else more
        return worth(hits, all_hits, *_above_stable(share)), np.minimum(more, often)
    limit = limit_of(measure, limits)
    if limit is None:
        return np.zeros(len(hits)), np.zeros(len(hits))
    harm = worth(hits, of, *above_limit(limit * HARM_THAT_MATTERS if measure in TIME_OF else limit))
    return harm, harm


def _crossing(bets: Sequence[tuple[tuple[Floats, Floats], float]], part: Measure, share: float, limits: Limits) -> Ints:
    """Where bets, each with its budget, have been worth enough, each at its best until then; none without a budget."""
    over = np.zeros(len(bets[0][0][0]), bool)
    for (harm, matters), budget in bets:
        if not budget:
            continue
        bar = -np.log(limits.false_alarm_percent / 100 * budget * parts_of(share, limits)[part])
        best, best_matters = np.maximum.accumulate(harm), np.maximum.accumulate(matters)
        over |= (best >= bar) & (best_matters >= min(bar, -np.log(NEEDLESS * budget)))
    return np.flatnonzero(over)


def _lately(
    place: Ints, mine: Flags, failed: Flags, share: float, limits: Limits, budget: float
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
        if (over := count.events[_crossing([((harm, matters), budget)], "failed lately", share, limits)]).size:
            crossings.append((begin + int(over[0]), "failed lately"))
    return crossings


def _is_good_news(
    counts: dict[Measure, _Counts], good_times: tuple[Ints, Ints], looks: Ints, share: float, limits: Limits
) -> Flags:
    """At which looks every limit is kept and nothing is suspicious."""
    sure = -np.log(limits.missed_harm_percent / 100)
    good = np.ones(len(looks), bool)
    for measure, count in counts.items():
        if (limit := limit_of(measure, limits)) is not None:
            others = [limit * fraction for fraction in FRACTIONS_OF_THE_LIMIT]
            null = _times(limit, HARM_THAT_MATTERS)
            counted, hits = good_times if measure == "failed" else (count.counted, count.counted_hits)
            good &= worth(hits[looks], counted[looks], null, others) >= sure
        if measure in parts_of(share, limits):
            worths = _worths(measure, count, looks, share, limits)
            good &= np.where(count.hits[looks] > 0, np.minimum(*worths), 0.0) <= SUSPICIOUS
    return good


def _is_like_stable(timed: _Timed, looks: Ints, share: float, limits: Limits) -> Flags:
    """At which looks the candidate is plainly not later than stable's p90 twice as often as stable."""
    if not timed.slow_ms:
        return np.zeros(len(looks), bool)
    count = timed.weighed
    hits, all_hits, counted = count.hits[looks], count.all_hits[looks], count.of[looks]
    fractions = [share_at(share, f) for f in FRACTIONS_OF_STABLE]
    beside = worth(hits, all_hits, share_at(share, HARM_THAT_MATTERS), fractions)
    others = [LATER_THAN_P90 * fraction for fraction in FRACTIONS_OF_STABLE]
    alone = worth(hits, counted, LATER_THAN_P90 * HARM_THAT_MATTERS, others)
    sure = -np.log(limits.missed_harm_percent / 100)
    return (np.logaddexp(beside + np.log(4), alone) - np.log(5) >= sure) & (looks >= timed.learned_at)
