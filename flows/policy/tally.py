"""What was seen of each measure in a stage: each user's first hit, and what the bets on harm are worth by it.

What is counted is users, for users are what the split distributes.
"""

from collections.abc import Iterable

from flows.policy.measures import SLOWNESS, Count, Limits, Measure, worth_of_harm, worth_that_matters

PLACES = 1 << 16
"""Users are told apart by so many hashes. Two that share one count as one: evidence is lost that way, never made up."""


class Tally:
    """Hits of both slots, the candidate's requests, and the bets on harm at their best."""

    def __init__(self, measures: Iterable[Measure], share: float, limits: Limits) -> None:
        self._share, self._limits = share, limits
        self._hits: dict[Measure, int] = dict.fromkeys(measures, 0)
        self._all_hits, self._of, self._counted = dict(self._hits), dict(self._hits), dict(self._hits)
        self._counted_hits = dict(self._hits)
        self._harm: dict[Measure, float] = dict.fromkeys(self._hits, 0.0)
        self._matters = dict(self._harm)
        self._slowness: dict[Measure, float] = {}
        self.cell_hits: dict[str, dict[Measure, int]] = {}

    def take(
        self,
        measure: Measure,
        place: int | None,
        marks: bytearray,
        bit: int,
        *,
        mine: bool,
        hit: bool,
        cell: str | None,
        counts: bool = False,
        handicap: float = 0.0,
    ) -> None:
        """Count a request, unless its user has a hit already; `marks` has a `bit` for that at the user's `place`."""
        if place is not None:
            if marks[place] & bit:
                return
            if hit:
                marks[place] |= bit
        if mine:
            self._of[measure] += 1
            self._counted[measure] += counts
        if not hit:
            return
        self._all_hits[measure] += 1
        if not mine:
            return
        self._hits[measure] += 1
        self._counted_hits[measure] += counts
        if cell is not None:
            hits = self.cell_hits.setdefault(cell, {})
            hits[measure] = hits.get(measure, 0) + 1
        # Bets on harm rise at the candidate's hits alone, so this is looking after each request.
        if measure not in SLOWNESS:
            harm, matters = self._worths(measure)
            self._harm[measure] = max(self._harm[measure], harm - handicap)
            self._matters[measure] = max(self._matters[measure], matters - handicap)

    def bet_on_slowness(self, measure: Measure, now: float, harm: float, matters: float) -> None:
        """What the bets of this measure are worth, now and at their best: they are on bands, and not on hits."""
        self._slowness[measure], self._harm[measure], self._matters[measure] = now, harm, matters

    def of(self, measure: Measure) -> tuple[int, int]:
        """The candidate's requests and its hits."""
        return self._of[measure], self._hits[measure]

    def forget(self, measure: Measure) -> None:
        """Count from nothing again; what the bet on harm was worth at its best stays."""
        for counts in (self._hits, self._all_hits, self._of, self._counted, self._counted_hits):
            counts[measure] = 0

    def counts(self) -> dict[Measure, Count]:
        return {
            measure: Count(
                hits=self._hits[measure],
                all_hits=self._all_hits[measure],
                of=self._of[measure],
                counted=self._counted[measure],
                counted_hits=self._counted_hits[measure],
                harm=self._harm[measure],
                matters=self._matters[measure],
                harm_now=self._harm_now(measure),
            )
            for measure in self._hits
        }

    def _harm_now(self, measure: Measure) -> float:
        if measure in SLOWNESS:
            return self._slowness.get(measure, 0.0)
        return min(self._worths(measure)) if self._hits[measure] else 0.0

    def _worths(self, measure: Measure) -> tuple[float, float]:
        """Of the bet on harm, and of the one on more than is excused."""
        count = Count(self._hits[measure], self._all_hits[measure], self._of[measure])
        harm = worth_of_harm(measure, count, self._share, self._limits)
        return harm, worth_that_matters(measure, count, self._share, self._limits)
