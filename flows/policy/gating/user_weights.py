"""How much is a user worth as good news, who gave many answers that resemble each other?

The split distributes users. One who asks long questions waits long each time, in whichever slot he is, and if he asks
often, his answers alone would say how late a slot is. So each user of a slot weighs as Kish's design effect says
(Survey Sampling, 1965), as in the bets on harm: never more than twenty answers would, however many come.
"""

from array import array

from flows.policy.gating.measures import Weighed
from flows.policy.gating.slowness import ALIKE_WITHIN
from flows.policy.gating.tally import PLACES

_MOST = (1 << 16) - 1


class Weights:
    """Of both slots, how many answers there were and how many of them were late, each user with his weight."""

    def __init__(self) -> None:
        # Of each place and slot: answers, and late ones. Two users of one place weigh as one.
        self._answers, self._late = (array("H", bytes(4 * PLACES)) for _ in range(2))
        self._hits = self._all_hits = self._of = 0.0

    def take(self, place: int | None, *, mine: bool, is_late: bool) -> None:
        if place is None:
            more_late, more = float(is_late), 1.0
        else:
            whose = 2 * place + mine
            answers, late = self._answers[whose], self._late[whose]
            if answers == _MOST:
                return
            self._answers[whose], self._late[whose] = answers + 1, late + is_late
            after = 1 / (1 + ALIKE_WITHIN * answers)
            before = 1 / (1 + ALIKE_WITHIN * (answers - 1)) if answers else 0.0
            more_late, more = (late + is_late) * after - late * before, (answers + 1) * after - answers * before
        self._all_hits += more_late
        if mine:
            self._hits += more_late
            self._of += more

    def weighed(self) -> Weighed:
        return Weighed(self._hits, self._all_hits, self._of)
