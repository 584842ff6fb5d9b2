"""Worlds in which releases are judged: users and requests that know nothing of slots, and what a bad candidate adds."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Self
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

MEDIAN_MS, MEDIAN_TOKEN_MS = 120, 25
HASHES = 1 << 32
AR_BLOCK, AR_MEMORY = 50, 0.9
"""Latency that remembers: one draw for 50 requests, of which the next takes over nine tenths."""
BURST_REQUESTS = 200
MANY = 200_000
HOUR_SECONDS = 3600.0
"""From a release's beginning until somebody notices, if nothing has rolled it back."""
OUTAGE_SECONDS, OUTAGE_FAILING, OUTAGE_FROM_SECONDS = 30.0, 0.6, (30.0, 150.0)
"""How long it lasts, what part of the requests fails meanwhile, and when it begins."""
DRIFT_SECONDS = 1800
"""A day, made short: at 200 requests a second a release is over in minutes, and would see nothing of a longer one."""


@dataclass(frozen=True)
class World:
    name: str
    requests_per_second: float = 20
    users: int = 0
    """0: requests without a user's hash."""
    activity_tail: float = 1.2
    """Pareto's exponent of how often a user comes: the smaller, the more a few of them dominate."""
    failing_percent: float = 0.2
    always_failing_percent_of_users: float = 0
    """Users who send what fails in every slot, each time."""
    tail: str = "log-normal"
    users_spread: float = 0
    """Of users' own levels of both times, as a logarithm: some ask long questions, each time."""
    has_an_outage: bool = False
    """Of something that both slots share, once, early in the release."""
    is_bursty: bool = False
    is_autocorrelated: bool = False
    drifts: bool = False


@dataclass(frozen=True)
class Harm:
    name: str = "none"
    more_failing_percent: float = 0
    on_long_prompts_percent: float = 0
    """Of the long prompts, which some users send more than others, so many fail."""
    slower: float = 1
    slower_tokens: float = 1
    ten_times_slower_percent: float = 0
    is_of_speed: bool = False
    from_share: float = 0
    """It begins once the candidate has so much of the traffic, as where queues grow long."""

    def at(self, share: float) -> "Harm":
        return self if share >= self.from_share else Harm()


@dataclass(frozen=True)
class Stream:
    """Some requests in order, before anybody is given a slot."""

    seconds: Floats
    user_luck: Floats
    """Between 0 and 1, the same for all requests of a user: whoever is below the share is the candidate's."""
    user: Ints
    """Their hashes, as the judge makes them; from HASHES on, each is a user by itself."""
    failure_luck: Floats
    stable_failing: Floats
    """The chance that stable fails this request; 1 for who always fails."""
    harm_luck: Floats
    long_luck: Floats
    """Below 0.1, a long prompt."""
    stable_ms: Floats
    stable_token_ms: Floats
    level: Floats
    token_level: Floats
    """What the two times of all users are a multiple of just then: the hour of the day, and what latency remembers."""

    def __len__(self) -> int:
        return len(self.seconds)

    def between(self, begin: int, end: int) -> Self:
        return type(self)(*(getattr(self, name)[begin:end] for name in self.__dataclass_fields__))

    def some(self, at: Ints) -> Self:
        return type(self)(*(getattr(self, name)[at] for name in self.__dataclass_fields__))

    def failed(self, mine: Flags, harm: Harm) -> Flags:
        added = harm.more_failing_percent / 100 + (self.long_luck < 0.1) * harm.on_long_prompts_percent / 100
        return (self.failure_luck < self.stable_failing) | (mine & (self.harm_luck < added))

    def first_token_ms(self, mine: Flags, harm: Harm) -> Floats:
        slower = np.where(self.harm_luck < harm.ten_times_slower_percent / 100, 10.0, harm.slower)
        return np.where(mine, self.stable_ms * slower, self.stable_ms)

    def token_ms(self, mine: Flags, harm: Harm) -> Floats:
        return np.where(mine, self.stable_token_ms * harm.slower_tokens, self.stable_token_ms)

    def harmed_ms(self, mine: Flags, harm: Harm) -> Floats:
        """The time that a harm of speed is in, over what all users have just then."""
        if harm.slower_tokens == 1:
            return self.first_token_ms(mine, harm) / self.level
        return self.token_ms(mine, harm) / self.token_level

    def harmed_users(self, mine: Flags, harm: Harm) -> Ints:
        """The candidate's users whom a request failed, or, with a harm of speed, who were answered; each once."""
        return np.unique(self.user[mine if harm.is_of_speed else mine & self.failed(mine, harm)])


