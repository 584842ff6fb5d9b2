"""May the candidate have more traffic? Evidence in; out comes promote, hold or roll back, and why.

The statistics are those of `flows.policy.gating.bets`; docs/gates.md says in words what each rule is.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from typing import Literal

from flows.policy.gating.bets import share_at, worth
from flows.policy.gating.measures import (
    CHECKS,
    EACH_TOKEN,
    FIRST_TOKEN,
    HUNG_TIMES_P90,
    LEARNED_FROM,
    LINES,
    P90,
    SLOWNESS,
    TIME_OF,
    TIMES,
    UNPROMISED,
    CellCount,
    Check,
    Count,
    Evidence,
    Limits,
    Measure,
    Part,
    Probed,
    Time,
    Weighed,
    limit_of,
    parts_of,
    worth_like_stable,
    worth_of_harm,
    worth_that_matters,
    worth_within_limit,
)

Verdict = Literal["promote", "hold", "roll back"]
SUSPICIOUS = 0.0
"""A bet on harm that is worth more than the coin it began with is no harm yet, and no time to rise."""
SUSPICIOUS_OF_PROBES = log(2)
"""The same of theirs: one hit that stable did not have is worth less, and nobody asks more of them because of it."""
NEEDLESS = 0.1
"""Of the releases that are worse by no more than the margins excuse, so many may each gate roll back."""
BLAME = log(5)
"""A bet that harm is one cell's alone, worth this much, spares the rest."""
MINUTES_FROM = 600
PROMISED: tuple[Measure, ...] = ("failed", *(time.late for time in TIMES))
"""What a pass has to be within its limit of."""
_TIME_IN_WORDS = {FIRST_TOKEN: ("", 0), EACH_TOKEN: ("a token ", 1)}
"""After "later" or "longer", and how many digits of a millisecond matter."""
PROBES = "by probes, of which stable gets half: "
"""What a reason begins with that is not users'."""


@dataclass(frozen=True)
class Ruling:
    verdict: Verdict
    reason: str
    bad_cells: tuple[str, ...] = ()
    """Hold these back: the harm is theirs alone."""


def rule(evidence: Evidence, limits: Limits, elapsed_seconds: float, probed: Probed | None = None) -> Ruling:
    """Rule on a stage: harm outranks doubt, doubt outranks good news, and no data is never a pass.

    Probes can show harm, and stand in for users in what is still to be learned, but not for the minimum of requests.
    """
    for seen, whose in ((evidence, ""), *(((probed.evidence, PROBES),) if probed else ())):
        harm, of_all_stages = _harm(seen, limits), _harm_of_all_stages(seen, limits)
        # Of earlier stages nobody knows in which cell what was: what only all of them show is no cell's.
        bad_cells = () if of_all_stages.keys() - harm.keys() else tuple(_cells_to_blame(seen, limits, harm))
        if bad_cells and 2 * (len(bad_cells) + len(seen.dropped)) <= len(seen.cells) + len(seen.dropped):
            return Ruling("hold", whose + "; ".join(_cell_words(seen, cell) for cell in bad_cells), bad_cells)
        if words := {**of_all_stages, **harm}:
            return Ruling("roll back", whose + "; ".join(words.values()))
    if probed is not None and (off := _harm_of_answers(probed, limits)):
        return Ruling("roll back", PROBES + "; ".join(off))
    doubt = _doubt(evidence, limits, elapsed_seconds, probed)
    if doubt and elapsed_seconds >= limits.deadline_seconds:
        return Ruling("roll back", f"not passed within {limits.deadline_seconds:g} s: {'; '.join(doubt)}")
    if doubt or elapsed_seconds < limits.minimum_seconds:
        return Ruling("hold", "; ".join(doubt) or f"held for at least {limits.minimum_seconds:g} s")
    return Ruling("promote", _good_news(evidence, limits, probed))


def _harm(evidence: Evidence, limits: Limits) -> dict[Measure, str]:
    """What is beyond bad luck, in words."""
    words: dict[Measure, str] = {}
    for measure, count in evidence.counts.items():
        if measure not in parts_of(evidence.share, limits):
            continue
        harm, matters = _at_its_best(measure, count, evidence, limits)
        if _is_beyond(harm, matters, bar(evidence, limits, measure), evidence):
            words[measure] = _bad_luck(measure, evidence, limits, _all_this(measure), harm)
    if len(words) > 1:
        words.pop("failed lately", None)
    return words


