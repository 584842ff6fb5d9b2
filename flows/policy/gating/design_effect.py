"""How much does a user weigh as non-inferiority evidence, who gave many answers that resemble each other?

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

It bounds what a user weighs, and whatever it is, the e-processes on harm are fair.
"""


class UserWeights:
    """Of both slots, how many answers there were and how many of them were late, each user with his weight."""

    def __init__(self) -> None:
        # Of each slot and bucket: answers, and late ones. Two users of one bucket weigh as one.
        self._answers, self._late = np.zeros((2, BUCKETS), np.int64), np.zeros((2, BUCKETS), np.int64)
        self.sums = np.zeros(3)
        """Those of `Weighed`."""

    def take(self, bucket: Ints, is_candidate: Flags, is_late: Flags) -> Floats:
        """The sums of `Weighed` before the first and after each of these answers: (3, answers + 1)."""
        late, of = is_late.astype(np.float64), np.ones(len(bucket))
        for slot in (0, 1):
            rows = np.flatnonzero((is_candidate == slot) & (bucket != NAMELESS))
            if len(rows):
                self._weigh(rows, slot, bucket, late, of)
        path = np.empty((3, len(bucket) + 1))
        path[:, 0] = self.sums
        path[:, 1:] = late * is_candidate, late, of * is_candidate
        np.cumsum(path, axis=1, out=path)
        self.sums = path[:, -1].copy()
        return path

    def _weigh(self, rows: Ints, slot: int, bucket: Ints, late: Floats, of: Floats) -> None:
        """What each answer of one slot adds to its user's weight, and to that of his late ones."""
        order, earlier = repeats(bucket[rows])
        rows = rows[order]
        whose, hit = bucket[rows], late[rows]
        answers, known_late = self._answers[slot], self._late[slot]
        before = answers[whose] + earlier
        sums = np.cumsum(hit) - hit
        hits_before = known_late[whose] + sums - sums[np.arange(len(rows)) - earlier]
        after = 1 / (1 + ALIKE_WITHIN * before)
        until = np.where(before > 0, 1 / (1 + ALIKE_WITHIN * np.maximum(before - 1, 0)), 0.0)
        late[rows] = (hits_before + hit) * after - hits_before * until
        of[rows] = (before + 1) * after - before * until
        np.add.at(answers, whose, 1)
        np.add.at(known_late, whose, hit.astype(np.int64))

    @property
    def weighed(self) -> Weighed:
        return Weighed(*self.sums.tolist())