class Borne:
    """Adds up what the candidate's users bear."""

    def __init__(self, harm: Harm) -> None:
        self._harm = harm
        self._users: set[int] = set()
        self.requests = 0
        """Of the candidate."""

    @property
    def users(self) -> int:
        return len(self._users)

    def users_in_the_hour(self, traffic: "Traffic", since_seconds: float) -> int:
        """Where it was let through by then: with all whom it harms in the rest of the hour."""
        rest = traffic.within(since_seconds, max(since_seconds, HOUR_SECONDS))
        return len(self._users.union(rest.harmed_users(np.ones(len(rest), bool), self._harm).tolist()))

    def take(self, stream: Stream, mine: Flags, share: float) -> None:
        if share >= self._harm.from_share:
            self._users.update(stream.harmed_users(mine, self._harm).tolist())
        self.requests += int(mine.sum())


@dataclass(frozen=True)
class Rates:
    """Of hits, of stable and of a bad candidate; with harms of speed, a hit is an answer beyond the line."""

    line: float
    good: float
    bad: float

    @property
    def information(self) -> float:
        """Of one request of the candidate (Kullback and Leibler)."""
        p, q = self.bad, self.good
        return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


@lru_cache
def promised_ms(world: World) -> float:
    """What its service promises of the first token: twice the true p95, so that a release like stable keeps it."""
    return 2 * float(np.percentile(Traffic(world, seed=0).take(0, MANY).stable_ms, 95))


@lru_cache
def promised_token_ms(world: World) -> float:
    """The same per token."""
    return 2 * float(np.percentile(Traffic(world, seed=0).take(0, MANY).stable_token_ms, 95))