def _at_its_best(measure: Measure, count: Count, evidence: Evidence, limits: Limits) -> tuple[float, float | None]:
    """What the two bets on harm were worth at their best.

    Of what nobody promised, alone, what they are worth now, of as many requests as a stage needs: what a stranger sends
    at once is outweighed by what others are answered.
    """
    if evidence.share < 1 or measure not in UNPROMISED:
        return count.harm, count.matters
    now = count.harm_now if count.of >= limits.minimum_requests else 0.0
    return now, now


def _harm_of_all_stages(evidence: Evidence, limits: Limits) -> dict[Measure, str]:
    """The same by the bets that go on from an earlier stage, if there are any."""
    if (whole := _of_all_stages(evidence)) is None:
        return {}
    return {
        measure: _bad_luck(measure, evidence, limits, "what all stages so far have shown", count.whole)
        for measure, count in evidence.counts.items()
        if measure in parts_of(evidence.share, limits)
        and _is_beyond(count.whole, count.whole_matters, bar(whole, limits, measure), whole)
    }


def _of_all_stages(evidence: Evidence) -> Evidence | None:
    """The same, with the budget of the bets that go on."""
    return replace(evidence, budget=evidence.whole_budget) if evidence.whole_budget else None


def _bad_luck(measure: Measure, evidence: Evidence, limits: Limits, what: str, worth_of_bet: float) -> str:
    alone = "did no more than is excused" if measure in UNPROMISED else "kept the limit"
    like = "were like stable" if evidence.share < 1 else alone
    seen = _in_words(measure, evidence, limits)
    return f"{seen}; if it {like}, {what} would be bad luck of {_chance(worth_of_bet)}"


def _all_this(measure: Measure) -> str:
    """What is shown of slow answers is who waited; the bet is on how late all of them came."""
    return "how late all its answers are" if measure in SLOWNESS else "this"


def bar(evidence: Evidence, limits: Limits, part: Part) -> float:
    """What a bet has to be worth before it says harm."""
    return -log(limits.false_alarm_percent / 100 * evidence.budget * parts_of(evidence.share, limits)[part])


def bar_of_margins(evidence: Evidence, bar: float) -> float:
    """What a bet on more than the margins excuse has to be worth, beside one on harm that has this bar."""
    return min(bar, -log(NEEDLESS * evidence.budget))


def _is_beyond(harm: float, matters: float | None, bar: float, evidence: Evidence) -> bool:
    return harm >= bar and (matters is None or matters >= bar_of_margins(evidence, bar))


def bar_of_answers(probed: Probed, limits: Limits) -> float:
    return -log(limits.false_alarm_percent / 100 * probed.evidence.budget / len(CHECKS))


def _harm_of_answers(probed: Probed, limits: Limits) -> list[str]:
    return [
        f"{answers_in_words(check, count)}; if it were like stable, this would be bad luck of {_chance(count.harm)}"
        for check, count in probed.answers.items()
        if count.harm >= bar_of_answers(probed, limits)
    ]


def answers_in_words(check: Check, count: Count) -> str:
    part = f"{count.hits} of {count.all_hits}{_percent(count.hits, count.all_hits)}"
    if check == "wrong":
        return (
            f"of the answers to {count.of} prompts that are wrong where the other's is right the candidate has {part}"
        )
    return f"of the answers to {count.of} prompts that are {check} than the other's the candidate has {part}"


def _in_words(measure: Measure, evidence: Evidence, limits: Limits) -> str:
    if evidence.share == 1:
        return _seen(measure, evidence, limits)
    if measure == "failed":
        return f"{_seen(measure, evidence, limits)}; {_beside(measure, evidence, limits)}"
    return _beside(measure, evidence, limits)


