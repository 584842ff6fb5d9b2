"""What was seen of each measure in a stage: each user's first hit, and what the bets on harm are worth by it.

What is counted is users, for users are what the split distributes.
"""

from collections.abc import Iterable, Mapping, Sequence

from flows.policy.gating.bets import mean_of
from flows.policy.gating.measures import (
    ONE_COIN,
    SLOWNESS,
    UNPROMISED,
    Count,
    Limits,
    Measure,
    Purses,
    parts_of,
    purses_of_harm,
    worth_of_harm,
    worth_that_matters,
)

PLACES = 1 << 16
"""Users are told apart by so many hashes. Two that share one count as one: evidence is lost that way, never made up."""


class Tally:
    """Hits of both slots, the candidate's requests, and the bets on harm at their best."""

    def __init__(
        self,
        measures: Iterable[Measure],
        share: float,
        limits: Limits,
        chances: Sequence[float],
        begun: Mapping[Measure, Purses],
        allowed: Mapping[Measure, float | None] | None = None,
    ) -> None:
        """Beside the bets of the stage, those go on that have `begun` before; `chances` are of being drawn for them.

        `allowed`: alone, the rates that are excused of what nobody promised, as far as it is known.
        """
        self._share, self._limits, self._chances, self._begun = share, limits, chances, begun
        self._hits: dict[Measure, int] = dict.fromkeys(measures, 0)
        self._all_hits, self._of, self._counted = dict(self._hits), dict(self._hits), dict(self._hits)
        self._counted_hits, self._all_of = dict(self._hits), dict(self._hits)
        self._allowed = allowed or {}
        self._harm: dict[Measure, float] = dict.fromkeys(self._hits, 0.0)
        self._matters = dict(self._harm)
        # What bets that go on are on: hits, all hits and requests as above, of those who are drawn, by their chance.
        self._drawn = {measure: [[0, 0, 0] for _ in chances] for measure in self._hits}
        self._whole = {one: mean_of(begun[one].harm) if one in begun else 0.0 for one in self._hits}
        self._whole_matters = {one: begun[one].matters if one in begun else 0.0 for one in self._hits}
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
        draw: int | None = 0,
        handicap: float = 0.0,
    ) -> None:
        """Count a request, unless its user has a hit already; `marks` has a `bit` for that at the user's `place`.

        `draw` is which of the chances its user has; None where it was known whose he is, and nothing is bet on that.
        """
        if place is not None:
            if marks[place] & bit:
                return
            if hit:
                marks[place] |= bit
        drawn = [0, 0, 0] if draw is None else self._drawn[measure][draw]
        self._all_of[measure] += 1
        if mine:
            self._of[measure] += 1
            drawn[2] += 1
            self._counted[measure] += counts
        if not hit:
            return
        self._all_hits[measure] += 1
        drawn[1] += 1
        if not mine:
            return
        self._hits[measure] += 1
        drawn[0] += 1
        self._counted_hits[measure] += counts
        if cell is not None:
            hits = self.cell_hits.setdefault(cell, {})
            hits[measure] = hits.get(measure, 0) + 1
        # Bets on harm rise at the candidate's hits alone, so this is looking after each request.
        if measure not in SLOWNESS:
            harm, matters = self._worths(measure)
            self._harm[measure] = max(self._harm[measure], harm - handicap)
            self._matters[measure] = max(self._matters[measure], matters - handicap)
        if measure in self._begun and draw is not None:
            purses = self._purses_of(measure)
            self._whole[measure] = max(self._whole[measure], mean_of(purses.harm))
            self._whole_matters[measure] = max(self._whole_matters[measure], purses.matters)

    def bet_on_slowness(
        self, measure: Measure, now: float, best: tuple[float, float], whole: tuple[float, float]
    ) -> None:
        """What the bets of this measure are worth, now and at their best: they are on bands, and not on hits."""
        self._slowness[measure] = now
        self._harm[measure], self._matters[measure] = best
        self._whole[measure], self._whole_matters[measure] = whole

    def shown(self) -> dict[Measure, tuple[int, int]]:
        """Of what is not promised: hits of both slots, and requests."""
        return {one: (self._all_hits[one], self._all_of[one]) for one in UNPROMISED}

    def of(self, measure: Measure) -> tuple[int, int]:
        """The candidate's requests and its hits."""
        return self._of[measure], self._hits[measure]

    def forget(self, measure: Measure) -> None:
        """Count from nothing again; what the bet on harm was worth at its best stays."""
        for counts in (self._hits, self._all_hits, self._of, self._counted, self._counted_hits, self._all_of):
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
                whole=self._whole[measure],
                whole_matters=self._whole_matters[measure],
                all_of=self._all_of[measure],
                allowed=self._allowed.get(measure),
            )
            for measure in self._hits
        }

    def _harm_now(self, measure: Measure) -> float:
        if measure in SLOWNESS:
            return self._slowness.get(measure, 0.0)
        return min(self._worths(measure)) if self._hits[measure] else 0.0

    def _worths(self, measure: Measure) -> tuple[float, float]:
        """Of the bet on harm, and of the one on more than is excused."""
        count = Count(
            self._hits[measure], self._all_hits[measure], self._of[measure], allowed=self._allowed.get(measure)
        )
        harm = worth_of_harm(measure, count, self._share, self._limits)
        return harm, worth_that_matters(measure, count, self._share, self._limits)

    def _purses_of(self, measure: Measure) -> Purses:
        drawn = [
            (chance, Count(hits, all_hits, of))
            for chance, (hits, all_hits, of) in zip(self._chances, self._drawn[measure], strict=True)
        ]
        return purses_of_harm(drawn, self._limits, self._begun.get(measure, ONE_COIN))

    def purses(self) -> dict[Measure, Purses]:
        """What bets go on with in the next stage: those on whose it is, of each user once."""
        if self._share == 1:
            return {}
        # Bands have others, and what failed lately has rounds.
        go_on = parts_of(self._share, self._limits).keys() - SLOWNESS - {"failed lately"}
        return {one: self._purses_of(one) for one in self._hits if one in go_on}
