"""What the bets on slower answers are worth, to users who send many requests."""

from itertools import product
from math import exp, log
from random import Random

import pytest

from flows.policy.gating.measures import LINES
from flows.policy.gating.slowness import LOOKS, Slowness, slowness_of
from flows.policy.gating.tally import PLACES

BANDS = range(len(LINES) + 1)
SLOWEST = BANDS[-1]


def looked_at(bets: Slowness, answers: list[tuple[int, int, bool]]) -> float:
    """What a coin is worth at the first look: after these answers, and as many by nobody as are missing."""
    for band, user, mine in answers:
        bets.take(band, user, mine=mine)
    return bets.now


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_first_answer_is_worth_nothing_on_average_where_the_slots_are_alike(share: float) -> None:
    """Whatever its band: what it pays as the candidate's and what it costs as stable's are one coin together."""
    for bands in slowness_of(share):
        for stables, mine in bands:
            assert share * exp(mine) + (1 - share) * exp(stables) == pytest.approx(1)


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_a_look_at_all_answers_is_worth_one_coin_on_average(share: float) -> None:
    """Over all ways to give four users to the slots, also where one sends nearly all answers, and they are slow."""
    random = Random(1)  # noqa: S311 - the same each time, and no secret
    # The last two have one place: the first of them counts.
    users = [1, 2, 3, 3 + PLACES]
    answers = [(random.choice(BANDS), random.choice(users)) for _ in range(100)]
    answers += [(SLOWEST, 1)] * (LOOKS[0] - len(answers))
    worth = 0.0
    for slots in product((True, False), repeat=len(users)):
        is_mine = dict(zip(users, slots, strict=True))
        bets = Slowness([share])
        chance = share ** sum(slots) * (1 - share) ** (len(slots) - sum(slots))
        worth += chance * exp(looked_at(bets, [(band, user, is_mine[user]) for band, user in answers]))
    assert worth == pytest.approx(1)


def test_one_user_is_worth_no_more_than_the_luck_of_drawing_him() -> None:
    """A thousand slow answers of one user at 5 % are a chance of one in twenty."""
    assert looked_at(Slowness([0.05]), [(SLOWEST, 1, True)] * LOOKS[0]) <= log(20)


def test_many_answers_of_few_users_tell_what_their_first_ones_do_not() -> None:
    """Forty users whose answers all are a little slower: found by all of them, and hardly suspicious by the first."""
    random = Random(2)  # noqa: S311 - the same each time, and no secret
    bets = Slowness([0.5])
    for number in range(LOOKS[5]):
        user = number % 80
        mine = user % 2 == 0
        quantile = random.random() ** (0.7 if mine else 1.0)
        bets.take(sum(100 * quantile > line for line in LINES), user, mine=mine)
        if number == 80:
            assert bets.best < log(100)
    assert bets.best > log(1000)


def test_users_whose_answers_are_always_slow_are_no_harm() -> None:
    """Of 300 stages with heavy-tailed users, a tenth of whom are always slow, a twentieth at most reach 20 coins."""
    random = Random(3)  # noqa: S311 - the same each time, and no secret
    beaten = 0
    for _ in range(300):
        slots = [random.random() < 0.3 for _ in range(60)]
        is_slow = [random.random() < 0.1 for _ in slots]
        bets = Slowness([0.3])
        for user in random.choices(range(60), [random.paretovariate(1.1) for _ in slots], k=LOOKS[3]):
            band = SLOWEST if is_slow[user] else random.choice(BANDS)
            bets.take(band, user, mine=slots[user])
        beaten += bets.best >= log(20)
    assert beaten <= 15 + 3 * 15**0.5


def test_what_a_coin_is_worth_now_follows_all_answers() -> None:
    """A first impression that later answers of the same users do not bear out is forgotten; at its best it stays."""
    bets, random = Slowness([0.5]), Random(4)  # noqa: S311 - the same each time, and no secret
    for user in range(20):
        bets.take(SLOWEST if user % 2 else 0, user, mine=bool(user % 2))
    assert bets.now > log(100)
    best = bets.best
    for number in range(LOOKS[1]):
        bets.take(random.choice(BANDS), number % 20, mine=bool(number % 2))
    assert bets.now < log(2)
    assert bets.best >= best