def _cells_to_blame(evidence: Evidence, limits: Limits, harm: Mapping[Measure, str]) -> list[str]:
    """The cells whose own the harm is, where the others are free of it."""
    blamed: list[str] = []
    if len(evidence.cells) > 1:
        for name, cell in evidence.cells.items():
            bad: Iterable[Measure] = harm or [m for m in cell.hits if _is_harm_in_cell(m, cell, evidence, limits)]
            if bad and all(_is_to_blame(cell, measure, evidence, limits) for measure in bad):
                blamed.append(name)
    return blamed


def _is_to_blame(cell: CellCount, measure: Measure, evidence: Evidence, limits: Limits) -> bool:
    """Whether this cell has far more of the hits than of the requests, and the rest is no harm without it."""
    if measure == "failed lately":
        measure = "failed"
    count, hits = evidence.count(measure), cell.hits.get(measure, 0)
    share = _part_of_requests(cell, evidence)
    if not hits or worth(hits, count.hits, share, [share_at(share, times) for times in (4, 16, 64)]) < BLAME:
        return False
    rest = Count(count.hits - hits, count.all_hits - hits, max(0, round(count.of * (1 - share))))
    return not _is_harm(measure, rest, 1 - share, bar(evidence, limits, measure), evidence, limits)


def _part_of_requests(cell: CellCount, evidence: Evidence) -> float:
    """Of the candidate's: those that users broke off are in its cells' numbers, and not in its own."""
    return cell.requests / max(evidence.requests, sum(one.requests for one in evidence.cells.values()))


def _is_harm_in_cell(measure: Measure, cell: CellCount, evidence: Evidence, limits: Limits) -> bool:
    others = evidence.count(measure).all_hits - evidence.count(measure).hits
    count = Count(cell.hits[measure], cell.hits[measure] + others, max(cell.hits[measure], cell.requests))
    beyond = bar(evidence, limits, "cells") + log(len(evidence.cells))
    return _is_harm(measure, count, _part_of_requests(cell, evidence), beyond, evidence, limits)


def _is_harm(measure: Measure, count: Count, part: float, beyond: float, evidence: Evidence, limits: Limits) -> bool:
    """Whether a part of the candidate is beyond bad luck by itself, beside stable where there is one."""
    share = evidence.share * part
    # In brackets: at 100 % it is 1 and no float beside it, or a part would be compared with a stable that is not there.
    beside = share / (share + (1 - evidence.share))
    matters = worth_that_matters(measure, count, beside, limits)
    return _is_beyond(worth_of_harm(measure, count, beside, limits), matters, beyond, evidence)


def _doubt(evidence: Evidence, limits: Limits, elapsed_seconds: float, probed: Probed | None) -> list[str]:
    """What is missing before this stage can be passed, in words."""
    sure = -log(limits.missed_harm_percent / 100)
    doubt: list[str] = []
    if evidence.requests < limits.minimum_requests:
        first = f"{evidence.requests} of the {limits.minimum_requests} requests that this stage needs"
        doubt.append(f"{first}, and probes do not stand in for these" if _were_sent(probed) else first)
    for measure in PROMISED:
        if missing := good_ones_missing(measure, evidence, limits, probed):
            pace = _pace(missing, _with_probes(measure, evidence, probed).counted, elapsed_seconds)
            doubt.append(f"{_seen(measure, evidence, limits)}: about {missing} more good ones{pace} will do")
    for time in _compared(evidence, limits):
        if not (told := _told(time, evidence, probed)):
            tokens = "" if time is FIRST_TOKEN else " of some tokens"
            learned = evidence.timing(time).learned
            doubt.append(f"{learned} of the {LEARNED_FROM} streamed answers{tokens} that say what is slow")
        elif _worth_like_stable(time, evidence, probed) < sure:
            doubt.append(f"{_beside(time.later, told, limits)}: it takes more to tell")
    doubt += _suspicions(evidence, limits, SUSPICIOUS)
    if probed is not None:
        doubt += [PROBES + words for words in _suspicions(probed.evidence, limits, SUSPICIOUS_OF_PROBES)]
        doubt += [
            f"{PROBES}{answers_in_words(check, count)}: suspicious"
            for check, count in probed.answers.items()
            if count.harm_now > SUSPICIOUS_OF_PROBES
        ]
    return doubt


