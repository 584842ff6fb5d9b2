"""A forecast as stock: it reorders, and never vetoes."""

import pytest

from blocks.ports.market import Offer
from blocks.stock.source import Forecast, Spot
from flows.policy.placement.attempts import Attempts, chance
from flows.policy.placement.plan import SURE

OFFER = Offer("gcp/us-central1", "L4", 1, 24, 16, use_spot=True, dollars_per_hour=0.3, instance="g2-standard-4")


def test_the_likelier_the_better() -> None:
    """More likely is never less wanted; an even chance changes nothing, and the two ends do not part with certainty."""
    chances = [chance(Attempts(), OFFER, now=5, stock=Forecast(tenths / 10, "said").stock(5)) for tenths in range(11)]
    assert chances == sorted(chances)
    assert chances[5] == chance(Attempts(), OFFER, now=5)
    assert chances[0] < chances[5] / 2
    assert chances[10] > 0.9


@pytest.mark.parametrize("likelihood", [0.0, 1.0])
def test_no_forecast_is_a_count(likelihood: float) -> None:
    """So none is ever tried after all others for it."""
    stock = Forecast(likelihood, "said").stock(7)
    assert 0 < stock.confidence < SURE
    assert (stock.at, stock.words, stock.replicas, stock.load) == (7, "said", None, None)


@pytest.mark.parametrize(
    ("cell", "spot"),
    [
        ("gcp/us-central1", Spot("g2-standard-4", "us-central1")),
        ("gcp/us-central1/us-central1-a", Spot("g2-standard-4", "us-central1", "us-central1-a")),
    ],
)
def test_an_offers_place_is_its_cells(cell: str, spot: Spot) -> None:
    """Region, and zone where there is one."""
    assert Spot.of(Offer(cell, "L4", 1, 24, 16, use_spot=True, dollars_per_hour=1, instance="g2-standard-4")) == spot
