"""What a cloud says of its stock of machines, and how it is asked.

A source says itself what it knows of, on demand or on spot, and how sure it is, of a no above all: its answers become
`Stock` by themselves.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from blocks.errors import SkyferryError
from blocks.ports.market import Offer, Stock

WORDS_AT_MOST = 300
SURE_AT_MOST = 0.8
"""How sure the surest forecast is; a guess. Vendors say that theirs is good for the moment and promises nothing.

Below what placement takes for a count, so that no forecast puts an offer behind all others.
"""


@dataclass(frozen=True)
class Forecast:
    """How likely a machine can be had now."""

    likelihood: float
    """From 0 to 1."""
    words: str

    def stock(self, at: float) -> Stock:
        """An even chance says nothing; the further from it, the surer is `free` above and `none` below."""
        answer = "free" if self.likelihood >= 1 / 2 else "none"
        return Stock(answer, at, SURE_AT_MOST * abs(2 * self.likelihood - 1), self.words)


@dataclass(frozen=True)
class Score:
    """A rank among places that says little in itself: the lowest counts as free too, and only reorders."""

    score: int
    best: int
    words: str

    def stock(self, at: float) -> Stock:
        return Stock("free", at, self.score / self.best, self.words)


class Answer(Protocol):
    """What a source says of one offer."""

    def stock(self, at: float) -> Stock:
        """As stock, said at that moment in Unix seconds."""
        ...


@dataclass(frozen=True)
class Spot:
    """A kind of machine in one place."""

    instance: str
    region: str
    zone: str | None = None

    @classmethod
    def of(cls, offer: Offer) -> "Spot":
        _, region, *zone = offer.cell.split("/")
        return cls(offer.instance or "", region, *zone)


Answers = Mapping[Offer, Answer | SkyferryError]
"""Of an offer that is not in it the cloud says nothing. An error is what the cloud says of that offer instead:
Refused that it never rents it to us, NoCapacity that it does not now, Unavailable that it does not know."""


class StockSource(Protocol):
    """One public cloud's word on its machines."""

    @property
    def cloud(self) -> str:
        """The first word of the cells that it is asked about: `aws`."""
        ...

    def knows(self, offer: Offer) -> bool:
        """Whether it says anything of such an offer; many know of machines on spot alone. Others it is not asked."""
        ...

    def ask(self, offers: Sequence[Offer]) -> Answers:
        """Of offers that it knows. Refused where our credentials are not taken, Unavailable where nobody answers."""
        ...


def one_line(words: str) -> str:
    """What a cloud said, short enough for a table."""
    return " ".join(words.split())[:WORDS_AT_MOST]


def by(size: int, values: Sequence[str]) -> Iterator[list[str]]:
    """So many at a time, for a cloud that takes no more in one question."""
    for start in range(0, len(values), size):
        yield list(values[start : start + size])
