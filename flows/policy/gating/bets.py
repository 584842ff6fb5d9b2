"""How strongly do counts speak against a claim? Evidence that stays honest however often one looks.

A bet against the claim "the chance of a hit is at most (or at least) `null`" begins with one coin. Each request
multiplies its worth by the chance that another rate gives to what happened over the chance that the claim gives. If
the claim is true, the bet is a supermartingale, so by Ville's inequality (1939) it is ever worth 1/alpha with a chance
of alpha at most: after each request, at any time, without end. Nobody knows which other rate is right, so the coin is
spread over several (mixtures: Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon, arXiv 1810.08240). Two slots are
compared as Lindon and Malek do (arXiv 2011.03567): if they are alike, each failure belongs to the candidate with the
chance of its share of the traffic, whatever the rate of failures, its bursts and its drift.

A bet is worth its logarithm here: a large one is past what a float holds.
"""

from collections.abc import Callable, Sequence
from itertools import repeat
from math import exp, lgamma, log, log1p


def worth(hits: float, of: float, null: float, others: Sequence[float]) -> float:
    """The logarithm of what a bet on `others`, all above or all below `null`, is worth after `hits` of `of`."""
    return mean_of(purses(hits, of, null, others))


def purses(
    hits: float, of: float, null: float, others: Sequence[float], begun: Sequence[float] = ()
) -> tuple[float, ...]:
    """The same of each of `others` by itself, where it had `begun` with so much; with one coin if nothing is said."""
    misses = of - hits
    worths = (hits * log(p / null) + misses * (log1p(-p) - log1p(-null)) for p in others)
    return tuple(had + won for had, won in zip(begun or repeat(0.0), worths, strict=False))


def together(*worths: float) -> float:
    """The sum of coins, all as logarithms."""
    best = max(worths)
    return best + log(sum(exp(worth - best) for worth in worths))


def mean_of(worths: Sequence[float]) -> float:
    return together(*worths) - log(len(worths))


def share_at(share: float, ratio: float) -> float:
    """The candidate's part of all hits, where its rate is `ratio` times stable's and its traffic is this share."""
    return share * ratio / (share * ratio + 1 - share)


def interval(hits: int, of: int, alpha: float) -> tuple[float, float]:
    """Where the rate lies: right for all looks together with a chance of 1 - `alpha`, for ever.

    The rates that a bet with Jeffreys' mixture does not make 1 / `alpha` coins against (Robbins 1970).
    """
    if not of:
        return 0.0, 1.0
    mixture = lgamma(hits + 0.5) + lgamma(of - hits + 0.5) - lgamma(of + 1) - 2 * lgamma(0.5)

    def is_beaten(rate: float) -> bool:
        return mixture - hits * log(rate) - (of - hits) * log1p(-rate) >= -log(alpha)

    return _edge(is_beaten, hits / of, 0.0), _edge(is_beaten, hits / of, 1.0)


def _edge(is_beaten: Callable[[float], bool], inside: float, outside: float) -> float:
    for _ in range(40):
        middle = (inside + outside) / 2
        if middle in {0.0, 1.0}:
            break
        inside, outside = (inside, middle) if is_beaten(middle) else (middle, outside)
    return inside
