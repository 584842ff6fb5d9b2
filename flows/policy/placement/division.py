"""How are replicas divided over ranked offers, so that caps hold, the fleet is spread, and stock is not overdrawn?"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import inf

from blocks.errors import Refused
from blocks.ports.market import Offer, Stock

PENNY_FRACTION = 1e-9
"""Sums of prices are equal up to this."""
DOMAINS_OF_A_SPREAD = 2


@dataclass(frozen=True)
class Candidate:
    """An offer that may be taken, and what is expected of it."""

    offer: Offer
    price: float
    stock: Stock
    chance: float
    expected: float
    score: float
    is_counted_out: bool
    """Its stock was counted, and there is none: it comes after all others."""

    @property
    def rank(self) -> tuple[bool, float, float, bool, float, str, str, int, bool, str]:
        """Total, so that the order in which offers come never matters."""
        offer = self.offer
        machine = (offer.cell, offer.accelerator, offer.accelerators, offer.use_spot, offer.instance or "")
        return (self.is_counted_out, self.score, -self.chance, self.stock.answer != "free", self.price, *machine)


@dataclass(frozen=True)
class Budget:
    """What may still be spent an hour."""

    dollars_per_hour: float
    words: str
    """Whose cap it is, and what of it is spent."""

    def allows(self, dollars_per_hour: float) -> bool:
        return dollars_per_hour <= self.dollars_per_hour + PENNY_FRACTION


class Division:
    """One replica after the other goes to the best offer with which the rest still fits the cap and the spread."""

    def __init__(self, ranked: Sequence[Candidate], budget: Budget, domains: Collection[str], *, spread: bool) -> None:
        """`domains` are the failure domains in which the fleet has replicas already."""
        self._ranked, self._budget, self._domains, self._spread = ranked, budget, frozenset(domains), spread
        self._cards_taken: Counter[tuple[str, str]] = Counter()
        cheapest: dict[str, Candidate] = {}
        for one in ranked:
            if one.price < cheapest.setdefault(one.offer.domain, one).price:
                cheapest[one.offer.domain] = one
        self._cheapest = sorted(cheapest.values(), key=lambda one: one.price)
        self.passed_over: dict[Offer, str] = {}
        """Why better ones had to stand back."""

    def check(self, wanted: int) -> None:
        """Refused where there is no way to place that many, in words that lead out of it."""
        first, cost = self._cheapest[0], self._least_cost(wanted, self._domains)
        if not self._budget.allows(first.price):
            raise Refused(
                f"{self._budget.words} is below the cheapest offer: {first.offer} costs {first.price:.2f} $/hour; "
                f"raise the cap or allow other machines"
            )
        if cost == inf and wanted + len(self._domains) < DOMAINS_OF_A_SPREAD:
            raise Refused("a single replica cannot be spread over two failure domains; want two, or do not spread")
        if cost == inf:
            raise Refused(
                f"the fleet cannot be spread: all that can be rented is in {first.offer.domain}; "
                f"allow another region or cluster, or do not spread"
            )
        if not self._budget.allows(cost):
            enough = [n for n in range(wanted) if self._budget.allows(self._least_cost(n, self._domains))]
            raise Refused(
                f"{wanted} replicas cost at least {cost:.2f} $/hour, and {self._budget.words} leaves "
                f"{self._budget.dollars_per_hour:.2f}, which is enough for {max(enough, default=0)} "
                f"(the cheapest, {first.offer}, costs {first.price:.2f}); raise the cap or want fewer"
            )

    def place(self, wanted: int) -> tuple[Candidate, ...]:
        """The best for each, after `check` has passed."""
        placed: list[Candidate] = []
        reached, budget = self._domains, self._budget
        for left in reversed(range(wanted)):
            one = self._next(left, reached, budget)
            placed.append(one)
            reached |= {one.offer.domain}
            budget = Budget(budget.dollars_per_hour - one.price, budget.words)
            self._cards_taken[one.offer.cell, one.offer.accelerator] += _cards(one.offer)
        return tuple(placed)

    def _next(self, left: int, reached: frozenset[str], budget: Budget) -> Candidate:
        """The first with room; or else the first, for what a cell says of its stock is never a veto."""
        full: list[Candidate] = []
        for one in self._ranked:
            cost = one.price + self._least_cost(left, reached | {one.offer.domain})
            if cost == inf:
                self.passed_over[one.offer] = "stands back so that the fleet is spread"
            elif not budget.allows(cost):
                self.passed_over[one.offer] = f"{one.price:.2f} $/hour would break {budget.words} beside the others"
            elif self._has_room(one):
                return one
            else:
                full.append(one)
                self.passed_over[one.offer] = f"has room for {one.stock.replicas}: {one.stock.words}"
        return full[0]

    def _has_room(self, one: Candidate) -> bool:
        """Offers of one cell and accelerator draw on the same cards."""
        cards = _cards(one.offer)
        taken = self._cards_taken[one.offer.cell, one.offer.accelerator]
        return one.stock.replicas is None or taken + cards <= one.stock.replicas * cards

    def _least_cost(self, wanted: int, reached: Collection[str]) -> float:
        """Of that many more replicas, spread if they must be; infinite where that cannot be had."""
        missing = max(0, DOMAINS_OF_A_SPREAD - len(reached)) if self._spread else 0
        if not missing:
            return wanted * self._cheapest[0].price
        elsewhere = [one.price for one in self._cheapest if one.offer.domain not in reached][:missing]
        if wanted < missing or len(elsewhere) < missing:
            return inf
        return sum(elsewhere) + (wanted - missing) * self._cheapest[0].price


def _cards(offer: Offer) -> int:
    return max(1, offer.accelerators)
