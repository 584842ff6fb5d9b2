"""How likely does a launch succeed there now, and how long does a start take? What our own launches taught us.

The figures below are measured on the traces of "Can't Be Late" (Wu et al., NSDI '24), which are published as
github.com/skypilot-org/spot-traces: one V100 on spot in nine zones of AWS, asked every 195 s for 45 days.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from statistics import median

from pydantic import BaseModel, ConfigDict

from blocks.ports.market import Offer, Stock, domain_of

ATTEMPTS_KEY = "placement/attempts.json"
"""Where the memory is kept in the object store: one document for all services, for they rent from the same cells."""

KEPT_ATTEMPTS = 1000
KEPT_SECONDS = 30 * 24 * 3600.0

STALE_SECONDS = 1.5 * 3600
"""How fast an answer grows stale: 1 / (1 + age / this).

In the traces whether a zone has machines correlates with whether it had some half an hour, 1, 3, 6 and 12 hours before
by 0.68, 0.57, 0.36, 0.26 and 0.11; this gives 0.75, 0.60, 0.33, 0.20 and 0.11. No exponential does: outages are short
in the median and long in the mean.
"""

STAY_SECONDS = 140 * 60.0
"""A spot machine stays for this long, divided by 1 - the zone's usual chance.

For zones that have machines for 45, 59, 68 and 88 % of the time that gives 4, 6, 7 and 19 hours; in the traces it is 5,
6, 9 and 23 from a moment at which the zone has some.
"""

RATE_HALF_LIFE_SECONDS = 7 * 24 * 3600.0
"""How fast the usual chance forgets."""

SAME_DOMAIN = 0.4
"""What an answer of one zone counts for another of its region: they correlate by 0.43, those of two regions by 0.14."""

PRIOR_CHANCE_SPOT = 0.64
"""Before anything is known: the mean over the zones of the traces, of which the worst has 0.17 and the best 0.90."""
PRIOR_CHANCE = 0.8
"""The same on demand; a guess, for nobody has published such traces."""
PRIOR_ATTEMPTS = 2.0
"""How many attempts the prior weighs."""

OWN_CONFIDENCE = 0.9
"""An attempt is a fact, but the machine that we got is in stock no more, and one that we did not get may come back."""
LOWEST_CHANCE, HIGHEST_CHANCE = 0.02, 0.98
"""Nothing is impossible or certain: what is said of a cell reorders and never vetoes."""

FIRST_START_SECONDS = 900.0
"""How long a start is taken to last before one has been measured: a large model on a cold node."""
LAST_STARTS = 5


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Attempt(Frozen):
    """One launch, and what became of it."""

    cell: str
    accelerator: str
    accelerators: int
    use_spot: bool
    at: float
    """Unix seconds at which the answer came."""
    seconds: float | None
    """How long the no took, or the start up to the first completion; None where a machine was lost after its start."""
    said_no: str | None
    """The cell's words, or that what started there was lost; None where the replica started."""


Kind = tuple[str, str, int, bool]
"""What shares a stock, more or less: failure domain, accelerator, how many of them, spot."""


class Attempts(Frozen):
    """The last launches of all services, oldest first."""

    attempts: tuple[Attempt, ...] = ()

    @cached_property
    def by_kind(self) -> dict[Kind, list[Attempt]]:
        kinds: dict[Kind, list[Attempt]] = defaultdict(list)
        for one in self.attempts:
            kinds[domain_of(one.cell), one.accelerator, one.accelerators, one.use_spot].append(one)
        return dict(kinds)

    def like(self, offer: Offer) -> Sequence[Attempt]:
        """Those of the same kind of machine in the same failure domain, oldest first."""
        return self.by_kind.get((offer.domain, offer.accelerator, offer.accelerators, offer.use_spot), ())


def note(attempts: Attempts, attempt: Attempt) -> Attempts:
    """Remember one more; noting it again, as where the answer to a write was lost, changes nothing."""
    if any(one.at == attempt.at and one == attempt for one in attempts.attempts):
        return attempts
    known = sorted((*attempts.attempts, attempt), key=lambda one: one.at)
    oldest = known[-1].at - KEPT_SECONDS
    return Attempts(attempts=tuple(one for one in known if one.at >= oldest)[-KEPT_ATTEMPTS:])


def usual_chance(attempts: Attempts, offer: Offer, now: float) -> float:
    """The share of launches that succeed there over weeks: the mean of a Beta distribution, its counts decaying."""
    known = PRIOR_ATTEMPTS
    succeeded = known * (PRIOR_CHANCE_SPOT if offer.use_spot else PRIOR_CHANCE)
    for one in attempts.like(offer):
        weight = _weight(one, offer) * 0.5 ** (_age(one.at, now) / RATE_HALF_LIFE_SECONDS)
        known += weight
        succeeded += weight * (one.said_no is None)
    return succeeded / known


def freshness(at: float, now: float) -> float:
    """What is left of an answer, from 1 to 0."""
    return 1 / (1 + _age(at, now) / STALE_SECONDS)


def chance(attempts: Attempts, offer: Offer, now: float, stock: Stock | None = None) -> float:
    """The probability that a launch of the offer succeeds now.

    It begins at the usual chance. Each answer, ours or the stock's, oldest first, pulls it towards 1 or 0, by how sure
    the answer was and by how fresh it is.
    """
    answers = [(one.at, one.said_no is None, OWN_CONFIDENCE * _weight(one, offer)) for one in attempts.like(offer)]
    if stock is not None and stock.answer in {"free", "none"}:
        answers.append((stock.at, stock.answer == "free", stock.confidence))
    result = usual_chance(attempts, offer, now)
    for at, is_free, confidence in sorted(answers):
        result += confidence * freshness(at, now) * (is_free - result)
    return min(max(result, LOWEST_CHANCE), HIGHEST_CHANCE)


def start_seconds(attempts: Attempts, offer: Offer, default: float) -> float:
    """How long a start takes there: the median of the last few in that cell, or else in its failure domain."""
    return _median_seconds([one for one in attempts.like(offer) if one.said_no is None], offer, default)


def answer_seconds(attempts: Attempts, offer: Offer, default: float) -> float:
    """How long it takes there to be told no; likewise."""
    return _median_seconds([one for one in attempts.like(offer) if one.said_no is not None], offer, default)


def _median_seconds(alike: Sequence[Attempt], offer: Offer, default: float) -> float:
    measured = [(one.cell, one.seconds) for one in alike if one.seconds is not None]
    own = [seconds for cell, seconds in measured if cell == offer.cell]
    last = (own or [seconds for _, seconds in measured])[-LAST_STARTS:]
    return median(last) if last else default


def _weight(one: Attempt, offer: Offer) -> float:
    return 1.0 if one.cell == offer.cell else SAME_DOMAIN


def _age(at: float, now: float) -> float:
    """Clocks differ: what comes from the future is fresh."""
    return max(0.0, now - at)