class Traffic:
    """Requests of one release, drawn as far as somebody asks for them; the same for the same seed."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self._random = np.random.default_rng(seed)
        # By itself: the rest is the same as where nobody looks at tokens.
        self._token_random = np.random.default_rng((seed, 1))
        more_random = np.random.default_rng((seed, 2))
        self._outage_from = float(more_random.uniform(*OUTAGE_FROM_SECONDS))
        self._drawn: list[Stream] = []
        self._length = 0
        self._seconds = 0.0
        if world.users:
            activity = self._random.pareto(world.activity_tail, world.users) + 1
            self._activity = np.cumsum(activity / activity.sum())
            self._luck = self._random.random(world.users)
            self._hashes = np.array([crc32(str(user).encode()) for user in range(world.users)], dtype=np.int64)
            self._always = self._random.random(world.users) < world.always_failing_percent_of_users / 100
            self._long = self._random.beta(0.5, 4.5, world.users)
            self._own = np.exp(world.users_spread * more_random.standard_normal((2, world.users)))

    def take(self, begin: int, count: int) -> Stream:
        while self._length < begin + count:
            self._drawn.append(self._draw(max(8192, begin + count - self._length)))
            self._length += len(self._drawn[-1])
        if len(self._drawn) > 1:
            self._drawn = [_joined(self._drawn)]
        return self._drawn[0].between(begin, begin + count)

    def within(self, begin_seconds: float, end_seconds: float) -> Stream:
        """What comes in this time."""
        while self._seconds < end_seconds:
            self.take(self._length, 1)
        whole = self.take(0, self._length)
        begin, end = np.searchsorted(whole.seconds, (begin_seconds, end_seconds))
        return whole.between(int(begin), int(end))

    def true_rates(self, harm: Harm) -> "Rates":
        """What nobody can know: the rates of both slots, over all users; of times, at the level that all have."""
        many = Traffic(self.world, seed=0).take(0, MANY)
        ours, theirs = np.ones(MANY, bool), np.zeros(MANY, bool)
        if not harm.is_of_speed:
            good, bad = float(many.failed(theirs, harm).mean()), float(many.failed(ours, harm).mean())
            return Rates(0.0, good, bad)
        slow, stables = many.harmed_ms(ours, harm), many.harmed_ms(theirs, harm)
        choices = [
            Rates(line, float((stables > line).mean()), float((slow > line).mean()))
            for line in np.percentile(stables, (50, 90, 99)).tolist()
        ]
        return max(choices, key=lambda rates: rates.information)

    def _draw(self, count: int) -> Stream:
        world, random = self.world, self._random
        rate = np.full(count, world.requests_per_second)
        if world.is_bursty:
            blocks = random.choice([0.3, 5.0], size=count // BURST_REQUESTS + 1)
            rate = rate * np.repeat(blocks, BURST_REQUESTS)[:count]
        seconds = self._seconds + np.cumsum(random.exponential(1, count) / rate)
        self._seconds = float(seconds[-1])
        if world.users:
            who = np.minimum(np.searchsorted(self._activity, random.random(count)), world.users - 1)
            luck, user, always = self._luck[who], self._hashes[who], self._always[who]
            long_luck = np.where(random.random(count) < self._long[who], 0.05, 0.5)
            own, own_token = self._own[:, who]
        else:
            luck, always, long_luck = random.random(count), np.zeros(count, bool), random.random(count)
            user = HASHES + self._length + np.arange(count)
            own, own_token = np.ones((2, count))
        tide = 1 + 0.5 * np.sin(2 * np.pi * seconds / DRIFT_SECONDS) if world.drifts else np.ones(count)
        ms, level = self._times(random, MEDIAN_MS * tide, spread=0.5)
        token_ms, token_level = self._times(self._token_random, MEDIAN_TOKEN_MS * tide, spread=0.3)
        failing = np.where(always, 1.0, world.failing_percent / 100 * tide)
        if world.has_an_outage:
            is_out = (seconds >= self._outage_from) & (seconds < self._outage_from + OUTAGE_SECONDS)
            failing = np.where(is_out, np.maximum(failing, OUTAGE_FAILING), failing)
        return Stream(
            seconds=seconds,
            user_luck=luck,
            user=user,
            failure_luck=random.random(count),
            stable_failing=failing,
            harm_luck=random.random(count),
            long_luck=long_luck,
            stable_ms=ms * own,
            stable_token_ms=token_ms * own_token,
            level=level,
            token_level=token_level,
        )

    def _times(self, random: np.random.Generator, level: Floats, spread: float) -> tuple[Floats, Floats]:
        """Around a level that the world may still shift, and the level then."""
        if self.world.tail == "Pareto":
            times = (random.pareto(2.5, len(level)) + 1) / 2 ** (1 / 2.5)
        else:
            times = np.exp(spread * random.standard_normal(len(level)))
        if self.world.is_autocorrelated:
            level = level * np.exp(0.3 * _remembering(random, len(level)))
        return level * times, level


def _remembering(random: np.random.Generator, count: int) -> Floats:
    blocks = count // AR_BLOCK + 1
    noise = random.standard_normal(blocks) * np.sqrt(1 - AR_MEMORY**2)
    remembered, last = np.empty(blocks), 0.0
    for block in range(blocks):
        last = AR_MEMORY * last + noise[block]
        remembered[block] = last
    return np.repeat(remembered, AR_BLOCK)[:count]


def _joined(parts: list[Stream]) -> Stream:
    return Stream(*(np.concatenate([getattr(part, name) for part in parts]) for name in Stream.__dataclass_fields__))
