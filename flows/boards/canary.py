"""The canary board: what users of a candidate meet beside those of the live release, and how its gates rule."""

from collections.abc import Callable, Sequence

from flows.boards.markdown import bar, bold, code, escaped, listed, page, section, table
from flows.boards.numbers import count, count_of, milliseconds, percent, seconds, times
from flows.boards.picture import picture
from flows.boards.readings import (
    Gate,
    Part,
    Slots,
    failures_band,
    gates_of,
    gates_of_probes,
    told,
    users_met,
)
from flows.boards.release import what_differs
from flows.boards.shown import Page
from flows.boards.stages import stages_so_far
from flows.policy.gating.decide import Ruling
from flows.policy.gating.engines import Engines, Work
from flows.policy.gating.evidence import Evidence, Probed
from flows.policy.gating.limits import Limits
from flows.policy.gating.measures import MEASURES, Measure
from flows.policy.gating.wording import words_of
from flows.policy.releases.ledger import Release


def canary_board(
    release: Release,
    stages_percent: Sequence[int],
    weight_percent: int,
    evidence: Evidence,
    limits: Limits,
    ruling: Ruling,
    held_seconds: float,
    *,
    forecast: str,
    engines: Engines,
    probed: Probed | None,
    measures: tuple[Measure, ...] = MEASURES,
    before: Release | None = None,
) -> Page:
    """One look at a stage: what was done and why, what users met, then the evidence for it."""
    band = failures_band(evidence, limits)
    gates = gates_of(evidence, limits, measures)
    return Page(
        _description(release),
        page(
            f"# Canary of {release.id}: {weight_percent} % of traffic",
            told(words_of(ruling, evidence, limits, held_seconds, probed, measures)),
            f"Stages: {_arrows(stages_percent, weight_percent)}. This one has run for {seconds(held_seconds)} and "
            f"takes {escaped(forecast)}.",
            section("What users met", _users_table(evidence, limits, measures)),
            section("Gates", _gates_table(gates), picture(band) if band else "", _gates_list(gates)),
            section("Probes", _probes(probed, limits, measures)),
            section("Engines", _engines_table(engines)),
            section("Stages so far", stages_so_far(release.stages)),
            what_differs(before, release),
            f"Model {escaped(release.repo)} at commit {code(release.commit[:12])}.",
        ),
    )


def waiting_board(release: Release, stages_percent: Sequence[int], weight_percent: int, blockers: str) -> Page:
    """Before a stage: why it does not begin."""
    return Page(
        _description(release),
        page(
            f"# Canary of {release.id}: waiting before {weight_percent} % of traffic",
            f"**Waiting before {weight_percent} % of traffic**: stable could not take its traffic back now: "
            f"{escaped(blockers)}.",
            f"Stages: {_arrows(stages_percent, weight_percent)}.",
            section("Stages so far", stages_so_far(release.stages)),
        ),
    )


def _description(release: Release) -> str:
    return f"The canary of {escaped(release.service)}, stage by stage"


def _arrows(stages_percent: Sequence[int], now_percent: int) -> str:
    return " → ".join(bold(f"{stage} %") if stage == now_percent else f"{stage} %" for stage in stages_percent)


def _users_table(evidence: Evidence, limits: Limits, measures: tuple[Measure, ...]) -> str:
    """Five of a hundred requests may be thirty of a hundred tokens, so both parts stand there."""
    rows = [
        ("requests", *_both(evidence.requests, evidence.stable_requests)),
        ("output tokens", *_both(evidence.tokens, evidence.stable_tokens)),
        *(
            (row.what, _side(row.candidate), _side(row.stable), _beside(row))
            for row in users_met(evidence, limits, measures)
        ),
    ]
    return table(("", "candidate", "stable", "beside stable"), rows)


def _both(candidate: int, stable: int) -> tuple[str, str, str]:
    both = candidate + stable
    return count(candidate), count(stable), f"{percent(candidate / both, 1)} of both" if both else ""


def _side(side: Part | float | None) -> str:
    if isinstance(side, Part):
        return count_of(side.count, side.of or 0)
    return milliseconds(side)


def _beside(row: Slots) -> str:
    return "" if row.times_stable is None else times(row.times_stable)


def _gates_table(gates: Sequence[Gate]) -> str:
    rows = (
        (gate.name, *("" if part is None else bar(part) for part in (gate.harm, gate.non_inferiority)))
        for gate in gates
    )
    return table(("log e-value, of its threshold", "harm", "non-inferiority"), rows, text_columns=3)


def _gates_list(gates: Sequence[Gate]) -> str:
    """What each has seen, where it has seen anything."""
    return listed((gate.name, gate.words) for gate in gates if gate.harm or gate.non_inferiority)


def _probes(probed: Probed | None, limits: Limits, measures: tuple[Measure, ...]) -> str:
    """What golden prompts have shown, apart from users."""
    if probed is None:
        return "No probes were sent."
    gates = gates_of_probes(probed, limits, measures)
    rows = ((gate.name, bar(gate.harm or 0.0)) for gate in gates)
    return "\n\n".join(
        (
            f"{probed.evidence.requests} were sent to the candidate, and {probed.evidence.stable_requests} to stable.",
            table(("log e-value, of its threshold", "harm"), rows, text_columns=2),
            _gates_list(gates),
        )
    )


def _engines_table(engines: Engines) -> str:
    """What each slot's engines did in this stage, as they say themselves."""

    def row(what: str, of: Callable[[Work], object]) -> tuple[object, ...]:
        return (what, of(engines.candidate), of(engines.stable))

    return table(
        ("", "candidate", "stable"),
        (
            row("replicas that say so", lambda work: f"{work.replicas - work.silent} of {work.replicas}"),
            row("prompt tokens", lambda work: count(work.prompt_tokens)),
            row("output tokens", lambda work: count(work.generated_tokens)),
            row("time per output token, mean", lambda work: milliseconds(work.ms_per_token)),
            row("time in queue, mean", lambda work: milliseconds(work.queue_ms)),
            row("most requests waiting", lambda work: count(work.most_waiting)),
            row("KV cache at its fullest", lambda work: percent(work.fullest_kv_cache)),
            row("preemptions", lambda work: count(work.preemptions)),
            row("restarts", lambda work: work.restarts),
        ),
    )
