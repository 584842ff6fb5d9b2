"""How many requests a second the service has, before a stage says how long it will take."""

from dataclasses import replace

import pytest

from blocks.ports.gateway import Outcome, Reading
from flows.tasks.gateway import measure_rate
from tests.fakes.gateway import FakeGateway
from tests.policy.gating.test_judge import OUTCOME


class BusyGateway(FakeGateway):
    """Requests end as soon as somebody begins to look."""

    def __init__(self, *outcomes: Outcome) -> None:
        super().__init__("chat")
        self._outcomes = outcomes

    def requests(self, service: str, after: str | None) -> Reading:
        reading = super().requests(service, after)
        if after is None:
            self.append(service, *self._outcomes)
        return reading


@pytest.mark.parametrize(
    ("outcome", "counts"),
    [(OUTCOME, True), (replace(OUTCOME, kind="other"), False), (replace(OUTCOME, is_repeat=True), False)],
)
def test_only_what_asks_a_model_is_a_request_of_the_service(outcome: Outcome, counts: bool) -> None:  # noqa: FBT001 - a row
    """Ten lists of models a second are nothing to judge a candidate by, and what is sent again was counted."""
    rate = measure_rate.fn(BusyGateway(*[outcome] * 7), "chat", 0)
    assert rate is not None
    assert (rate > 0) == counts
