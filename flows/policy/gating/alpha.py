"""How is the error budget spent? Over stages, over gates, over the two questions that each of them answers."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import log

from flows.policy.gating.limits import Limits
from flows.policy.gating.measures import Gate

FIRST_STAGE = 0.85
"""Of alpha: most harm shows at once, and e-processes go on."""
ALPHA_OF_MARGINS = 0.1
"""Of the releases that are worse by no more than the margins excuse, so many may each gate roll back."""
OF_CELLS = {False: 0.02, True: 0.05}
"""What one cell's harm has of a stage's alpha, beside stable and alone, as `Gate.beside` and `Gate.alone`."""
CELLS = "cells"


def alpha_of_stage(number: int, of: int) -> float:
    """Of a release's alpha: most for the first stage; the others have the rest in equal parts."""
    if of == 1:
        return 1.0
    return FIRST_STAGE if number == 0 else (1 - FIRST_STAGE) / (of - 1)


@lru_cache(maxsize=256)
def parts_of_alpha(gates: Sequence[Gate], *, is_alone: bool) -> Mapping[str, float]:
    """Of a stage's alpha, by gate; they add up to 1. Gates of one family have the part of one, in equal parts."""
    families = [gate.family for gate in gates]
    wanted = {gate.name: (gate.alone if is_alone else gate.beside) / families.count(gate.family) for gate in gates}
    wanted[CELLS] = OF_CELLS[is_alone]
    whole = sum(wanted.values())
    return {name: part / whole for name, part in wanted.items() if part}


def log_threshold(limits: Limits, alpha: float, part: float) -> float:
    """What a log e-value has to reach before it says harm: its part of the stage's alpha of the release's."""
    return -log(limits.false_alarm_percent / 100 * alpha * part)


def log_threshold_of_margins(threshold: float, alpha: float) -> float:
    """The same of the e-value against "no worse than the margins excuse", beside one on harm with this threshold."""
    return min(threshold, -log(ALPHA_OF_MARGINS * alpha))
