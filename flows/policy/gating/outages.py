"""How many of the candidate's requests failed while stable kept the limit?

A request that fails while stable breaks the limit as well, as where something fails that both slots need, says nothing
of whether the candidate keeps it: it is set aside, and so are those that went well meanwhile. Whose the failures are
is what the e-processes beside stable are on, then as always. Where there is no stable beside it, nothing is set aside.
"""

from math import log

import numpy as np

from flows.policy.gating.e_values import Flags, Hypotheses, Ints, log_e_value
from flows.policy.gating.outcomes import BUCKETS, NAMELESS

BLOCK_REQUESTS = 200
"""Of both slots. What stable does is looked at anew after so many, by users without a failure before."""
BEYOND_THE_LIMIT = log(20)
"""What the log e-value against "stable keeps the limit" has to be within a block."""


class SharedOutages:
    """What evidence of a kept limit stands on: the candidate's requests in blocks in which stable kept the limit."""

    def __init__(self, within_limit: Hypotheses) -> None:
        self._within_limit = within_limit
        self._has_hit = np.zeros(BUCKETS + 1, bool)
        self.counted = self.hits = self.set_aside = self.set_aside_hits = 0
        """The candidate's; of `counted` no more than some a user."""
        self._begin()

    def _begin(self) -> None:
        self._requests = self._candidates = self._candidate_hits = self._stables = self._stable_hits = 0
        self._counted = self._counted_hits = 0
        self._hit_here: list[Ints] = []
        self._is_out = False

    def take(self, bucket: Ints, is_candidate: Flags, hit: Flags, counts: Flags) -> tuple[Ints, Ints]:
        """What is counted of the candidate, and its hits, after each of these requests."""
        counted, hits = np.empty(len(bucket), np.int64), np.empty(len(bucket), np.int64)
        begin = 0
        while begin < len(bucket):
            if self._requests == BLOCK_REQUESTS:
                self._begin()
            end = min(len(bucket), begin + BLOCK_REQUESTS - self._requests)
            part = slice(begin, end)
            counted[part], hits[part] = self._take(bucket[part], is_candidate[part], hit[part], counts[part])
            self._requests += end - begin
            begin = end
        return counted, hits

    def _take(self, bucket: Ints, is_candidate: Flags, hit: Flags, counts: Flags) -> tuple[Ints, Ints]:
        """Within one block."""
        if self._is_out:
            self._set_aside(is_candidate, hit)
            return np.full(len(bucket), self.counted), np.full(len(bucket), self.hits)
        live = ~self._has_hit[bucket]
        at = np.flatnonzero(live & hit)
        if len(at):
            live, at = self._first_hits(bucket, live, hit, at)
        own = live & is_candidate
        theirs = at[~is_candidate[at]]
        if len(theirs):
            stables = self._stables + np.cumsum(live & ~is_candidate)[theirs]
            hits = self._stable_hits + np.arange(1, len(theirs) + 1)
            over = log_e_value(hits.astype(np.float64), stables.astype(np.float64), self._within_limit)
            crossed = np.flatnonzero(over >= BEYOND_THE_LIMIT)
            if len(crossed):
                return self._break_off(int(theirs[crossed[0]]), own, hit, is_candidate, counts)
        self._note(own, hit, bucket[at])
        self._stables += int((live & ~is_candidate).sum())
        self._stable_hits += len(theirs)
        counted, hits = np.cumsum(own & counts), np.cumsum(own & counts & hit)
        path = self.counted + counted, self.hits + hits
        self.counted, self.hits = int(path[0][-1]), int(path[1][-1])
        self._counted += int(counted[-1])
        self._counted_hits += int(hits[-1])
        return path

    def _first_hits(self, bucket: Ints, live: Flags, hit: Flags, at: Ints) -> tuple[Flags, Ints]:
        """Who is still without a hit at each request, and where first hits are; nameless requests all are."""
        first = np.full(BUCKETS + 1, len(bucket))
        first[bucket[at[::-1]]] = at[::-1]
        first[NAMELESS] = len(bucket)
        live = live & (np.arange(len(bucket)) <= first[bucket])
        return live, np.flatnonzero(live & hit)

    def _note(self, own: Flags, hit: Flags, failed: Ints) -> None:
        self._candidates += int(own.sum())
        self._candidate_hits += int((own & hit).sum())
        if len(failed):
            self._hit_here.append(failed)
            self._has_hit[failed] = True
            self._has_hit[NAMELESS] = False

    def _break_off(self, at: int, own: Flags, hit: Flags, is_candidate: Flags, counts: Flags) -> tuple[Ints, Ints]:
        """Stable broke the limit at this request: all of this block is set aside, and whom it failed begins anew."""
        until = np.arange(len(own)) < at
        path = [
            self._path(now, begun, own & counts & some, until)
            for now, begun, some in (
                (self.counted, self._counted, np.ones(len(own), bool)),
                (self.hits, self._counted_hits, hit),
            )
        ]
        self.set_aside += self._candidates + int((own & until).sum())
        self.set_aside_hits += self._candidate_hits + int((own & hit & until).sum())
        self._set_aside(is_candidate & ~until, hit)
        self.counted, self.hits = self.counted - self._counted, self.hits - self._counted_hits
        for failed in self._hit_here:
            self._has_hit[failed] = False
        self._is_out = True
        return path[0], path[1]

    @staticmethod
    def _path(now: int, begun: int, some: Flags, until: Flags) -> Ints:
        return np.where(until, now + np.cumsum(some), now - begun)

    def _set_aside(self, is_candidate: Flags, hit: Flags) -> None:
        self.set_aside += int(is_candidate.sum())
        self.set_aside_hits += int((is_candidate & hit).sum())
