"""May the candidate have more traffic? Each gate looks at one measure and says promote, hold or roll back, and why."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, exp, lgamma, log, log1p, sqrt
from typing import Literal

from blocks.ports import Outcome, Slot

CLIENT_ERROR, SERVER_ERROR, NO_ANSWER = 400, 500, -1
"""Where HTTP's ranges of statuses begin, and what `Outcome.status` says where there was none."""

Verdict = Literal["promote", "hold", "roll back"]

BEYOND_CHANCE = 0.001
"""A measure that is over its limit by less than this probability of bad luck is harm; the rest of it is doubt."""

DOUBTFUL = 0.05
"""More of something than stable has, by less than this probability of bad luck, is doubt."""


@dataclass(frozen=True)
class Limits:
    """What a service promises its users, and how much must be seen before a candidate is said to keep it."""

    error_percent: float
    first_token_p95_ms: float | None
    """None where the service promises nothing, as where nobody streams."""
    slower_than_stable: float
    """How many times stable's p95 time to first token the candidate's may be."""
    first_token_margin_ms: float
    """A difference from stable's that is smaller than this never matters."""
    minimum_requests: int
    """A stage with fewer of the candidate's requests than this never passes."""
    minimum_seconds: float
    deadline_seconds: float
    """A stage that has not passed by then is rolled back."""


@dataclass(frozen=True)
class Sample:
    """What the users of one slot saw."""

    requests: int
    failed: int
    """Server errors, no answer, an answer only from another replica or slot, and answers cut short."""
    refused: int
    """Answered with 400 to 499: a prompt that is too long for the engine, a model name that it does not know."""
    left: int
    """Users who went away before any answer came; they are not among `requests`."""
    first_token_ms: tuple[float, ...]
    """Sorted; of the streamed answers."""

    def first_token_percentile(self, percent: float) -> float | None:
        """Nearest rank; None without data."""
        if not self.first_token_ms:
            return None
        return self.first_token_ms[ceil(len(self.first_token_ms) * percent / 100) - 1]


@dataclass(frozen=True)
class Ruling:
    verdict: Verdict
    reason: str


def has_failed(outcome: Outcome) -> bool:
    """Whether the slot failed this user, though a retry or a fallback may have hidden it from them."""
    return outcome.status >= SERVER_ERROR or outcome.retried or outcome.by_fallback or outcome.cut_short


def tally(outcomes: Iterable[Outcome], slot: Slot) -> Sample:
    """Sum up one slot's requests; those that the user broke off stand apart, unless the slot had failed them."""
    mine = [o for o in outcomes if o.slot == slot]
    own = [o for o in mine if has_failed(o) or not o.user_left]
    return Sample(
        requests=len(own),
        failed=sum(map(has_failed, own)),
        refused=sum(CLIENT_ERROR <= o.status < SERVER_ERROR for o in own),
        left=sum(o.status == NO_ANSWER for o in mine if o.user_left and not has_failed(o)),
        first_token_ms=tuple(sorted(o.first_token_ms for o in own if o.first_token_ms is not None)),
    )


def judge(candidate: Sample, stable: Sample, limits: Limits, elapsed_seconds: float) -> Ruling:
    """Rule on a stage: harm outranks doubt, doubt outranks good news, and no data is never a pass."""
    rulings = [
        _errors_within_limit(candidate, limits),
        _errors_against_stable(candidate, stable),
        _refusals_against_stable(candidate, stable),
        _departures_against_stable(candidate, stable),
        _first_token_within_limit(candidate, limits),
        _first_token_against_stable(candidate, stable, limits),
    ]
    if harm := [ruling.reason for ruling in rulings if ruling.verdict == "roll back"]:
        return Ruling("roll back", "; ".join(harm))
    doubt = [ruling.reason for ruling in rulings if ruling.verdict == "hold"]
    if candidate.requests < limits.minimum_requests:
        doubt.insert(0, f"{candidate.requests} of the {limits.minimum_requests} requests that this stage needs")
    if doubt and elapsed_seconds >= limits.deadline_seconds:
        return Ruling("roll back", f"not passed within {limits.deadline_seconds:g} s: {'; '.join(doubt)}")
    if doubt or elapsed_seconds < limits.minimum_seconds:
        return Ruling("hold", "; ".join(doubt) or f"held for at least {limits.minimum_seconds:g} s")
    return Ruling("promote", "; ".join(ruling.reason for ruling in rulings if ruling.reason))


def _errors_within_limit(candidate: Sample, limits: Limits) -> Ruling:
    words = (
        f"{candidate.failed} of {candidate.requests} requests failed{_percent(candidate.failed, candidate.requests)}, "
        f"limit {limits.error_percent:g} %"
    )
    return _rule(candidate.failed, candidate.requests, limits.error_percent / 100, words)


