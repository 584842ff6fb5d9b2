"""What is measured of a candidate, by which limits, and how strongly it speaks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, exp, log
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from blocks.ports.gateway import RequestKind
from flows.policy.gating.bets import interval, mean_of, purses, share_at, worth

Measure = Literal[
    "failed",
    "failed lately",
    "refused",
    "left",
    "left midway",
    "late",
    "hung",
    "slow",
    "later than p90",
    "late tokens",
    "hung tokens",
    "slow tokens",
    "tokens later than p90",
]
"""`left` is before an answer began, `left midway` is in the middle of one.

`late` is by the limit, the next three are by stable's p90: `hung` three times as late, `slow` of first answers. These
are of the time to first token, and the last four are the same of the time per token.
"""

Part = Measure | Literal["cells"]
"""What has a part of the error budget."""

TIMES_THE_LIMIT = (2, 4, 8, 16)
TIMES_STABLE = (3, 6, 10, 40)
TIMES_STABLE_IN_A_CELL = (1.5, 2.5, 5)
"""What the bets on harm are on: a rate so many times the limit, or stable's; the last for late answers of one cell."""
LINES = (10, 25, 50, 75, 90, 97, 99)
"""Percentiles of stable's times, between which an answer lies in one band or the other."""
P90 = LINES.index(90) - len(LINES)
"""From the end: older ledgers have no line under the median."""
HUNG_TIMES_P90 = 3

UNPROMISED: tuple[Measure, ...] = ("refused", "left", "left midway")
"""No rate of them is promised: users refuse to wait, and ask what is to be refused, in any slot.

Alone they are judged by what was shown of both slots before.
"""
EXCUSED_ALONE = 0.1
"""A rate of what is not promised that is excused at 100 %, however rare it was before, or `error_percent` if more.

There nobody can tell a model that refuses from a stranger who asks for it.
"""
SHOWN_FOR_SURE = 0.01
"""What was shown before is taken for as much as it may be: a rate over that has this chance, at all looks together."""
LATER_THAN_P90 = 0.1
HARM_THAT_MATTERS = 2
"""Times the limit: a stage is passed once it is plain that the candidate is not as bad as this."""
FRACTIONS_OF_THE_LIMIT = (1 / 8, 1 / 4, 1 / 2)
FRACTIONS_OF_STABLE = (1 / 8, 1 / 2, 1)
"""What the bets on good news are on."""

BESIDE_STABLE: Mapping[Part, float] = {
    "failed": 0.56,
    "failed lately": 0.01,
    "refused": 0.03,
    "left": 0.005,
    "left midway": 0.005,
    "hung": 0.03,
    "slow": 0.34,
    "cells": 0.02,
}
ALONE: Mapping[Part, float] = {
    "failed": 0.6,
    "failed lately": 0.08,
    "late": 0.25,
    "cells": 0.05,
    "refused": 0.01,
    "left": 0.005,
    "left midway": 0.005,
}
"""How a stage's part of the error budget is shared, beside stable and at 100 %; each adds up to 1.

Where tokens are judged too, they have half of what the first token has here.
"""

FIRST_STAGE = 0.85
"""Of the error budget."""
LEARNED_FROM = 100
"""Streamed answers whose times say what is slow."""


