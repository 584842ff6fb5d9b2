"""What do the gates say of a stage that is over: the same again, or what other gates would have said?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from pydantic import ValidationError

from blocks.errors import Refused
from flows.policy.gating.decide import LATELY, Ruling, rule
from flows.policy.gating.evidence import Evidence
from flows.policy.gating.limits import Limits
from flows.policy.gating.measures import MEASURES, Measure, panel_of
from flows.policy.gating.questions import question_of
from flows.policy.gating.wording import Words, words_of
from flows.policy.releases.ledger import Stage
from flows.policy.releases.rollback import hold_while_blocked

COUNTED_BY = frozenset(
    {
        "first_token_p95_ms",
        "token_p95_ms",
        "slower_than_stable",
        "total_p95_ms",
        "first_token_margin_ms",
        "token_margin_ms",
        "total_margin_ms",
        "warm_up_seconds",
    }
)
"""The counts were taken by these; what others would have counted is not kept."""
ASKED_BY = {False: frozenset({"more_than_stable", "error_margin_percent"}), True: frozenset({"error_percent"})}
"""The peak of an e-value depends on these, beside stable and alone.

With others, it is what the e-value would be at the stage's end; and what earlier stages would have shown nobody knows,
so that e-values that went on from there are left out.
"""


@dataclass(frozen=True)
class Replayed:
    """What the gates say again, and in which words."""

    ruling: Ruling
    words: Words


def replay(stage: Stage, other_gates: Mapping[str, object], measures: tuple[Measure, ...] = MEASURES) -> Replayed:
    """Rule again on what the ledger keeps; Refused where it does not keep enough."""
    if stage.evidence is None or stage.limits is None:
        raise Refused(f"the evidence of the stage of {stage.share_percent} % is not kept: it is too long ago")
    limits = _changed(stage.limits, other_gates)
    differ = {name for name in Limits.model_fields if getattr(limits, name) != getattr(stage.limits, name)}
    if unknown := sorted(differ & COUNTED_BY):
        raise Refused(
            f"{', '.join(unknown)} cannot be replayed: requests were counted by it while the stage stood; "
            f"leave it out, and change {', '.join(sorted(set(Limits.model_fields) - COUNTED_BY))} only"
        )
    evidence, probed = stage.evidence, stage.probed
    if differ & ASKED_BY[evidence.weight == 1]:
        evidence = _asked_anew(evidence, limits, measures)
    if probed and differ & ASKED_BY[False]:
        probed = replace(probed, evidence=_asked_anew(probed.evidence, limits, measures))
    ruling = rule(evidence, limits, stage.seconds, probed, measures)
    ruling = hold_while_blocked(ruling, stage.barred_by, stage.seconds, limits.deadline_seconds)
    return Replayed(ruling, words_of(ruling, evidence, limits, stage.seconds, probed, measures))


def _changed(limits: Limits, other_gates: Mapping[str, object]) -> Limits:
    try:
        return Limits.model_validate({**limits.model_dump(), **other_gates})
    except ValidationError as error:
        raise Refused(f"these are no gates: {error}") from error


def _asked_anew(evidence: Evidence, limits: Limits, measures: tuple[Measure, ...]) -> Evidence:
    """But for what failed lately and whole distributions, which stay: what they were asked of is not all kept."""
    counts, panel = dict(evidence.counts), panel_of(evidence.kind, limits, measures)
    for gate, count in evidence.counts.items():
        latency = panel.latency(gate)
        if gate.endswith(LATELY) or (latency is not None and gate == latency.gate("slower")):
            continue
        harm = beyond = 0.0
        if count.hits:
            question = question_of(panel, gate, evidence.weight, limits, count.allowed)
            numbers = (np.array(float(number)) for number in (count.hits, count.all_hits, count.of))
            harm, beyond = (float(e_value) for e_value in question.e_values(*numbers))
        counts[gate] = replace(
            count,
            peak=harm,
            peak_beyond_margin=beyond,
            current=min(harm, beyond),
            cumulative_peak_beyond_margin=0,
        )
    return replace(evidence, counts=counts)