def _first_token_within_limit(candidate: Sample, limits: Limits) -> Ruling:
    if limits.first_token_p95_ms is None:
        return Ruling("promote", "")
    p95 = candidate.first_token_percentile(95)
    if p95 is None:
        return Ruling("hold", "no streamed answer yet, so no time to first token")
    words = f"p95 first token {p95:.0f} ms, limit {limits.first_token_p95_ms:g} ms"
    return _rule_p95(candidate.first_token_ms, limits.first_token_p95_ms, words)


def _first_token_against_stable(candidate: Sample, stable: Sample, limits: Limits) -> Ruling:
    p95, stable_p95 = candidate.first_token_percentile(95), stable.first_token_percentile(95)
    if p95 is None or stable_p95 is None or len(stable.first_token_ms) < limits.minimum_requests:
        return Ruling("promote", "")  # nothing to compare with; the absolute limit rules alone
    allowed = max(stable_p95 * limits.slower_than_stable, stable_p95 + limits.first_token_margin_ms)
    words = f"p95 first token {p95:.0f} ms, {allowed:.0f} ms allowed beside stable's {stable_p95:.0f} ms"
    return _rule_p95(candidate.first_token_ms, allowed, words)


def _errors_against_stable(candidate: Sample, stable: Sample) -> Ruling:
    return _more_than_stable(candidate.failed, candidate.requests, stable.failed, stable.requests, "failed")


def _refusals_against_stable(candidate: Sample, stable: Sample) -> Ruling:
    """A user's nonsense is refused by both slots alike, so only the difference speaks against the candidate."""
    return _more_than_stable(candidate.refused, candidate.requests, stable.refused, stable.requests, "were refused")


def _departures_against_stable(candidate: Sample, stable: Sample) -> Ruling:
    """Users leave for reasons of their own; where more of them do so, there may be no answer to wait for."""
    ours, theirs = candidate.requests + candidate.left, stable.requests + stable.left
    return _more_than_stable(candidate.left, ours, stable.left, theirs, "were given up without an answer")


def _more_than_stable(hits: int, of: int, stable_hits: int, stable_of: int, what: str) -> Ruling:
    """Were the two alike, how likely would the candidate's share of all hits be this large? (Fisher's exact test.)"""
    words = f"{hits} of {of} requests {what}{_percent(hits, of)}, stable's {stable_hits} of {stable_of}"
    chance = _chance_of_share(hits, of, stable_hits, stable_of)
    if chance < BEYOND_CHANCE:
        return Ruling("roll back", words)
    return Ruling("hold", words) if chance < DOUBTFUL else Ruling("promote", "")


def _rule_p95(sorted_values: Sequence[float], limit: float, words: str) -> Ruling:
    """A p95 is under a limit where at most 5 % of the values are over it."""
    return _rule(sum(value > limit for value in sorted_values), len(sorted_values), 0.05, words)


def _rule(hits: int, of: int, limit: float, words: str) -> Ruling:
    if of == 0 or hits / of <= limit:
        return Ruling("promote", words)
    return Ruling("roll back" if _chance_of_at_least(hits, of, limit) < BEYOND_CHANCE else "hold", words)


def _chance_of_at_least(hits: int, of: int, rate: float) -> float:
    """The upper tail of the binomial distribution."""
    return sum(
        exp(_log_ways(of, k) + k * log(rate) + (of - k) * log1p(-rate)) for k in _while_it_matters(hits, of, rate * of)
    )


def _chance_of_share(hits: int, of: int, stable_hits: int, stable_of: int) -> float:
    """The upper tail of the hypergeometric distribution."""
    total, all_hits = of + stable_of, hits + stable_hits
    if not all_hits:
        return 1.0
    return sum(
        exp(_log_ways(of, k) + _log_ways(stable_of, all_hits - k) - _log_ways(total, all_hits))
        for k in _while_it_matters(hits, min(of, all_hits), all_hits * of / total)
    )


def _while_it_matters(first: int, last: int, mean: float) -> range:
    """Both distributions are narrower than Poisson's: fifteen of its deviations above the mean nothing is left."""
    return range(first, min(last, max(first, ceil(mean)) + ceil(15 * sqrt(mean + 1)) + 15) + 1)


def _log_ways(of: int, take: int) -> float:
    """The logarithm of the binomial coefficient: large samples are past what a float holds."""
    return lgamma(of + 1) - lgamma(take + 1) - lgamma(of - take + 1)


def _percent(part: int, whole: int) -> str:
    return f" ({100 * part / whole:.1f} %)" if whole else ""