def _told(time: Time, evidence: Evidence, probed: Probed | None) -> Evidence | None:
    """Where it is known what is slow: among users, or else among probes."""
    known = (one for one in (evidence, probed and probed.evidence) if one and one.timing(time).slow_ms)
    return next(known, None)


def _were_sent(probed: Probed | None) -> bool:
    return probed is not None and probed.evidence.requests > 0


def _with_probes(measure: Measure, evidence: Evidence, probed: Probed | None) -> Count:
    """What good news within a limit stands on: users' requests and, where there are any, probes."""
    mine = evidence.count(measure)
    if probed is None:
        return mine
    theirs = probed.evidence.count(measure)
    return replace(mine, counted=mine.counted + theirs.counted, counted_hits=mine.counted_hits + theirs.counted_hits)


def good_ones_missing(measure: Measure, evidence: Evidence, limits: Limits, probed: Probed | None = None) -> int:
    """How many more without a hit make it plain that the limit is not broken twice over; 0 where it is, or is none."""
    sure = -log(limits.missed_harm_percent / 100)
    limit, count = limit_of(measure, limits), _with_probes(measure, evidence, probed)
    if limit is None or worth_within_limit(count, limit) >= sure:
        return 0
    return _missing(lambda more: worth_within_limit(_with_more(count, more), limit) >= sure)


def _worth_like_stable(time: Time, evidence: Evidence, probed: Probed | None, more_hits: int = 0) -> float:
    """Of the bets on users and on probes together, one coin carried from one to the other: their logarithms add up.

    With `more_hits` of the candidate's among the probes, and as many of stable's: how much more it takes.
    """
    total = worth_like_stable(evidence.count(time.later), evidence.share) if evidence.timing(time).slow_ms else 0.0
    if probed is not None and (probed.evidence.timing(time).slow_ms or more_hits):
        count = probed.evidence.count(time.later)
        now = count.weighed or Weighed(count.hits, count.all_hits, count.counted)
        more = Weighed(now.hits + more_hits, now.all_hits + 2 * more_hits, now.of + 10 * more_hits)
        total += worth_like_stable(replace(count, weighed=more), probed.evidence.share)
    return total


