"""How strongly do the times of answers say that the candidate is slower than stable?

An answer lies in one of the bands between stable's lines, and a slower candidate has more of its answers in the later
ones. If the slots are alike, whose an answer is has nothing to do with its band; but it is the user who is the
candidate's or not, and once that is known, the next answer of the same user is no news. So there are two bets:

- On each user's first answer, after every answer. It is a martingale in what first answers tell of who is whose.
- On all answers of all users, at looks that are fixed beforehand in answers of both slots. There each user is one draw:
  given all answers, the ratio `weight ** mine / (share * weight + 1 - share)` is 1 on average, whatever the weight is
  made of, and so is the product over users, who are drawn independently. No martingale joins two looks, for labels are
  known by the second; but the parts of all looks together are worth one coin on average at the end, and their sum never
  falls, so by Markov's inequality it ever reaches 1/alpha with a chance of alpha at most.

The first of them is also held over all stages so far: whoever was the candidate's in an earlier one is no draw any
more, and who was stable's is the candidate's with another chance than a user whom nobody saw.

The candidate's answers are put into bands by lines that are later by what is excused, which lowers their weights, and
with them both bets. The lines are drawn from both slots, so that where those are alike they know of no slot.

The two bets know different things, so their coins must not be put into one purse (Choe and Ramdas, arXiv 2402.09698: an
average of e-processes of two filtrations is none); each is held against its own part of the bar.
"""

from array import array
from collections.abc import Sequence
from itertools import pairwise
from math import exp, inf, log
from statistics import NormalDist

from flows.policy.gating.bets import mean_of, together
from flows.policy.gating.measures import LINES
from flows.policy.gating.tally import PLACES


def _bands(shift: float) -> tuple[float, ...]:
    """How many times as often as stable's a candidate's answers lie in each band, shifted by so many deviations."""
    edges = [0.0, *(line / 100 for line in LINES), 1.0]
    normal = NormalDist()
    shifted = [0.0, *(normal.cdf(normal.inv_cdf(edge) - shift) for edge in edges[1:-1]), 1.0]
    parts = zip(pairwise(shifted), pairwise(edges), strict=True)
    return tuple((high - low) / (to - begin) for (low, high), (begin, to) in parts)


SLOWER = (_bands(0.36), _bands(0.8), _bands(1.6))
"""What the bets are on: a little, half as much again, twice as slow, where times spread as is usual."""
SLOWER_ON_ALL = SLOWER[:2]
"""Twice as slow shows in first answers before anybody has given many."""
ON_FIRST = 0.75
"""Of the coin, what is on first answers; the rest is on all."""
LOOKS = tuple(round(1000 * 1.4**number) for number in range(14))
"""After so many answers of both slots all of them are looked at; each look has the same part of its coin."""
ALIKE_WITHIN = 0.05
"""How much the answers of one user are taken to resemble each other: n of them weigh as n / (1 + this * (n - 1)) would.

Kish's design effect (Survey Sampling, 1965). It bounds what a user is worth, and whatever it is, the bet is fair.
"""


class Slowness:
    """What the bets of one time in one stage are worth, as logarithms."""

    def __init__(self, chances: Sequence[float], begun: Sequence[float] = ()) -> None:
        """Beside the bets of the stage, that on first answers goes on which has `begun` before.

        `chances` of being drawn: the share first, which is that of everybody for the stage's own bets.
        """
        self._share = chances[0]
        self._added = [slowness_of(chance) for chance in chances]
        self._first = [0.0] * len(SLOWER)
        self._whole = [*begun]
        self._weights = [[log(times) for times in bands] for bands in SLOWER_ON_ALL]
        self._sums = [array("d", bytes(8 * PLACES)) for _ in SLOWER_ON_ALL]
        self._all = [0.0] * len(SLOWER_ON_ALL)
        self._answers, self._owner = array("I", bytes(4 * PLACES)), array("H", bytes(2 * PLACES))
        self._taken = self._looks = 0
        self._last_look = self._all_looks = -inf
        self.best = 0.0
        """The most that the bets of this stage were ever worth."""
        self.whole = log(ON_FIRST) + mean_of(begun) if begun else 0.0
        """The same of the bet that goes on."""

    @property
    def now(self) -> float:
        """What a coin is worth now: on all answers once they were looked at, for they know of first answers as well."""
        return self._last_look if self._looks else mean_of(self._first)

    @property
    def purses(self) -> tuple[float, ...]:
        """What the bet on first answers goes on with in the next stage."""
        return tuple(self._whole or self._first)

    def take(self, band: int, user: int | None, *, mine: bool, draw: int | None = 0) -> None:
        """Take in an answer; `user` is a hash of 32 bits, None where nobody knows; `draw` as in `Tally.take`."""
        place = None if user is None else user % PLACES
        if place is None or not self._answers[place]:
            self._first = _with(self._first, self._added[0], band, mine=mine)
            self.best = max(self.best, log(ON_FIRST) + mean_of(self._first))
            if self._whole and draw is not None:
                self._whole = _with(self._whole, self._added[draw], band, mine=mine)
                self.whole = max(self.whole, log(ON_FIRST) + mean_of(self._whole))
        if user is None or place is None:
            for number, weights in enumerate(self._weights):
                self._all[number] += self._worth_of_user(weights[band], mine=mine)
        else:
            self._add(band, place, user // PLACES, mine=mine)
        self._taken += 1
        if self._looks < len(LOOKS) and self._taken == LOOKS[self._looks]:
            self._look()

    def _add(self, band: int, place: int, who: int, *, mine: bool) -> None:
        """To what this user's answers weigh. Of two at one place the first counts: who, is settled without labels."""
        before = self._answers[place]
        if not before:
            self._owner[place] = who
        elif self._owner[place] != who:
            return
        self._answers[place] = before + 1
        for number, (weights, sums) in enumerate(zip(self._weights, self._sums, strict=True)):
            if before:
                self._all[number] -= self._worth_of_user(sums[place] / _design_effect(before), mine=mine)
            sums[place] += weights[band]
            self._all[number] += self._worth_of_user(sums[place] / _design_effect(before + 1), mine=mine)

    def _worth_of_user(self, weight: float, *, mine: bool) -> float:
        return weight * mine - log(self._share * exp(weight) + 1 - self._share)

    def _look(self) -> None:
        self._looks += 1
        self._last_look = mean_of(self._all)
        self._all_looks = together(self._all_looks, self._last_look - log(len(LOOKS)))
        self.best = max(self.best, log(1 - ON_FIRST) + self._all_looks)


def slowness_of(share: float) -> list[list[tuple[float, float]]]:
    """What a first answer adds to the bets: of each bet and band, one of stable's and one of the candidate's.

    A bet that pays more for the candidate's answers the later they are loses on average where the slots are alike, and
    more so where the candidate is the faster one.
    """
    return [[(-log(share * r + 1 - share), log(r / (share * r + 1 - share))) for r in bands] for bands in SLOWER]


def _with(
    worths: Sequence[float], added: Sequence[Sequence[tuple[float, float]]], band: int, *, mine: bool
) -> list[float]:
    return [worth + bands[band][mine] for worth, bands in zip(worths, added, strict=True)]


def _design_effect(answers: int) -> float:
    return 1 + ALIKE_WITHIN * (answers - 1)
