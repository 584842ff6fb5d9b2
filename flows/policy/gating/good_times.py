"""How many of the candidate's requests failed while stable kept the limit?

A request that fails while stable breaks the limit as well, as where something fails that both slots need, says nothing
of whether the candidate keeps it: it is set aside, and so are those that went well meanwhile. Whose the failures are
is what the bets beside stable are on, then as always. Where there is no stable beside it, nothing is set aside.
"""

from collections.abc import Sequence
from math import log

from flows.policy.gating.bets import worth
from flows.policy.gating.tally import PLACES

BLOCK_REQUESTS = 200
"""Of both slots. What stable does is looked at anew after so many, by users without a failure before."""
BEYOND_THE_LIMIT = log(20)
"""What a bet against "stable keeps the limit" has to be worth within a block."""


class GoodTimes:
    """What good news of failures stands on: the candidate's requests in blocks in which stable kept the limit."""

    def __init__(self, null: float, others: Sequence[float]) -> None:
        """With the bet against "within the limit": what it denies, and what it is on."""
        self._null, self._others = null, others
        self._has_failed = bytearray(PLACES)
        self.counted = self.hits = self.set_aside = self.set_aside_hits = 0
        """The candidate's; of `counted` no more than some a user."""
        self._begin()

    def _begin(self) -> None:
        self._requests = self._mine = self._my_hits = self._of = self._hits = 0
        self._counted = self._counted_hits = 0
        self._failed_here: list[int] = []
        self._is_out = False

    def take(self, place: int | None, *, mine: bool, failed: bool, counts: bool) -> None:
        if self._requests == BLOCK_REQUESTS:
            self._begin()
        self._requests += 1
        if self._is_out:
            self.set_aside += mine
            self.set_aside_hits += mine and failed
            return
        if place is not None:
            if self._has_failed[place]:
                return
            if failed:
                self._has_failed[place] = 1
                self._failed_here.append(place)
        if mine:
            self._mine += 1
            self._my_hits += failed
            self._counted += counts
            self.counted += counts
            self._counted_hits += counts and failed
            self.hits += counts and failed
            return
        self._of += 1
        if failed:
            self._hits += 1
            if worth(self._hits, self._of, self._null, self._others) >= BEYOND_THE_LIMIT:
                self._set_aside()

    def _set_aside(self) -> None:
        """All of this block, and whom it failed: they begin anew."""
        self._is_out = True
        self.set_aside += self._mine
        self.set_aside_hits += self._my_hits
        self.counted -= self._counted
        self.hits -= self._counted_hits
        for place in self._failed_here:
            self._has_failed[place] = 0