class Limits(BaseModel):
    """What a service promises its users, and how sure a ruling has to be."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    error_percent: float = Field(gt=0, lt=100)
    first_token_p95_ms: float | None = Field(gt=0)
    """None where the service promises nothing, as where nobody streams."""
    token_p95_ms: float | None = Field(default=None, gt=0)
    """None where tokens are not judged at all, as where a release changes how many of them come in one event."""
    slower_than_stable: float = Field(ge=1)
    """Times stable's time to first token, or per token, that the candidate's may be: less than this is excused."""
    first_token_margin_ms: float = Field(ge=0)
    """A difference from stable's that is smaller than this is excused."""
    token_margin_ms: float = Field(default=0.0, ge=0)
    """The same of the time per token; older ledgers know of none."""
    more_than_stable: float = Field(ge=1)
    """Times stable's rate of failures, refusals and departures: less than this is excused."""
    error_margin_percent: float = Field(ge=0, lt=100)
    """A rate of failures, refusals or departures under this is excused, however small stable's is."""
    false_alarm_percent: float = Field(gt=0, lt=100)
    """Of the releases that keep all limits, so many may be rolled back by bad luck: the error budget of a release."""
    missed_harm_percent: float = Field(gt=0, lt=100)
    """Of the stages in which a limit is broken twice over, so many may be passed by good luck."""
    minimum_requests: int = Field(ge=1)
    """A stage with fewer of the candidate's requests than this never passes."""
    warm_up_seconds: float = Field(ge=0)
    """Times to first token of requests that came before this are not judged: caches are cold. Failures are."""
    minimum_seconds: float = Field(ge=0)
    deadline_seconds: float = Field(gt=0)
    """A stage that has not passed by then is rolled back."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.error_margin_percent > self.error_percent:
            raise ValueError(
                f"error_margin_percent {self.error_margin_percent:g} would excuse what error_percent "
                f"{self.error_percent:g} forbids; lower the margin or raise the limit"
            )
        if self.warm_up_seconds >= self.deadline_seconds:
            raise ValueError(
                f"a stage that warms up for {self.warm_up_seconds:g} s has seen nothing by its deadline of "
                f"{self.deadline_seconds:g} s; lower warm_up_seconds or raise stage_deadline_seconds"
            )
        return self


@dataclass(frozen=True)
class Time:
    """A time of an answer, and the names of what is counted of it."""

    late: Measure
    hung: Measure
    slow: Measure
    later: Measure

    def limit_ms(self, limits: Limits) -> float | None:
        """The p95 that is promised."""
        return limits.first_token_p95_ms if self is FIRST_TOKEN else limits.token_p95_ms

    def is_judged(self, limits: Limits) -> bool:
        return self is FIRST_TOKEN or limits.token_p95_ms is not None

    def allowed_ms(self, stable_ms: float, limits: Limits) -> float:
        """The time up to which the candidate counts as no slower than stable with this time."""
        margin_ms = limits.first_token_margin_ms if self is FIRST_TOKEN else limits.token_margin_ms
        return max(stable_ms * limits.slower_than_stable, stable_ms + margin_ms)


FIRST_TOKEN = Time("late", "hung", "slow", "later than p90")
EACH_TOKEN = Time("late tokens", "hung tokens", "slow tokens", "tokens later than p90")
TIMES = (FIRST_TOKEN, EACH_TOKEN)
SLOWNESS = frozenset(time.slow for time in TIMES)
TIME_OF: Mapping[Measure, Time] = {m: time for time in TIMES for m in (time.late, time.hung, time.slow, time.later)}


@dataclass(frozen=True)
class Timing:
    """What is known of one time."""

    learned: int = 0
    """Answers timed so far, where it is not known yet what is slow."""
    slow_ms: tuple[float, ...] = ()
    """Stable's percentiles (`LINES`) before it is judged by them; empty while they are learned."""
    recent_ms: tuple[float | None, ...] = (None, None, None, None)
    """p50 and p95 of the candidate's last answers, then of stable's: to look at, nothing is judged by them."""


@dataclass(frozen=True)
class Weighed:
    """Answers, where each user of a slot weighs as his answers do that resemble each other."""

    hits: float
    """The candidate's."""
    all_hits: float
    """Both slots'."""
    of: float
    """The candidate's answers."""


@dataclass(frozen=True)
class Count:
    """Of one measure: what was seen in this stage, each user's first hit only."""

    hits: int = 0
    """The candidate's."""
    all_hits: int = 0
    """Both slots'."""
    of: int = 0
    """The candidate's requests of users without a hit before."""
    counted: int = 0
    """Of those, no more than `REQUESTS_A_USER` a user: what good news stands on."""
    counted_hits: int = 0
    harm: float = 0
    """The most that the bet on harm was ever worth, as a logarithm."""
    matters: float | None = None
    """The same of the bet on more harm than the margins excuse; None where there is no such bet, as in old ledgers."""
    harm_now: float = 0
    """What the two are worth now, whichever is less."""
    whole: float = 0
    """As `harm`, of the bet that goes on from an earlier stage."""
    whole_matters: float = 0
    all_of: int = 0
    """As `of`, of both slots; older ledgers do not know it."""
    weighed: Weighed | None = None
    """What good news beside stable stands on; None where each answer counts as one, as in older ledgers."""
    set_aside: int = 0
    """Of the candidate's requests, those in whose time stable broke the limit as well: no news of the candidate."""
    set_aside_hits: int = 0
    allowed: float | None = None
    """Alone, the rate that is excused by what was shown before; None where it is promised, or nothing was shown."""


@dataclass(frozen=True)
class CellCount:
    """What the candidate's users saw of one cell."""

    requests: int = 0
    """With those that the user broke off, for a replica that hangs has no others; older ledgers are without."""
    hits: Mapping[Measure, int] = field(default_factory=dict[Measure, int])


