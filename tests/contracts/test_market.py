"""What every market keeps to; the fake and SkyPilot's catalogue pass the same tests."""

from collections.abc import Iterator

import pytest

from blocks.errors import Refused
from blocks.ports.market import ON_PROCESSORS, Market, Offer
from blocks.skypilot.market import SkyPilotMarket
from tests.fakes.market import FakeMarket
from tests.sky_catalog import MarketAtHome, process_at, seed

LISTED = [
    Offer("aws/us-east-1", "L4", 1, 24, 16, use_spot=False, dollars_per_hour=0.8048, instance="g6.xlarge"),
    Offer("aws/us-east-1", "L4", 1, 24, 16, use_spot=True, dollars_per_hour=0.36, instance="g6.xlarge"),
    Offer("aws/us-west-2", "L4", 1, 24, 16, use_spot=False, dollars_per_hour=0.8048, instance="g6.xlarge"),
    Offer("aws/us-east-1", ON_PROCESSORS, 0, 0, 16, use_spot=False, dollars_per_hour=0.192, instance="m6i.xlarge"),
    Offer("gcp/us-central1", "L4", 1, 24, 16, use_spot=False, dollars_per_hour=0.70683, instance="g2-standard-4"),
    Offer("gcp/us-central1", "A100", 1, 40, 85, use_spot=False, dollars_per_hour=3.67339, instance="a2-highgpu-1g"),
]


@pytest.fixture(name="seeded", scope="module")
def market_over_a_seeded_catalogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    home = tmp_path_factory.mktemp("home")
    seed(home)
    with process_at(home) as process:
        yield MarketAtHome(process, SkyPilotMarket())


@pytest.fixture(name="market", params=["fake", pytest.param("skypilot", marks=pytest.mark.server)])
def each_market(request: pytest.FixtureRequest) -> Market:
    return FakeMarket([*LISTED]) if request.param == "fake" else request.getfixturevalue("seeded")


@pytest.mark.parametrize("cell", ["aws", "aws/us-east-1", "gcp"])
def test_a_cell_may_be_named_in_part(market: Market, cell: str) -> None:
    """Everything within that part is offered, and nothing else."""
    cells = {offer.cell for offer in market.offers([cell], [])}
    assert cells
    assert all(found == cell or found.startswith(f"{cell}/") for found in cells)


def test_several_cells_are_offered_together(market: Market) -> None:
    """Each cell that is named brings its own offers."""
    together = market.offers(["aws/us-west-2", "gcp"], ["L4"])
    assert {offer.domain.split("/")[0] for offer in together} == {"aws", "gcp"}
    assert {*together} == {*market.offers(["aws/us-west-2"], ["L4"]), *market.offers(["gcp"], ["L4"])}


def test_a_cell_named_twice_is_offered_once(market: Market) -> None:
    """No offer appears twice, however often its cell is named."""
    offers = market.offers(["aws", "aws/us-east-1"], ["L4"])
    assert len(offers) == len({*offers})
    assert {*offers} == {*market.offers(["aws"], ["L4"])}


@pytest.mark.parametrize("name", ["L4", "l4"])
def test_accelerators_are_found_in_any_case(market: Market, name: str) -> None:
    """They are offered under the name that everybody else uses."""
    assert {offer.accelerator for offer in market.offers(["aws", "gcp"], [name])} == {"L4"}


def test_processors_are_asked_for_by_name(market: Market) -> None:
    """Such an offer has no accelerators, no memory of them, and a machine to name."""
    offers = market.offers(["aws"], [ON_PROCESSORS])
    assert offers
    assert {(offer.accelerator, offer.accelerators, offer.accelerator_gib) for offer in offers} == {
        (ON_PROCESSORS, 0, 0)
    }
    assert all(offer.instance and offer.host_gib for offer in offers)


def test_no_names_allow_every_accelerator(market: Market) -> None:
    """An empty list leaves no accelerator out; machines without one are asked for by name."""
    kinds = {offer.accelerator for offer in market.offers(["aws", "gcp"], [])}
    assert kinds >= {"L4", "A100"}
    assert ON_PROCESSORS not in kinds


def test_a_known_offer_has_its_public_price(market: Market) -> None:
    """Machine, memory and price are those of the catalogue; GCP's is that of the host and the accelerator together."""
    for offer in (LISTED[0], LISTED[4], LISTED[5]):
        assert offer in market.offers([offer.cell], [offer.accelerator])


def test_an_accelerator_that_nobody_has_is_refused(market: Market) -> None:
    """The refusal names it and says which there are."""
    with pytest.raises(Refused, match=r"A1000.*(?i:a100)"):
        market.offers(["aws", "gcp"], ["L4", "A1000"])


@pytest.mark.parametrize("cell", ["awz", "aws/us-central1", "aws/us-east-1/nowhere"])
def test_a_cell_that_is_nobodys_is_refused(market: Market, cell: str) -> None:
    """The refusal names the part that is wrong and what there is."""
    with pytest.raises(Refused, match=cell.rsplit("/", maxsplit=1)[-1]):
        market.offers(["gcp", cell], ["L4"])


def test_stock_is_answered_for_each_offer(market: Market) -> None:
    """One answer an offer, also where one is asked twice, each with its age, its confidence and words."""
    offers = market.offers(["aws", "gcp"], ["L4"])
    answers = market.stock([*offers, offers[0]])
    assert len(answers) == len(offers) + 1
    assert all(0 <= answer.confidence <= 1 and answer.words and answer.at >= 0 for answer in answers)
    assert answers[0].answer == answers[-1].answer


def test_nothing_asked_is_nothing_answered(market: Market) -> None:
    """No offers have no stock."""
    assert market.stock([]) == ()
