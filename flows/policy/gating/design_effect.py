"""How much is a user worth as non-inferiority evidence, who gave many answers that resemble each other?

The split distributes users. One who asks long questions waits long each time, in whichever slot he is, and if he asks
often, his answers alone would say how late a slot is. So each user of a slot weighs as Kish's design effect says
(Survey Sampling, 1965), as in the e-processes on harm: never more than twenty answers would, however many come.
"""

import numpy as np

from flows.policy.gating.e_values import Flags, Floats, Ints
from flows.policy.gating.evidence import Weighed
from flows.policy.gating.outcomes import BUCKETS, NAMELESS, repeats

ALIKE_WITHIN = 0.05
"""How much the answers of one user are taken to resemble each other: n of them weigh as n / (1 + this * (n - 1)) would.

It bounds what a user is worth, and whatever it is, the e-processes on harm are fair.
"""


class UserWeights:
    """Of both slots, how many answers there were and how many of them were late, each user with his weight."""

    def __init__(self) -> None:
        # Of each bucket and slot: answers, and late ones. Two users of one bucket weigh as one.
        self._answers, self._late = (np.zeros(2 * BUCKETS, np.int64) for _ in range(2))
        self.sums = np.zeros(3)
        """Those of `Weighed`."""

    def take(self, bucket: Ints, is_candidate: Flags, is_late: Flags) -> Floats:
        """The sums of `Weighed` after each of these answers: (3, answers)."""
        late, of = is_late.astype(np.float64), np.ones(len(bucket))
        named = np.flatnonzero(bucket != NAMELESS)
        if len(named):
            whose = 2 * bucket[named] + is_candidate[named]
            earlier = repeats(whose)
            before, hits = self._answers[whose] + earlier, self._late[whose]
            hits_before = hits + _late_before(whose, is_late[named], earlier)
            after = 1 / (1 + ALIKE_WITHIN * before)
            until = np.where(before > 0, 1 / (1 + ALIKE_WITHIN * np.maximum(before - 1, 0)), 0.0)
            late[named] = (hits_before + is_late[named]) * after - hits_before * until
            of[named] = (before + 1) * after - before * until
            np.add.at(self._answers, whose, 1)
            np.add.at(self._late, whose, is_late[named])
        rows = np.stack([late * is_candidate, late, of * is_candidate])
        path = self.sums[:, None] + np.cumsum(rows, axis=1)
        if path.shape[1]:
            self.sums = path[:, -1]
        return path

    @property
    def weighed(self) -> Weighed:
        return Weighed(*self.sums.tolist())


def _late_before(whose: Ints, is_late: Flags, earlier: Ints) -> Ints:
    """For each answer, how many late ones of the same user came before it."""
    order = np.argsort(whose, kind="stable")
    late = is_late[order].astype(np.int64)
    sums = np.cumsum(late) - late
    begins = np.arange(len(whose)) - earlier[order]
    before = np.empty(len(whose), np.int64)
    before[order] = sums - sums[begins]
    return before
