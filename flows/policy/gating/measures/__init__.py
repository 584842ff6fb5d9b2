"""What is measured of a candidate: the registry that judge, ruling, board and replay go through.

A measure more is a file beside these and a line in `MEASURES`; CONTRIBUTING.md shows one.
"""

from collections.abc import Sequence
from functools import lru_cache

from blocks.ports.fleet import ModelKind
from flows.policy.gating.limits import Limits
from flows.policy.gating.measures.base import EventMeasure, Gate, LatencyMeasure, Measure
from flows.policy.gating.measures.departures import LEFT, LEFT_MIDWAY
from flows.policy.gating.measures.failures import FAILED
from flows.policy.gating.measures.refusals import REFUSED
from flows.policy.gating.measures.total_time import TOTAL_TIME
from flows.policy.gating.measures.tpot import TPOT
from flows.policy.gating.measures.ttft import TTFT

__all__ = [
    "FAILED",
    "MEASURES",
    "REFUSED",
    "TOTAL_TIME",
    "TPOT",
    "TTFT",
    "EventMeasure",
    "Gate",
    "LatencyMeasure",
    "Measure",
    "Panel",
    "panel_of",
]

MEASURES: tuple[Measure, ...] = (
    FAILED,
    REFUSED,
    LEFT,
    LEFT_MIDWAY,
    TTFT,
    TPOT,
    TOTAL_TIME,
)
"""In the order in which people read of them."""


class Panel:
    """The measures that one release is judged by: those of its kind of model, as far as its limits want them."""

    def __init__(self, kind: ModelKind, limits: Limits, measures: Sequence[Measure]) -> None:
        some = [one for one in measures if kind in one.kinds]
        self.events = tuple(one for one in some if isinstance(one, EventMeasure))
        self.shown_latencies = tuple(one for one in some if isinstance(one, LatencyMeasure))
        """With those that are only looked at."""
        self.latencies = tuple(one for one in self.shown_latencies if one.is_judged(limits))
        self.gates: tuple[Gate, ...] = tuple(gate for one in (*self.events, *self.latencies) for gate in one.gates)
        self.measure_of: dict[str, Measure] = {
            gate.name: one for one in (*self.events, *self.shown_latencies) for gate in one.gates
        }

        self.unpromised = frozenset(one.name for one in self.events if one.limit(limits) is None)
        """Events of which no rate is promised; alone they are judged by what earlier stages have shown."""

    def event(self, gate: str) -> EventMeasure | None:
        one = self.measure_of.get(gate)
        return one if isinstance(one, EventMeasure) else None

    def latency(self, gate: str) -> LatencyMeasure | None:
        one = self.measure_of.get(gate)
        return one if isinstance(one, LatencyMeasure) else None


@lru_cache(maxsize=64)
def panel_of(kind: ModelKind, limits: Limits, measures: tuple[Measure, ...] = MEASURES) -> Panel:
    """Made once for each release."""
    return Panel(kind, limits, measures)
