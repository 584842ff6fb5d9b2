"""How tests of the gates read a ruling."""

from flows.policy.gating.decide import Ruling, rule
from flows.policy.gating.evidence import Evidence, Probed
from flows.policy.gating.limits import Limits
from flows.policy.gating.wording import words_of


def subjects(ruling: Ruling, kind: str = "") -> list[str]:
    """What its findings are about, of one kind if one is named."""
    return [finding.subject for finding in ruling.findings if kind in {"", finding.kind}]


def said(evidence: Evidence, limits: Limits, seconds: float, probed: Probed | None = None) -> str:
    """What people are told of the ruling on it."""
    return words_of(rule(evidence, limits, seconds, probed), evidence, limits, seconds, probed).text
