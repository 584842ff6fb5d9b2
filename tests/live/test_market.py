"""What two real Slurm clusters, asked through the real SkyPilot, say that they have."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from blocks.errors import Refused
from blocks.ports.market import ON_PROCESSORS, Offer
from blocks.skypilot.infra import Rate
from blocks.skypilot.market import SkyPilotMarket

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]


@pytest.fixture(name="market")
def market_of_the_lab(slurm_lab: Any) -> SkyPilotMarket:
    """The lab's environment has to be this process's before SkyPilot is imported."""
    del slurm_lab
    return SkyPilotMarket()


@pytest.fixture(name="full_alpha")
def alpha_without_a_free_accelerator(slurm_lab: Any) -> Iterator[None]:
    job = slurm_lab.fill("alpha")
    yield
    slurm_lab.cancel("alpha", job)


@pytest.fixture(name="dead_alpha")
def alpha_without_a_controller(slurm_lab: Any) -> Iterator[None]:
    slurm_lab.stop_controller("alpha")
    yield
    slurm_lab.start_controller("alpha")


def the_one(offers: tuple[Offer, ...], cell: str, accelerators: int) -> Offer:
    (offer,) = [offer for offer in offers if offer.cell == cell and offer.accelerators == accelerators]
    return offer


def test_both_clusters_offer_what_they_hold(market: SkyPilotMarket) -> None:
    """By powers of two, with the memory that the catalogue knows and the prices of SkyPilot's own settings."""
    offers = market.offers(["slurm"], ["L4", "A100"])
    found = {(offer.cell, offer.accelerator, offer.accelerators): offer.dollars_per_hour for offer in offers}
    alpha = {("slurm/alpha", "L4", count): 0.7 * count for count in (1, 2, 4)}
    beta = {("slurm/beta", "A100", count): 2.5 * count for count in (1, 2, 4, 8)}
    assert found == pytest.approx(alpha | beta)
    assert {(offer.accelerator, offer.accelerator_gib) for offer in offers} == {("L4", 24), ("A100", 40)}


def test_processors_are_priced_by_the_node(market: SkyPilotMarket) -> None:
    """16 processors and 16,000 MiB, at the rates of SkyPilot's own settings."""
    (offer,) = market.offers(["slurm/alpha"], [ON_PROCESSORS])
    assert (offer.host_gib, offer.dollars_per_hour) == (16, pytest.approx(16 * 0.01 + 15.62 * 0.001, abs=1e-4))


def test_the_users_rate_goes_first(market: SkyPilotMarket) -> None:
    """A block's own card is believed before SkyPilot's settings."""
    mine = replace(market, rates=(Rate(cell="slurm/alpha", accelerator="L4", dollars_per_accelerator_hour=0.1),))
    assert the_one(mine.offers(["slurm/alpha"], ["L4"]), "slurm/alpha", 4).dollars_per_hour == pytest.approx(0.4)


def test_idle_clusters_are_free(market: SkyPilotMarket) -> None:
    """As many replicas as fit, and no load."""
    offers = market.offers(["slurm"], ["L4", "A100"])
    asked = [the_one(offers, "slurm/alpha", 1), the_one(offers, "slurm/alpha", 4), the_one(offers, "slurm/beta", 2)]
    found = market.stock(asked)
    assert [(stock.answer, stock.replicas, stock.load) for stock in found] == [
        ("free", count, 0) for count in (4, 1, 4)
    ]


@pytest.mark.usefixtures("full_alpha")
def test_a_full_cluster_has_none(market: SkyPilotMarket) -> None:
    """It is still offered, and the words count what is free; the other cluster is none the worse."""
    offers = market.offers(["slurm"], ["L4", "A100"])
    alpha, beta = market.stock([the_one(offers, "slurm/alpha", 1), the_one(offers, "slurm/beta", 8)])
    assert (alpha.answer, alpha.replicas, alpha.load) == ("none", 0, 1)
    assert "0 of 4 L4 are free" in alpha.words
    assert beta.answer == "free"


@pytest.mark.usefixtures("dead_alpha")
def test_a_cluster_whose_controller_is_down_is_shown_and_never_taken(market: SkyPilotMarket) -> None:
    """Its offer has no price, its stock is unknown and says why; the other cluster is offered as ever."""
    offers = market.offers(["slurm"], ["L4", "A100"])
    (silent,) = [offer for offer in offers if offer.cell == "slurm/alpha" and offer.accelerator == "L4"]
    alpha, beta = market.stock([silent, the_one(offers, "slurm/beta", 1)])
    assert silent.dollars_per_hour is None
    assert (alpha.answer, beta.answer) == ("unknown", "free")
    assert "slurm/alpha does not answer" in alpha.words


def test_what_is_not_there_is_refused(market: SkyPilotMarket) -> None:
    """A cluster that nobody has set up, a partition that a cluster has not got, an accelerator that nobody has."""
    with pytest.raises(Refused, match=r"gamma.*there are: alpha, beta"):
        market.offers(["slurm/gamma"], [])
    with pytest.raises(Refused, match="tiny is no partition"):
        market.offers(["slurm/alpha/tiny"], [])
    with pytest.raises(Refused, match=r"A1000; did you mean A100"):
        market.offers(["slurm"], ["A1000"])
