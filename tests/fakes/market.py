"""A market in memory: what it offers and what it says of its stock is what a test puts there."""

from collections import UserDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from blocks.errors import Refused
from blocks.ports.market import ON_PROCESSORS, Offer, Stock


@dataclass
class FakeMarket:
    """All is free until a test says otherwise."""

    listed: list[Offer] = field(default_factory=list)
    stocked: UserDict[Offer, Stock] = field(default_factory=UserDict)
    """Instead of free."""
    at: float = 0.0
    asked: list[tuple[Offer, ...]] = field(default_factory=list)
    """Of which offers the stock was asked, in turn."""

    def offers(self, cells: Sequence[str], accelerators: Sequence[str]) -> tuple[Offer, ...]:
        for cell in cells:
            if not any(_is_in(offer, cell) for offer in self.listed):
                there = sorted({offer.domain for offer in self.listed})
                raise Refused(f"{cell} is no cell of this market; there are: {', '.join(there)}")
        kinds = {offer.accelerator.lower() for offer in self.listed} | {ON_PROCESSORS.lower()}
        for name in accelerators:
            if name.lower() not in kinds:
                raise Refused(f"nobody has an accelerator called {name}; there are: {', '.join(sorted(kinds))}")
        asked = {name.lower() for name in accelerators} or kinds - {ON_PROCESSORS.lower()} or kinds
        return tuple(
            offer
            for offer in self.listed
            if (not cells or any(_is_in(offer, cell) for cell in cells)) and offer.accelerator.lower() in asked
        )

    def stock(self, offers: Sequence[Offer]) -> tuple[Stock, ...]:
        self.asked.append(tuple(offers))
        return tuple(self.stocked.get(offer) or Stock("free", self.at, 1.0, f"{offer} is free") for offer in offers)


def _is_in(offer: Offer, cell: str) -> bool:
    return offer.cell == cell or offer.cell.startswith(cell + "/")