@dataclass(frozen=True)
class Evidence:
    """All that a ruling stands on: it can be ruled on again, years later, with the same result."""

    share: float
    """The candidate's, of the traffic."""
    budget: float
    """This stage's part of the release's error budget."""
    whole_budget: float = 0.0
    """The part of the bets that go on from an earlier stage; 0 where there are none."""
    requests: int = 0
    """The candidate's, without those that the user broke off."""
    stable_requests: int = 0
    users: int = 0
    """Whom the candidate's answers went to; a request without a user's hash counts as one."""
    counts: Mapping[Measure, Count] = field(default_factory=dict[Measure, Count])
    cells: Mapping[str, CellCount] = field(default_factory=dict[str, CellCount])
    trail: tuple[tuple[int, int], ...] = ()
    """The candidate's requests and failures on the way, as `failed` counts them; a few dozen however long it was."""
    dropped: tuple[str, ...] = ()
    """Cells that were held back; what was seen of them is in no count."""
    learned: int = 0
    """This and the next two are the `Timing` of the first token; they stand here in ledgers that know no other."""
    slow_ms: tuple[float, ...] = ()
    first_token_ms: tuple[float | None, ...] = (None, None, None, None)
    each_token: Timing = Timing()
    tokens: int = 0
    """Of the candidate's streamed answers, as far as they were taken in."""
    stable_tokens: int = 0
    answered: tuple[RequestKind, ...] = ()
    """Kinds of requests that somebody was answered well to, in this stage or before; older ledgers know of none."""

    def count(self, measure: Measure) -> Count:
        return self.counts.get(measure, _NOTHING)

    def timing(self, time: Time) -> Timing:
        if time is FIRST_TOKEN:
            return Timing(self.learned, self.slow_ms, self.first_token_ms)
        return self.each_token


_NOTHING = Count()

Check = Literal["wrong", "much shorter", "much longer"]
CHECKS: tuple[Check, ...] = ("wrong", "much shorter", "much longer")
"""What a probe's answer can be where the other slot's, to the same prompt, is not."""
PROBES_SHARE = 0.5
"""Each prompt is put to both slots."""
TIMES_ASKED = (3, 10, 30)
"""What the bets on answers are on: so many times as often as stable's."""


@dataclass(frozen=True)
class Probed:
    """What golden prompts have shown, apart from users."""

    evidence: Evidence
    """Of their failures and times; its budget is theirs, and as much again is for the answers."""
    answers: Mapping[Check, Count] = field(default_factory=dict[Check, Count])
    """Of the pairs of whole answers, those where one of the two is off and the other is not."""


def budget_of_stage(number: int, of: int) -> float:
    """Most of it for the first stage, for most harm shows at once, and bets go on; the others share the rest alike."""
    if of == 1:
        return 1.0
    return FIRST_STAGE if number == 0 else (1 - FIRST_STAGE) / (of - 1)


def percentile(sorted_values: Sequence[float], percent: float) -> float | None:
    """Nearest rank; None without data."""
    return sorted_values[ceil(len(sorted_values) * percent / 100) - 1] if sorted_values else None


def limit_of(measure: Measure, limits: Limits) -> float | None:
    """The rate that is promised: a p95 is under a limit where at most 5 % of the values are over it."""
    if measure in {"failed", "failed lately"}:
        return limits.error_percent / 100
    time = TIME_OF.get(measure)
    return 0.05 if time and measure == time.late and time.limit_ms(limits) is not None else None