def answers_missing(evidence: Evidence, limits: Limits, probed: Probed) -> int:
    """How many more good answers of the candidate's to probes take all doubt of what is to be learned."""
    sure = -log(limits.missed_harm_percent / 100)
    missing = [good_ones_missing(measure, evidence, limits, probed) for measure in PROMISED]
    for time in _compared(evidence, limits):
        if _told(time, evidence, probed) is None:
            missing.append(-(-(LEARNED_FROM - probed.evidence.timing(time).learned) // 2))
        elif _worth_like_stable(time, evidence, probed) < sure:
            # Alike, the candidate has a tenth of its answers beyond stable's p90, and half of all such answers.
            missing.append(10 * _missing(lambda hits, t=time: _worth_like_stable(t, evidence, probed, hits) >= sure))
    return max(missing)


def _suspicions(evidence: Evidence, limits: Limits, above: float) -> list[str]:
    """What looks like harm, and is none yet."""
    doubt: list[str] = []
    for measure, count in evidence.counts.items():
        if measure == "failed lately" or measure not in parts_of(evidence.share, limits):
            continue  # what failed lately has a bar that rises, and is known to nobody but the judge
        if count.harm_now > above:
            doubt.append(f"{_in_words(measure, evidence, limits)}: suspicious")
    return doubt


def _compared(evidence: Evidence, limits: Limits) -> list[Time]:
    """The times that have to be like stable's before a stage is passed."""
    return [time for time in TIMES if time.limit_ms(limits) is not None and evidence.share < 1]


def _good_news(evidence: Evidence, limits: Limits, probed: Probed | None) -> str:
    news = [_seen(measure, evidence, limits) for measure in PROMISED if limit_of(measure, limits) is not None]
    news += [
        _beside(time.later, _told(time, evidence, probed) or evidence, limits) for time in _compared(evidence, limits)
    ]
    if probed is not None and _were_sent(probed):
        failed = probed.evidence.count("failed")
        news.append(f"of {probed.evidence.requests} probes {failed.hits} failed")
    return "; ".join(news)


@dataclass(frozen=True)
class Nearness:
    """Of one gate: how much of what a ruling takes is there, as logarithms go; None where it does not rule so."""

    gate: str
    seen: str
    harm: float | None
    good_news: float | None


def nearness(evidence: Evidence, limits: Limits) -> list[Nearness]:
    """What the canary board shows: the evidence closing in on one ruling or the other."""
    sure = -log(limits.missed_harm_percent / 100)
    harmful, gates = parts_of(evidence.share, limits), list[Nearness]()
    for measure, count in evidence.counts.items():
        if measure == "failed lately" or not _can_be_told(measure, evidence, limits):
            continue
        harm = _part_of_the_way(measure, count, evidence, limits) if measure in harmful else None
        good = None
        if measure in PROMISED and (limit := limit_of(measure, limits)) is not None:
            good = worth_within_limit(count, limit) / sure
        elif measure in {time.later for time in TIMES} and evidence.share < 1:
            good = worth_like_stable(count, evidence.share) / sure
        if harm is not None or good is not None:
            words = _seen if measure in {time.late for time in TIMES} else _in_words
            gates.append(Nearness(measure, words(measure, evidence, limits), harm, good))
    return gates


def _part_of_the_way(measure: Measure, count: Count, evidence: Evidence, limits: Limits) -> float:
    """Of this stage's bets, or of those that go on, whichever are further."""
    of_stage, (harm, matters) = bar(evidence, limits, measure), _at_its_best(measure, count, evidence, limits)
    part = min(harm / of_stage, 1.0 if matters is None else matters / bar_of_margins(evidence, of_stage))
    if whole := _of_all_stages(evidence):
        of_all = bar(whole, limits, measure)
        part = max(part, min(count.whole / of_all, count.whole_matters / bar_of_margins(whole, of_all)))
    return part


def _can_be_told(measure: Measure, evidence: Evidence, limits: Limits) -> bool:
    time = TIME_OF.get(measure)
    if time is None:
        return evidence.share < 1 or measure not in UNPROMISED or evidence.count(measure).allowed is not None
    return time.limit_ms(limits) is not None if measure == time.late else bool(evidence.timing(time).slow_ms)


def requests_needed(limits: Limits, share: float, slow_ms: Mapping[Time, Sequence[float]] | None = None) -> int:
    """How many requests of the candidate a stage takes if all goes well; the double is no surprise.

    `slow_ms`: stable's lines of each time, as far as they are known. Without them nobody knows what a margin excuses.
    """
    sure = -log(limits.missed_harm_percent / 100)
    needs = [limits.minimum_requests]
    promised = [p for measure in PROMISED if (p := limit_of(measure, limits)) is not None]
    needs += [_missing(lambda n, p=p: worth_within_limit(Count(counted=n), p) >= sure) for p in promised]
    for time in TIMES:
        if share < 1 and time.limit_ms(limits) is not None:
            late = _late_part(time, (slow_ms or {}).get(time, ()), limits)
            needs.append(_missing(lambda n, late=late: worth_like_stable(_alike(n, share, late), share) >= sure))
    return max(needs)


def _late_part(time: Time, slow_ms: Sequence[float], limits: Limits) -> float:
    """Of the answers of a candidate that is like stable, those that are later than stable's p90 and the margin."""
    allowed = time.allowed_ms(slow_ms[P90], limits) if slow_ms else 0.0
    passed = [line for line, ms in zip(reversed(LINES), reversed(slow_ms), strict=False) if ms <= allowed]
    return 1 - max([*passed, LINES[P90]]) / 100


def _alike(requests: int, share: float, late: float) -> Count:
    """What is later than p90 after so many requests of a candidate that is like stable, which knows no margin."""
    stables = requests * (1 - share) / share * (1 - LINES[P90] / 100)
    hits = round(requests * late)
    return Count(hits, hits + round(stables), counted=requests)


def forecast(
    limits: Limits, share: float, requests_a_second: float | None, slow_ms: Mapping[Time, Sequence[float]]
) -> str:
    """How many requests of the candidate a stage takes, and how long that is at the present rate of the service."""
    needed = requests_needed(limits, share, slow_ms)
    words = f"about {needed} requests of the candidate if all goes well"
    if requests_a_second is None:
        return f"{words}; nobody knows how many come now"
    if not requests_a_second:
        return f"{words}; none come now"
    seconds = max(needed / (requests_a_second * share), limits.minimum_seconds)
    late = f", later than its deadline of {limits.deadline_seconds:g} s" if seconds > limits.deadline_seconds else ""
    return f"{words}: {_duration(seconds)} at the {requests_a_second:.2g} a second that the service has now{late}"


def _missing(enough: Callable[[int], bool]) -> int:
    """The smallest number that is enough: a search that doubles, then halves."""
    high = 1
    while not enough(high) and high < 1 << 30:
        high *= 2
    low = high // 2
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _with_more(count: Count, good: int) -> Count:
    return replace(count, counted=count.counted + good)


def _pace(missing: int, seen: int, elapsed_seconds: float) -> str:
    if not seen or not elapsed_seconds:
        return ""
    return f" ({_duration(missing * elapsed_seconds / seen)} at this pace)"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < MINUTES_FROM else f"{seconds / 60:.0f} min"


def _seen(measure: Measure, evidence: Evidence, limits: Limits) -> str:
    count = evidence.count(measure)
    if measure in TIME_OF:
        time = TIME_OF[measure]
        late = "began after" if time is FIRST_TOKEN else "took more a token than"
        first = f"{count.hits} of {count.of} streamed answers {late} {time.limit_ms(limits):g} ms"
        return f"{first}{_percent(count.hits, count.of)}, limit 5 %"
    if measure in UNPROMISED:
        met = {"refused": "were refused", "left": "were given up without an answer"}
        of = f"{count.hits} of {count.of} requests {met.get(measure, 'were left in the middle of the answer')}"
        excused = f", {100 * count.allowed:.2g} % are excused by what was shown before" if count.allowed else ""
        return f"{of}{_percent(count.hits, count.of)}{excused}"
    lately = " lately" if measure == "failed lately" else ""
    of = f"{count.hits} of {count.of} requests failed{lately}{_percent(count.hits, count.of)}"
    both = f"; {count.set_aside_hits} of {count.set_aside} while stable broke it as well" if count.set_aside else ""
    return f"{of}, limit {limits.error_percent:g} %{both}"


def _beside(measure: Measure, evidence: Evidence, limits: Limits) -> str:
    count = evidence.count(measure)
    expected = f"{100 * evidence.share:g} % expected of its share"
    part = f"{count.hits} of {count.all_hits}{_percent(count.hits, count.all_hits)}, {expected}"
    if measure in TIME_OF:
        time = TIME_OF[measure]
        line, what, digits = evidence.timing(time).slow_ms[P90], *_TIME_IN_WORDS[time]
        if measure == time.hung:
            late = f"{HUNG_TIMES_P90} times the p90 of both slots ({line:.{digits}f} ms)"
            return f"of the users who waited longer {what}than {late} the candidate has {part}"
        lines = f"{line:.{digits}f} ms, {time.allowed_ms(line, limits):.{digits}f} ms for the candidate"
        whose = "users' first answers in this stage" if measure == time.slow else "answers"
        return f"of the {whose} later {what}than the p{LINES[P90]} of both slots ({lines}) the candidate has {part}"
    what = {"failed": "who met a failure", "failed lately": "who met a failure lately", "refused": "who were refused"}
    what["left midway"] = "who left in the middle of an answer"
    return f"of the users {what.get(measure, 'who gave up without an answer')} the candidate has {part}"


def _cell_words(evidence: Evidence, cell: str) -> str:
    count = evidence.cells[cell]
    parts = [f"{hits} of all {evidence.count(measure).hits} {measure}" for measure, hits in count.hits.items() if hits]
    share = 100 * _part_of_requests(count, evidence)
    return f"cell {cell} is held back: of the candidate it has {share:.0f} % of the requests and {', '.join(parts)}"


def _chance(worth_of_bet: float) -> str:
    return f"1 in {exp(min(worth_of_bet, 30)):,.0f}"


def _percent(part: int, whole: int) -> str:
    return f" ({100 * part / whole:.1f} %)" if whole else ""
