"""What does a ruling say to people? The first sentence is for whoever was woken up, the second for who looks closer.

Rulings are data (`decide`); words are made of them here, at the edge.
"""

from dataclasses import dataclass, replace
from math import exp, floor

import numpy as np

from flows.policy.gating.cells import part_of_requests
from flows.policy.gating.decide import Finding, Ruling
from flows.policy.gating.e_values import Floats
from flows.policy.gating.evidence import P90, Count, Evidence, Probed
from flows.policy.gating.latency import HUNG_TIMES_P90, LEARNED_FROM
from flows.policy.gating.limits import Limits
from flows.policy.gating.measures import MEASURES, EventMeasure, LatencyMeasure, Measure, Panel, panel_of
from flows.policy.gating.non_inferiority import compared, promised
from flows.policy.gating.sample_size import duration, requests_missing

VERDICTS = {"promote": "Passed", "hold": "Held", "roll back": "Rolled back"}
FEW_MS = 1000
"""From so many milliseconds on, people are told seconds."""
SAME_TIMES = 1.05
"""Less than this many times is no difference that people are told."""
MOST = 30.0
"""A log e-value beyond this is told as this: nobody needs more zeros."""


@dataclass(frozen=True)
class Words:
    """What happened, and what it stands on."""

    first: str
    second: str = ""
    """E-values and thresholds by their standard names; empty where there are none."""

    @property
    def text(self) -> str:
        return f"{self.first} {self.second}" if self.second else self.first


def words_of(
    ruling: Ruling,
    evidence: Evidence,
    limits: Limits,
    elapsed_seconds: float,
    probed: Probed | None = None,
    measures: tuple[Measure, ...] = MEASURES,
) -> Words:
    """Of a ruling on this evidence."""
    teller = _Teller(evidence, limits, panel_of(evidence.kind, limits, measures), elapsed_seconds, probed)
    begin = f"{VERDICTS[ruling.verdict]} at {100 * evidence.weight:g} %: "
    if ruling.bad_cells:
        cells = "; ".join(teller.cell(name) for name in ruling.bad_cells)
        return Words(f"{begin}{cells}.", teller.e_values(ruling))
    if ruling.blockers:
        late = f"not passed within {limits.deadline_seconds:g} s: " if ruling.verdict == "roll back" else ""
        return Words(f"{begin}{late}stable could not take its traffic back now: {ruling.blockers}.")
    if ruling.verdict == "promote":
        return Words(f"{begin}{teller.good_news()}.")
    ruling = teller.without_echoes(ruling)
    is_harm = any(finding.log_threshold for finding in ruling.findings)
    late = "" if is_harm or ruling.verdict == "hold" else f"not passed within {limits.deadline_seconds:g} s: "
    told = "; ".join(dict.fromkeys(teller.finding(one) for one in ruling.findings))
    return Words(f"{begin}{late}{told}.", teller.e_values(ruling))


def seen_of(gate: str, evidence: Evidence, limits: Limits, measures: tuple[Measure, ...] = MEASURES) -> str:
    """What was seen of one gate, for the board."""
    panel = panel_of(evidence.kind, limits, measures)
    return _Teller(evidence, limits, panel, 0.0, None).gate(gate, evidence)


def answers_in_words(check: str, count: Count) -> str:
    """Of probes' answers: pairs in which one of the two is off."""
    met = "wrong where the other slot's is right" if check == "wrong" else f"{check} than the other slot's"
    stable = count.all_hits - count.hits
    return f"{count.hits} of {count.of} answers to probes are {met}, and {stable} of stable's"


