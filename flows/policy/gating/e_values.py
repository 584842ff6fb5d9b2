"""How strongly do counts speak against a claim? E-values: evidence that stays honest however often one looks.

An e-process against the claim "the chance of a hit is at most (or at least) `null`" begins at 1. Each request
multiplies it by the chance that an alternative gives to what happened over the chance that the claim gives. If the
claim is true, the product is a supermartingale, so by Ville's inequality (1939) it ever reaches 1/alpha with a chance
of alpha at most: after each request, at any time, without end; so 1 / its peak is a p-value that is valid at any time.
Nobody knows which alternative is right, so the process is the mean over several (mixtures: Robbins 1970; Howard,
Ramdas, McAuliffe and Sekhon, arXiv 1810.08240). Two slots are compared as Lindon and Malek do (arXiv 2011.03567): if
they are alike, each hit belongs to the candidate with the chance of its weight in the split, whatever the rate of hits,
its bursts and its drift.

All of it is in logarithms, for a large e-value is past what a float holds, and in arrays, so that one code judges a
second of a service and a whole simulated release.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import lgamma, log, log1p

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

Hypotheses = tuple[float, tuple[float, ...]]
"""The rate that a claim allows, and the alternatives: rates that are all above it, or all below."""


@lru_cache(maxsize=1024)
def log_likelihood_ratios(hypotheses: Hypotheses) -> Floats:
    """Of a miss and of a hit, by each alternative: an array of (2, alternatives)."""
    null, alternatives = hypotheses
    table = [[log1p(-p) - log1p(-null) for p in alternatives], [log(p / null) for p in alternatives]]
    ratios = np.array(table)
    ratios.setflags(write=False)
    return ratios


def log_wealth(hits: Floats | float, trials: Floats | float, hypotheses: Hypotheses) -> Floats:
    """The logarithm of the e-process of each alternative by itself: (alternatives, *shape of `hits`)."""
    miss, hit = log_likelihood_ratios(hypotheses)
    return np.multiply.outer(hit, hits) + np.multiply.outer(miss, np.subtract(trials, hits))


def log_e_value(hits: Floats | float, trials: Floats | float, hypotheses: Hypotheses) -> Floats:
    """The logarithm of the mixture over all alternatives after `hits` of `trials`."""
    return log_mean(log_wealth(hits, trials, hypotheses))


def log_mean(logarithms: Floats) -> Floats:
    """The logarithm of the mean over the first axis."""
    return np.logaddexp.reduce(logarithms, axis=0) - log(len(logarithms))


def number_of(flags: Flags) -> int:
    return int(np.count_nonzero(flags))


def part_of_hits(weight: float, ratio: float) -> float:
    """The candidate's part of all hits, where its rate is `ratio` times stable's and it has this weight."""
    return weight * ratio / (weight * ratio + 1 - weight)


def multiplied(rate: float, ratio: float) -> float:
    """So many times a rate; of a large one, so many times less of the rest: a rate stays under 1."""
    return min(rate * ratio, 1 - (1 - rate) / ratio)


def confidence_interval(hits: int, of: int, alpha: float) -> tuple[float, float]:
    """Where the rate lies: right at all interim analyses together with a chance of 1 - `alpha`, for ever.

    The rates that an e-process with Jeffreys' mixture does not reject at 1 / `alpha` (Robbins 1970).
    """
    if not of:
        return 0.0, 1.0
    mixture = lgamma(hits + 0.5) + lgamma(of - hits + 0.5) - lgamma(of + 1) - 2 * lgamma(0.5)

    def is_rejected(rate: float) -> bool:
        return mixture - hits * log(rate) - (of - hits) * log1p(-rate) >= -log(alpha)

    return _edge(is_rejected, hits / of, 0.0), _edge(is_rejected, hits / of, 1.0)


def _edge(is_rejected: Callable[[float], bool], inside: float, outside: float) -> float:
    for _ in range(40):
        middle = (inside + outside) / 2
        if middle in {0.0, 1.0}:
            break
        inside, outside = (inside, middle) if is_rejected(middle) else (middle, outside)
    return inside


class LabelEProcess:
    """Whose are they? An e-process on labels: each draw is the candidate's with a known chance if the slots are alike.

    `tables` have the increments: of each chance that a draw can have, of each kind of draw, of stable's and of the
    candidate's, by each alternative: (chances, kinds, 2, alternatives).
    """

    def __init__(self, tables: Floats, initial: Sequence[float] = ()) -> None:
        """Go on from `initial` wealth of each alternative, as logarithms; from 1 if nothing is said."""
        self._tables = tables
        self._wealth = np.array(initial) if len(initial) else np.zeros(tables.shape[-1])

    @property
    def wealth(self) -> tuple[float, ...]:
        """The logarithm of each alternative's e-process."""
        return tuple(self._wealth.tolist())

    @property
    def log_e_value(self) -> float:
        return float(log_mean(self._wealth))

    def take(self, chance: Ints, kind: Ints | int, is_candidate: Flags) -> Floats:
        """The log e-value after each of these draws."""
        added = self._tables[chance, kind, is_candidate.astype(np.int64)]
        path = self._wealth + np.cumsum(added, axis=0)
        if len(path):
            self._wealth = path[-1]
        return log_mean(path.T)
