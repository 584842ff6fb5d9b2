"""Whose fault within the candidate? Cells whose own the harm is, where the others are free of it."""

from collections.abc import Iterable, Sequence
from math import log

import numpy as np

from flows.policy.gating.alpha import CELLS, log_threshold, log_threshold_of_margins, parts_of_alpha
from flows.policy.gating.e_values import log_e_value, part_of_hits
from flows.policy.gating.evidence import CellCount, Count, Evidence
from flows.policy.gating.limits import Limits
from flows.policy.gating.measures import Panel
from flows.policy.gating.questions import question_of

BLAME = log(5)
"""A log e-value on "the harm is one cell's alone" that spares the rest."""
TIMES_ITS_PART = (4, 16, 64)


def part_of_requests(cell: CellCount, evidence: Evidence) -> float:
    """Of the candidate's: those that users broke off are in its cells' numbers, and not in its own."""
    return cell.requests / max(evidence.requests, sum(one.requests for one in evidence.cells.values()))


def cells_to_blame(evidence: Evidence, panel: Panel, limits: Limits, harm: Sequence[str]) -> tuple[str, ...]:
    """`harm`: the gates that say harm of the whole; of none, a cell is to blame whose own hits are harm."""
    if len(evidence.cells) <= 1:
        return ()
    blamed: list[str] = []
    judged = _Cells(evidence, panel, limits)
    for name, cell in evidence.cells.items():
        bad: Iterable[str] = harm or [gate for gate in cell.hits if judged.is_harm_of(cell, gate)]
        if bad and all(judged.is_to_blame(cell, gate) for gate in bad):
            blamed.append(name)
    return tuple(blamed)


class _Cells:
    def __init__(self, evidence: Evidence, panel: Panel, limits: Limits) -> None:
        self._evidence, self._panel, self._limits = evidence, panel, limits
        self._parts = parts_of_alpha(panel.gates, is_alone=evidence.weight == 1)

    def is_to_blame(self, cell: CellCount, gate: str) -> bool:
        """Whether this cell has far more of the hits than of the requests, and the rest is no harm without it."""
        if (event := self._panel.event(gate)) is not None:
            gate = event.name  # what failed lately has failed
        count, hits = self._evidence.count(gate), cell.hits.get(gate, 0)
        part = part_of_requests(cell, self._evidence)
        alternatives = tuple(part_of_hits(part, times) for times in TIMES_ITS_PART)
        if not hits or log_e_value(hits, count.hits, (part, alternatives)) < BLAME:
            return False
        rest = Count(count.hits - hits, count.all_hits - hits, max(0, round(count.of * (1 - part))))
        return not self._is_harm(gate, rest, 1 - part, self._threshold(gate))

    def is_harm_of(self, cell: CellCount, gate: str) -> bool:
        count = self._evidence.count(gate)
        hits = cell.hits[gate]
        own = Count(hits, hits + count.all_hits - count.hits, max(hits, cell.requests))
        beyond = self._threshold(CELLS) + log(len(self._evidence.cells))
        return self._is_harm(gate, own, part_of_requests(cell, self._evidence), beyond)

    def _threshold(self, gate: str) -> float:
        return log_threshold(self._limits, self._evidence.alpha, self._parts.get(gate, self._parts[CELLS]))

    def _is_harm(self, gate: str, count: Count, part: float, threshold: float) -> bool:
        """Whether a part of the candidate is beyond bad luck by itself, beside stable where there is one."""
        weight = self._evidence.weight * part
        # In brackets: at 100 % it is 1 and no float beside it, or a part would be compared with a stable that is none.
        beside = weight / (weight + (1 - self._evidence.weight))
        question = question_of(self._panel, gate, beside, self._limits)
        numbers = (np.array(float(number)) for number in (count.hits, count.all_hits, count.of))
        harm, beyond = question.e_values(*numbers)
        least = log_threshold_of_margins(threshold, self._evidence.alpha)
        return bool(harm >= threshold and beyond >= least)