class _Teller:
    def __init__(
        self, evidence: Evidence, limits: Limits, panel: Panel, elapsed_seconds: float, probed: Probed | None
    ) -> None:
        self._evidence, self._limits, self._panel, self._probed = evidence, limits, panel, probed
        self._elapsed_seconds = elapsed_seconds

    def finding(self, finding: Finding) -> str:
        """What users met, in their units, beside stable."""
        subject = finding.subject
        if finding.by_probes and self._probed is not None:
            if subject in self._probed.answers:
                words = answers_in_words(subject, self._probed.answers[subject])
            else:
                words = f"{self.gate(subject, self._probed.evidence)} (probes)"
        elif finding.kind == "too few":
            words = self._too_few()
        elif finding.kind == "limit":
            words = self._limit(subject)
        elif finding.kind == "learning":
            words = self._learning(subject)
        elif finding.kind == "minimum":
            words = f"it stays for at least {self._limits.minimum_seconds:g} s"
        else:
            words = self.gate(subject, self._evidence)
        if finding.kind == "suspicious":
            return f"{words}: suspicious, but not beyond bad luck yet"
        return f"{words}: it takes more to tell" if finding.kind == "unlike" else words

    def without_echoes(self, ruling: Ruling) -> Ruling:
        """Who fails all requests answers none, and so fewer early than stable: that is told once, as failures."""

        def is_echo(finding: Finding) -> bool:
            latency = self._panel.latency(finding.subject)
            return bool(finding.log_threshold) and latency is not None and not self._has_timed(latency, finding)

        told = tuple(finding for finding in ruling.findings if not is_echo(finding))
        return replace(ruling, findings=told or ruling.findings)

    def _has_timed(self, latency: LatencyMeasure, finding: Finding) -> bool:
        seen = self._probed.evidence if finding.by_probes and self._probed is not None else self._evidence
        return seen.timing(latency.name).recent_ms[0] is not None

    def e_values(self, ruling: Ruling) -> str:
        told = [
            f"{one.subject}{' in all stages so far' * (one.kind == 'cumulative harm')} p ≤ {_chance(one.log_e_value)} "
            f"(threshold {_chance(one.log_threshold)})"
            for one in ruling.findings
            if one.log_threshold
        ]
        return f"If it were {self._null}: {'; '.join(told)}." if told else ""

    @property
    def _null(self) -> str:
        return "like stable" if self._evidence.weight < 1 else "within its limits"

    def _too_few(self) -> str:
        of = self._limits.minimum_requests
        words = f"{self._evidence.requests} of the {of} requests of the candidate that a stage needs"
        were_sent = self._probed is not None and self._probed.evidence.requests > 0
        return f"{words}, and probes do not stand in for these" if were_sent else words

    def _limit(self, gate: str) -> str:
        rate = dict(promised(self._panel, self._limits))[gate]
        probes = Count() if self._probed is None else self._probed.evidence.count(gate)
        own = self._evidence.count(gate)
        counted, hits = own.counted + probes.counted, own.counted_hits + probes.counted_hits
        missing = int(requests_missing(_float(counted), _float(hits), rate, self._limits))
        pace = f" ({duration(missing * self._elapsed_seconds / counted)} at this pace)" if self._paced(counted) else ""
        return f"{self.gate(gate, self._evidence)}: about {missing} more good ones{pace} will do"

    def _paced(self, counted: int) -> bool:
        return counted > 0 and self._elapsed_seconds > 0

    def _learning(self, latency: str) -> str:
        learned = self._evidence.timing(latency).learned
        one = self._panel.latency(f"{latency} slower")
        answers = one.answers if one else "answers"
        return f"{learned} of the {LEARNED_FROM} {answers} that tell what is usual"

    def gate(self, gate: str, evidence: Evidence) -> str:
        """What was seen of it."""
        event, latency = self._panel.event(gate), self._panel.latency(gate)
        if event is not None:
            return self._event(event, gate, evidence)
        if latency is None:
            return gate
        if gate == latency.gate("over limit"):
            return self._over_limit(latency, evidence.count(gate))
        if gate == latency.gate("hung"):
            return self._hung(latency, evidence)
        return self._latency(latency, evidence, evidence.count(gate))

    def _event(self, event: EventMeasure, gate: str, evidence: Evidence) -> str:
        count, limit = evidence.count(gate), event.limit(self._limits)
        lately = " lately" if gate != event.name else ""
        if not count.of and not count.all_hits:
            return f"no request of the candidate says whether requests {event.seen}{lately}"
        words = f"{_part(count.hits, count.of)} requests {event.seen}{lately}"
        if evidence.weight < 1:
            stable = count.all_hits - count.hits
            words += (
                f", and {_part(stable, count.all_of - count.of)} of stable's"
                if count.all_of
                else (f", and {stable} of stable's")
            )
        elif count.allowed:
            words += f"; {100 * count.allowed:.2g} % are excused by what earlier stages have shown"
        if limit is not None:
            words += f"; the limit is {100 * limit:g} %"
        if count.set_aside:
            words += f"; {count.set_aside_hits} of {count.set_aside} while stable broke it as well are left out"
        return words

    def _over_limit(self, latency: LatencyMeasure, count: Count) -> str:
        limit_ms = latency.limit_ms(self._limits)
        if not count.of:
            return f"none of the candidate's {latency.answers} has told its {latency.phrase}"
        limit = f" {time_in_words(limit_ms)}" if limit_ms is not None else " its limit"
        return f"{_part(count.hits, count.of)} {latency.answers} {latency.over}{limit}; 5 % may"

    def _hung(self, latency: LatencyMeasure, evidence: Evidence) -> str:
        count, edges = evidence.count(latency.gate("hung")), evidence.timing(latency.name).edges_ms
        line = f"more than {time_in_words(HUNG_TIMES_P90 * edges[P90], latency.digits)}" if edges else "far longer"
        stable = count.all_hits - count.hits
        beside = f", and {_part(stable, count.all_of - count.of)} of stable's" if count.all_of else ""
        return f"{latency.phrase} was {line} for {_part(count.hits, count.of)} users{beside}"

    def _latency(self, latency: LatencyMeasure, evidence: Evidence, count: Count) -> str:
        timing = evidence.timing(latency.name)
        own_p50, own_p95, its_p50, its_p95 = timing.recent_ms
        if own_p50 is None or own_p95 is None:
            return f"none of the candidate's {latency.answers} has told its {latency.phrase}"
        if its_p50 is None or its_p95 is None:
            return f"{latency.phrase} is {time_in_words(own_p50, latency.digits)} at the median; stable's is not known"
        is_tail = its_p95 * own_p50 < own_p95 * its_p50
        own, its, where = (own_p95, its_p95, "at p95") if is_tail else (own_p50, its_p50, "at the median")
        digits = latency.digits
        of = timing.answers if all(timing.answers) else (count.of, count.all_of - count.of)
        answers = f" ({of[0]:,} and {of[1]:,} answers)" if all(some > 0 for some in of) else ""
        own_words, its_words = together(own, its, digits)
        return f"{latency.phrase} is {own_words} {where}, {_times(own, its)}stable's {its_words}{answers}"

    def cell(self, name: str) -> str:
        one = self._evidence.cells.get(name)
        evidence = self._evidence
        if one is None and self._probed is not None:
            evidence = self._probed.evidence
            one = evidence.cells.get(name)
        if one is None:
            return f"cell {name} is held back"
        hits = [f"{n} of all {evidence.count(gate).hits} that count as {gate}" for gate, n in one.hits.items() if n]
        part = 100 * part_of_requests(one, evidence)
        return f"cell {name} is held back: it has {part:.0f} % of the candidate's requests and {', '.join(hits)}"

    def good_news(self) -> str:
        told = [self.gate(gate, self._evidence) for gate, _ in promised(self._panel, self._limits)]
        for one in compared(self._panel, self._limits, self._evidence.weight):
            by_users = bool(self._evidence.timing(one.name).edges_ms) or self._probed is None
            shown = self._evidence if by_users or self._probed is None else self._probed.evidence
            told.append(self.gate(one.gate("slower"), shown) + ("" if by_users else " (probes)"))
        if self._probed is not None and self._probed.evidence.requests:
            failed = self._probed.evidence.count("failed")
            told.append(f"of {self._probed.evidence.requests} probes {failed.hits} failed")
        return "; ".join(told)


def together(own: float, its: float, digits: int) -> tuple[str, str]:
    """Both in the unit of the longer."""
    if max(own, its) < FEW_MS:
        return f"{own:.{digits}f} ms", f"{its:.{digits}f} ms"
    return f"{own / 1000:.3g} s", f"{its / 1000:.2g} s"


def time_in_words(ms: float, digits: int = 0) -> str:
    return f"{ms:.{digits}f} ms" if ms < FEW_MS else f"{ms / 1000:.3g} s"


def _times(own: float, its: float) -> str:
    if not its or 1 / SAME_TIMES < own / its < SAME_TIMES:
        return "beside "
    return f"{own / its:.0f} times " if own >= 10 * its else f"{own / its:.2g} times "


def _part(hits: int, of: int) -> str:
    return f"{hits:,} of {of:,} ({100 * hits / of:.1f} %)" if of else f"{hits:,}"


def _chance(log_e_value: float) -> str:
    """A p-value that is valid at any time: 1 over the e-value at its peak."""
    return f"1/{floor(exp(min(log_e_value, MOST)) + 1e-9):,}"


def _float(number: int) -> Floats:
    return np.array(float(number))
