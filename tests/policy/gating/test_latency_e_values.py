"""What the e-processes on slower answers are worth, to users who send many requests."""

from itertools import product
from math import exp, log
from random import Random

import numpy as np
import pytest

from flows.policy.gating.evidence import EDGES
from flows.policy.gating.hits import Trials
from flows.policy.gating.latency_e_values import INTERIM_ANALYSES, SlownessEProcesses, first_answer_table
from flows.policy.gating.outcomes import BUCKETS

BINS = range(len(EDGES) + 1)
SLOWEST = BINS[-1]


class Answers:
    """One by one, by the question "slower at all"."""

    def __init__(self, chances: list[float]) -> None:
        self._processes = SlownessEProcesses(chances)
        self._seen: set[int] = set()

    def take(self, *answers: tuple[int, int, bool]) -> None:
        """Of each: its bin, its user, and whether the candidate gave it."""
        bins, users, mine = (np.array(column) for column in zip(*answers, strict=True))
        buckets, zeros = users % BUCKETS, np.zeros(len(users), np.int64)
        first = [n for n, bucket in enumerate(buckets.tolist()) if bucket not in self._seen and not self._add(bucket)]
        trials = Trials(
            is_candidate=mine.astype(bool),
            user=users,
            bucket=buckets,
            number=zeros,
            assignment=zeros,
            counts=zeros == 0,
            cell=zeros - 1,
            at=np.arange(len(users)),
            analyses=np.array([len(users)]),
        )
        self._processes.take(np.stack([bins, bins]), trials, np.array(first, np.int64))

    def _add(self, bucket: int) -> None:
        self._seen.add(bucket)

    @property
    def current(self) -> float:
        return self._processes.current

    @property
    def peak(self) -> float:
        return float(self._processes.peak[0])


def looked_at(processes: Answers, answers: list[tuple[int, int, bool]]) -> float:
    """What the e-value is worth at the first look: after these answers, and as many by nobody as are missing."""
    processes.take(*answers)
    return processes.current


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_first_answer_is_worth_nothing_on_average_where_the_slots_are_alike(share: float) -> None:
    """Whatever its band: what it pays as the candidate's and what it costs as stable's are 1 together."""
    for bins in first_answer_table(share):
        for stables, mine in bins.T:
            assert share * exp(mine) + (1 - share) * exp(stables) == pytest.approx(1)


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_a_look_at_all_answers_is_worth_one_coin_on_average(share: float) -> None:
    """Over all ways to give four users to the slots, also where one sends nearly all answers, and they are slow."""
    random = Random(1)  # noqa: S311 - the same each time, and no secret
    # The last two have one place: the first of them counts.
    users = [1, 2, 3, 3 + BUCKETS]
    answers = [(random.choice(BINS), random.choice(users)) for _ in range(100)]
    answers += [(SLOWEST, 1)] * (INTERIM_ANALYSES[0] - len(answers))
    worth = 0.0
    for slots in product((True, False), repeat=len(users)):
        is_mine = dict(zip(users, slots, strict=True))
        processes = Answers([share])
        chance = share ** sum(slots) * (1 - share) ** (len(slots) - sum(slots))
        worth += chance * exp(looked_at(processes, [(band, user, is_mine[user]) for band, user in answers]))
    assert worth == pytest.approx(1)


def test_one_user_is_worth_no_more_than_the_luck_of_drawing_him() -> None:
    """A thousand slow answers of one user at 5 % are a chance of one in twenty."""
    assert looked_at(Answers([0.05]), [(SLOWEST, 1, True)] * INTERIM_ANALYSES[0]) <= log(20)


def test_many_answers_of_few_users_tell_what_their_first_ones_do_not() -> None:
    """Forty users whose answers all are a little slower: found by all of them, and hardly suspicious by the first."""
    random = Random(2)  # noqa: S311 - the same each time, and no secret
    processes = Answers([0.5])
    for number in range(INTERIM_ANALYSES[5]):
        user = number % 80
        mine = user % 2 == 0
        quantile = random.random() ** (0.7 if mine else 1.0)
        processes.take((sum(100 * quantile > line for line in EDGES), user, mine))
        if number == 80:
            assert processes.peak < log(100)
    assert processes.peak > log(1000)


def test_users_whose_answers_are_always_slow_are_no_harm() -> None:
    """Of 300 stages with heavy-tailed users, a tenth of whom are always slow, a twentieth at most reach 20."""
    random = Random(3)  # noqa: S311 - the same each time, and no secret
    beaten = 0
    for _ in range(300):
        slots = [random.random() < 0.3 for _ in range(60)]
        is_slow = [random.random() < 0.1 for _ in slots]
        processes = Answers([0.3])
        drawn = random.choices(range(60), [random.paretovariate(1.1) for _ in slots], k=INTERIM_ANALYSES[3])
        processes.take(*((SLOWEST if is_slow[user] else random.choice(BINS), user, slots[user]) for user in drawn))
        beaten += processes.peak >= log(20)
    assert beaten <= 15 + 3 * 15**0.5


def test_what_a_coin_is_worth_now_follows_all_answers() -> None:
    """A first impression that later answers of the same users do not bear out is forgotten; at its best it stays."""
    processes, random = Answers([0.5]), Random(4)  # noqa: S311 - the same each time, and no secret
    for user in range(20):
        processes.take((SLOWEST if user % 2 else 0, user, bool(user % 2)))
    assert processes.current > log(100)
    best = processes.peak
    for number in range(INTERIM_ANALYSES[1]):
        processes.take((random.choice(BINS), number % 20, bool(number % 2)))
    assert processes.current < log(2)
    assert processes.peak >= best