def added(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """Hits of so many, twice."""
    return one[0] + other[0], one[1] + other[1]


def allowed_alone(hits: int, of: int, limits: Limits) -> float | None:
    """The rate of what nobody promised that is excused alone, after so many hits before; None where none can be told.

    Twice what was shown, and that is taken for as much as it may be.
    """
    if hits >= of:
        return None
    _, at_most = interval(hits, of, SHOWN_FOR_SURE)
    return max(EXCUSED_ALONE, limits.error_percent / 100, _times(at_most, HARM_THAT_MATTERS))


@dataclass(frozen=True)
class Purses:
    """What the bets on harm of one measure go on with in the next stage, each alternative by itself, as logarithms."""

    harm: tuple[float, ...]
    more: tuple[float, ...]
    often: tuple[float, ...]
    """The last two are against "a little more than stable" and "too rarely to matter"; empty where nothing is that."""

    @property
    def matters(self) -> float:
        """What the last two are worth, whichever is less."""
        return min(mean_of(bet) for bet in (self.more, self.often) if bet)


ONE_COIN = Purses((), (), ())


def purses_of_harm(drawn: Sequence[tuple[float, Count]], limits: Limits, begun: Purses = ONE_COIN) -> Purses:
    """Of the bets beside stable, by what was seen of those who are the candidate's with this or that chance."""
    harm, more, margin = begun.harm, begun.more, limits.error_margin_percent / 100
    for chance, count in drawn:
        harm = purses(count.hits, count.all_hits, *_above_stable(TIMES_STABLE, chance), harm)
        more = purses(count.hits, count.all_hits, *_above_stable(TIMES_STABLE, chance, limits.more_than_stable), more)
    hits, of = sum(count.hits for _, count in drawn), sum(count.of for _, count in drawn)
    return Purses(harm, more, purses(hits, of, *above_limit(margin), begun.often) if margin else ())


def worth_of_harm(measure: Measure, count: Count, share: float, limits: Limits) -> float:
    """Of the bet on harm: against "like stable" beside it, for what comes to both is nobody's; alone, by the limit."""
    if share < 1:
        times = TIMES_STABLE_IN_A_CELL if measure in SLOWNESS else TIMES_STABLE
        is_bet_on = measure in parts_of(share, limits)
        return worth(count.hits, count.all_hits, *_above_stable(times, share)) if is_bet_on else 0.0
    if count.allowed is not None:
        return worth(count.hits, count.of, *above_limit(count.allowed))
    limit = limit_of(measure, limits)
    if limit is None:
        return 0.0
    # Alone, a bad hour cannot be told from a slow model: late answers are harm where the promise is broken twice over.
    return worth(count.hits, count.of, *above_limit(limit * HARM_THAT_MATTERS if measure in TIME_OF else limit))


def _with_tokens(parts: Mapping[Part, float]) -> Mapping[Part, float]:
    """The first token's parts halved, and the other half for what is the same of each token."""
    first, each = FIRST_TOKEN, EACH_TOKEN
    pairs: tuple[tuple[Measure, Measure], ...] = (
        (first.late, each.late),
        (first.hung, each.hung),
        (first.slow, each.slow),
    )
    halves: dict[Part, float] = {m: parts[pair[0]] / 2 for pair in pairs if pair[0] in parts for m in pair}
    return {**parts, **halves}


_PARTS = {(False, False): BESIDE_STABLE, (True, False): ALONE}
_PARTS |= {(alone, True): _with_tokens(parts) for (alone, _), parts in _PARTS.items()}


def parts_of(share: float, limits: Limits) -> Mapping[Part, float]:
    """Of a stage's budget."""
    return _PARTS[share == 1, EACH_TOKEN.is_judged(limits)]


def above_limit(limit: float) -> tuple[float, list[float]]:
    """The bet against "the candidate's rate is within the limit": what it denies, and what it is on."""
    return limit, [_times(limit, times) for times in TIMES_THE_LIMIT]


def _above_stable(times_stable: Sequence[float], share: float, ratio: float = 1.0) -> tuple[float, list[float]]:
    """The same against "no more than `ratio` times stable's rate"."""
    return share_at(share, ratio), [share_at(share, ratio * times) for times in times_stable]


def worth_that_matters(measure: Measure, count: Count, share: float, limits: Limits) -> float:
    """Of the bets against "a little more than stable" and "too rarely to matter", what is worth less.

    As the bet on harm where no more is excused: alone, and where the lines of the slow have it in them.
    """
    if share == 1 or measure in SLOWNESS:
        return worth_of_harm(measure, count, share, limits)
    return purses_of_harm([(share, count)], limits).matters


def worth_within_limit(count: Count, limit: float) -> float:
    """Of the bet against "the candidate breaks the limit twice over, or worse"."""
    others = [limit * fraction for fraction in FRACTIONS_OF_THE_LIMIT]
    return worth(count.counted_hits, count.counted, _times(limit, HARM_THAT_MATTERS), others)


def worth_like_stable(count: Count, share: float) -> float:
    """Of the bet against "the candidate is later than stable's p90 twice as often as stable, or worse".

    A fifth of the coin is on the candidate alone, against "later in 20 % of its answers": where all answers take the
    same time, nobody is ever later, and comparing would tell nothing.
    """
    seen = count.weighed or Weighed(count.hits, count.all_hits, count.counted)
    null, others = share_at(share, HARM_THAT_MATTERS), [share_at(share, fraction) for fraction in FRACTIONS_OF_STABLE]
    beside = worth(seen.hits, seen.all_hits, null, others)
    others = [LATER_THAN_P90 * fraction for fraction in FRACTIONS_OF_STABLE]
    alone = worth(seen.hits, seen.of, LATER_THAN_P90 * HARM_THAT_MATTERS, others)
    best = max(beside, alone)
    return best + log((4 * exp(beside - best) + exp(alone - best)) / 5)


def _times(rate: float, times: float) -> float:
    """So many times a rate; of a large one, so many times less of the rest: a rate stays under 1."""
    return min(rate * times, 1 - (1 - rate) / times)
