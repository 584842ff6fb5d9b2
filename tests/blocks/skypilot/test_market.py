"""What only SkyPilot's market does: catalogue rows become offers, nodes become stock, sources fail one by one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

from blocks.errors import NoCapacity, Refused, SkyferryError, Unavailable
from blocks.ports.market import ON_PROCESSORS, Offer, Stock
from blocks.skypilot.infra import Kind, Node, Place, Rate, kubernetes_nodes, rates_of, slurm_nodes, translation
from blocks.skypilot.market import RateCard, SkyPilotMarket, node_offers, node_stock
from blocks.stock.source import Answers, Forecast, Score
from tests.sky_catalog import MarketAtHome, process_at, seed

ALPHA = Place("slurm", "alpha")
L4 = Node(("main",), "L4", accelerators=4, free_accelerators=3, processors=8, free_processors=8, gib=31.9)
PLAIN = Node(("main", "big"), None, accelerators=0, free_accelerators=0, processors=16, free_processors=4, gib=64.1)
MEMORY = {"l4": 24.0}
CARD = RateCard(
    [
        Rate(cell="slurm", accelerator="L4", dollars_per_accelerator_hour=0.9),
        Rate(cell="slurm/alpha", accelerator="l4", dollars_per_accelerator_hour=0.5),
        Rate(cell="slurm/alpha", dollars_per_cpu_hour=0.01, dollars_per_gib_hour=0.002),
    ],
    lambda: MEMORY,
)


@dataclass
class FakeInfra:
    """Clusters and clouds as a test puts them there."""

    counted: Mapping[tuple[str, str], Sequence[Node] | SkyferryError] = field(default_factory=dict)
    refusals: Mapping[str, str] = field(default_factory=dict)
    open: tuple[Place, ...] = ()
    card: tuple[Rate, ...] = ()

    def enabled(self) -> tuple[Place, ...]:
        return (*self.open, *(Place(kind, name) for kind, name in self.counted))

    def refusal(self, cloud: str) -> str | None:
        return self.refusals.get(cloud)

    def clusters(self, kind: Kind) -> tuple[str, ...]:
        return tuple(name for having, name in self.counted if having == kind)

    def nodes(self, kind: Kind, name: str) -> tuple[Node, ...]:
        nodes = self.counted[kind, name]
        if isinstance(nodes, SkyferryError):
            raise nodes
        return tuple(nodes)

    def rates(self, place: Place) -> tuple[Rate, ...]:
        return tuple(rate for rate in self.card if rate.cell == str(place))


@dataclass
class FakeSource:
    """What a test lets a cloud say of offers on spot, or its error about all of them."""

    cloud: str
    told: Answers | SkyferryError
    asked: list[tuple[Offer, ...]] = field(default_factory=list)

    def knows(self, offer: Offer) -> bool:
        return offer.use_spot

    def ask(self, offers: Sequence[Offer]) -> Answers:
        self.asked.append(tuple(offers))
        if isinstance(self.told, SkyferryError):
            raise self.told
        return self.told


def offers_of(nodes: Sequence[Node], *accelerators: str, card: RateCard = CARD) -> list[Offer]:
    return [*node_offers(ALPHA, nodes, card, accelerators)]


# --- Names of cells -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "place"),
    [
        ("AWS", Place("aws")),
        ("aws/us-east-1/us-east-1a", Place("aws", "us-east-1", "us-east-1a")),
        ("kubernetes/prod", Place("k8s", "prod")),
        ("k8s/arn:aws:eks:us-east-1:1:cluster/prod", Place("k8s", "arn:aws:eks:us-east-1:1:cluster/prod")),
        ("slurm/alpha/main", Place("slurm", "alpha", "main")),
    ],
)
def test_cells_are_named_as_skypilot_names_infra(cell: str, place: Place) -> None:
    """Clouds in any case, contexts with their slashes, partitions as zones."""
    assert Place.parse(cell) == place
    assert Place.parse(str(place)) == place


@pytest.mark.parametrize("cell", ["", "/", "aws/", "aws//a", "aws/a/b/c"])
def test_what_is_no_cell_is_refused(cell: str) -> None:
    """Empty parts and too many parts are named before anybody is asked."""
    with pytest.raises(Refused, match="is no cell"):
        Place.parse(cell)


# --- Clusters: offers and rates -------------------------------------------------------------------------------------


def test_a_node_offers_its_accelerators_by_powers_of_two() -> None:
    """And all of them; the price is the rate of the longest name that fits, times their number."""
    six = replace(L4, accelerators=6)
    assert [(offer.accelerators, offer.dollars_per_hour) for offer in offers_of([six], "L4")] == [
        (1, 0.5),
        (2, 1.0),
        (4, 2.0),
        (6, 3.0),
    ]
    assert {(offer.cell, offer.accelerator_gib, offer.host_gib) for offer in offers_of([six], "L4")} == {
        ("slurm/alpha", 24.0, 31.9)
    }


def test_nodes_that_differ_are_offered_as_the_least_of_them() -> None:
    """A replica gets at least the host memory that was promised, wherever it lands."""
    hosts = {
        offer.accelerators: offer.host_gib for offer in offers_of([L4, replace(L4, accelerators=8, gib=120)], "L4")
    }
    assert hosts == {1: 31.9, 2: 31.9, 4: 31.9, 8: 120}
    assert offers_of([L4, replace(L4, gib=None)], "L4")[0].host_gib is None


def test_processors_are_offered_by_whole_nodes() -> None:
    """Whatever a node holds beside them; the price is that of all its processors and memory."""
    found = offers_of([L4, PLAIN], ON_PROCESSORS)
    assert [(offer.accelerators, offer.host_gib, offer.dollars_per_hour) for offer in found] == [
        (0, 32, 0.1438),
        (0, 64, 0.2882),
    ]


def test_nothing_is_free_by_silence() -> None:
    """Without a rate there is no price, and without a known memory nothing fits; both are said with the stock."""
    (offer, *_) = offers_of([replace(L4, accelerator="XL9")], "XL9", card=RateCard((), dict))
    assert (offer.dollars_per_hour, offer.accelerator_gib) == (None, 0)
    words = node_stock(offer, [replace(L4, accelerator="XL9")], at=1).words
    assert "no price and no known memory: add a rate" in words
    (plain,) = offers_of([PLAIN], ON_PROCESSORS, card=RateCard((), dict))
    assert plain.dollars_per_hour is None


def test_a_rate_of_nothing_is_a_rate() -> None:
    """Whoever says that a cluster costs nothing is believed."""
    card = RateCard([Rate(cell="slurm", accelerator="L4", dollars_per_accelerator_hour=0)], lambda: MEMORY)
    assert offers_of([L4], "L4", card=card)[0].dollars_per_hour == 0


def test_the_rate_card_may_say_how_much_memory_an_accelerator_has() -> None:
    """It goes before the catalogue, which then is not even asked."""
    card = RateCard([Rate(cell="slurm", accelerator="L4", accelerator_gib=23)], lambda: pytest.fail("asked"))
    assert offers_of([L4], "L4", card=card)[0].accelerator_gib == 23


def test_half_a_rate_for_processors_needs_no_other_half() -> None:
    """A card that prices processors alone counts memory as part of them, but never guesses an unknown amount."""
    card = RateCard([Rate(cell="slurm", dollars_per_gib_hour=0.01)], dict)
    assert card.dollars(ALPHA, replace(L4, gib=100), 0) == 1
    assert card.dollars(ALPHA, replace(L4, gib=None), 0) is None


def test_a_name_that_only_begins_alike_has_another_rate() -> None:
    """slurm/alpha's rate is not slurm/alpha2's."""
    assert CARD.dollars(Place("slurm", "alpha2"), L4, 1) == 0.9
    assert CARD.dollars(Place("k8s", "alpha"), L4, 1) is None


def test_skypilots_own_prices_are_rates_too() -> None:
    """What its settings do not name, it takes for free; here that has no rate."""
    rates = rates_of(ALPHA, {"cpu": 0.01, "memory": 0.001, "accelerators": {"L4": 0.7}})
    card = RateCard(rates, lambda: MEMORY)
    assert card.dollars(ALPHA, L4, 2) == 1.4
    assert card.dollars(ALPHA, L4, 0) == 0.1119
    assert card.dollars(ALPHA, replace(L4, accelerator="H100"), 1) is None
    assert rates_of(ALPHA, {}) == ()


# --- Clusters: stock ------------------------------------------------------------------------------------------------


def one(count: int) -> Offer:
    return Offer("slurm/alpha", "L4", count, 24, 31.9, use_spot=False, dollars_per_hour=0.5)


@pytest.mark.parametrize(("count", "answer", "replicas"), [(1, "free", 5), (2, "free", 2), (4, "none", 0)])
def test_replicas_have_to_fit_into_one_node_each(count: int, answer: str, replicas: int) -> None:
    """3 and 2 free accelerators are room for two replicas of 2, and for none of 4."""
    stock = node_stock(one(count), [L4, replace(L4, free_accelerators=2)], at=7)
    assert (stock.answer, stock.replicas, stock.at, stock.confidence) == (answer, replicas, 7, 1)
    assert stock.load == pytest.approx(3 / 8)
    assert "5 of 8 L4 are free" in stock.words


def test_accelerators_without_a_free_processor_are_not_to_be_had() -> None:
    """Whoever has all processors of a node leaves nothing to run a replica with."""
    assert node_stock(one(1), [replace(L4, free_processors=0)], at=7).answer == "none"
    assert node_stock(one(1), [replace(L4, free_processors=None)], at=7).answer == "free"


def test_what_may_not_be_counted_is_unknown() -> None:
    """A cluster that keeps its free accelerators to itself has no load and no replicas."""
    stock = node_stock(one(1), [L4, replace(L4, free_accelerators=None)], at=7)
    assert (stock.answer, stock.confidence, stock.replicas, stock.load) == ("unknown", 0, None, None)


def test_a_node_with_work_has_no_room_on_its_processors() -> None:
    """A replica on processors is promised a whole node."""
    plain = replace(one(1), accelerator=ON_PROCESSORS, accelerators=0, host_gib=64)
    assert node_stock(plain, [PLAIN], at=7).answer == "none"
    assert node_stock(plain, [replace(PLAIN, free_processors=16)], at=7).replicas == 1
    assert node_stock(plain, [replace(PLAIN, free_processors=None)], at=7).answer == "unknown"


def test_slurms_nodes_are_read_as_skypilot_lists_them() -> None:
    """The star of the default partition is no part of its name, and no memory set is no memory known."""
    listed = {
        "node_name": "n1",
        "partition": "main*,big",
        "gpu_type": "L4",
        "total_gpus": 4,
        "free_gpus": 3,
        "vcpu_count": 8,
        "free_vcpus": 8,
        "memory_gb": 31.9,
    }
    assert slurm_nodes([listed]) == (replace(L4, partitions=("main", "big")),)
    assert slurm_nodes([listed | {"memory_gb": 0}])[0].gib is None


def test_kubernetes_nodes_are_read_as_skypilot_lists_them() -> None:
    """Minus one stands for what may not be counted; a cordoned node has no free processors."""

    def listed(free: int, **more: Any) -> Any:
        node = {
            "accelerator_type": "L4",
            "total": {"accelerator_count": 4},
            "free": {"accelerators_available": free},
            "cpu_count": 8.0,
            "cpu_free": 8.0,
            "memory_gb": 31.9,
            "is_ready": True,
            "is_cordoned": False,
        }
        return SimpleNamespace(node_info_dict={"n1": SimpleNamespace(**node | more)})

    assert kubernetes_nodes(listed(3)) == (replace(L4, partitions=()),)
    assert kubernetes_nodes(listed(-1))[0].free_accelerators is None
    assert kubernetes_nodes(listed(3, is_cordoned=True))[0].free_processors == 0
    assert kubernetes_nodes(listed(0, total={}))[0].accelerator is None


class CommandFailed(Exception):
    """As SkyPilot's CommandError tells of a command on a login node."""

    def __init__(self, returncode: int, detailed_reason: str) -> None:
        super().__init__(
            f"Command sinfo failed with return code {returncode}.\n\x1b[31mFailed.\x1b[0m\n{detailed_reason}"
        )
        self.returncode, self.detailed_reason = returncode, detailed_reason


@pytest.mark.parametrize("said", ["", "\n", "alpha@login: Permission denied (publickey)."])
def test_a_login_that_refuses_the_key_is_a_refusal(said: str) -> None:
    """SkyPilot loses the words of ssh as a rule then, and only then."""
    refused = translation("slurm", "alpha", CommandFailed(255, said))
    assert isinstance(refused, Refused)
    assert "slurm/alpha refuses the login" in str(refused)
    assert said.strip() in str(refused)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (255, "ssh: connect to host 127.0.0.1 port 1: Connection refused"),
        (1, "slurm_load_node: Unable to contact slurm controller (connect failure)"),
        (1, ""),
    ],
)
def test_a_cluster_that_is_down_may_come_back(code: int, said: str) -> None:
    """What failed is told once, in one line and without colours."""
    down = translation("slurm", "alpha", CommandFailed(code, said))
    assert isinstance(down, Unavailable)
    assert str(down).count(said or "Failed") == 1
    assert "\x1b" not in str(down)
    assert "\n" not in str(down)


# --- The market as a whole ------------------------------------------------------------------------------------------


@pytest.fixture(name="home", scope="module")
def process_with_a_seeded_catalogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MarketAtHome]:
    home = tmp_path_factory.mktemp("home")
    seed(home)
    with process_at(home) as process:
        yield MarketAtHome(process, SkyPilotMarket())


def at_home(home: MarketAtHome, infra: FakeInfra, **more: Any) -> MarketAtHome:
    return replace(home, market=SkyPilotMarket(infra=infra, sources=(), **more))


BOTH = {("slurm", "alpha"): (L4,), ("slurm", "beta"): (replace(L4, accelerator="A100"),)}


@pytest.mark.server
def test_no_cells_are_what_skypilot_has_enabled(home: MarketAtHome) -> None:
    """Clouds that let us in and clusters that are set up, and no other cloud of the catalogue."""
    market = at_home(home, FakeInfra(BOTH, open=(Place("gcp"),)))
    assert {offer.domain for offer in market.offers([], ["A100"])} == {"gcp/us-central1", "slurm/beta"}
    with pytest.raises(Refused, match="sky check"):
        at_home(home, FakeInfra()).offers([], [])


@pytest.mark.server
def test_a_kind_of_cluster_stands_for_all_of_them(home: MarketAtHome) -> None:
    """`slurm` is every Slurm cluster; one that is not set up is refused by name, as is a partition."""
    market = at_home(home, FakeInfra(BOTH))
    assert {offer.cell for offer in market.offers(["slurm"], ["L4", "A100"])} == {"slurm/alpha", "slurm/beta"}
    assert {offer.cell for offer in market.offers(["slurm/alpha/main"], ["L4"])} == {"slurm/alpha/main"}
    with pytest.raises(Refused, match=r"gamma.*there are: alpha, beta"):
        market.offers(["slurm/gamma"], [])
    with pytest.raises(Refused, match="small is no partition"):
        market.offers(["slurm/alpha/small"], [])
    with pytest.raises(Refused, match="no cluster of k8s"):
        market.offers(["k8s"], [])


@pytest.mark.server
def test_the_users_rates_go_before_skypilots(home: MarketAtHome) -> None:
    """Both count, and the user's own is believed where they disagree."""
    settings = rates_of(ALPHA, {"accelerators": {"L4": 0.7, "A100": 2.5}})
    infra = FakeInfra({("slurm", "alpha"): (L4, replace(L4, accelerator="A100"))}, card=settings)
    mine = Rate(cell="slurm/alpha", accelerator="L4", dollars_per_accelerator_hour=0.4)
    offers = at_home(home, infra, rates=(mine,)).offers(["slurm"], ["L4", "A100"])
    assert {(offer.accelerator, offer.dollars_per_hour) for offer in offers if offer.accelerators == 1} == {
        ("L4", 0.4),
        ("A100", 2.5),
    }


@pytest.mark.server
def test_a_cluster_that_does_not_answer_is_shown_with_its_reason(home: MarketAtHome) -> None:
    """It stops nobody from being offered the others, and can never be taken: it has no price."""
    broken = {("slurm", "alpha"): Refused("slurm/alpha refuses the login"), ("slurm", "beta"): (L4,)}
    market = at_home(home, FakeInfra(broken))
    offers = market.offers(["slurm"], ["L4"])
    (silent,) = [offer for offer in offers if offer.cell == "slurm/alpha"]
    assert (silent.accelerator, silent.dollars_per_hour, silent.accelerator_gib) == ("L4", None, 0)
    (beta, *_) = [offer for offer in offers if offer.cell == "slurm/beta"]
    refused, free = market.stock([silent, beta])
    assert (refused.answer, refused.words, free.answer) == ("refused", "slurm/alpha refuses the login", "free")
    down = at_home(home, FakeInfra({("slurm", "alpha"): Unavailable("slurm/alpha does not answer")}))
    assert [stock.answer for stock in down.stock(down.offers(["slurm"], []))] == ["unknown"]


@pytest.mark.server
def test_an_accelerator_that_only_a_cluster_has_is_somebodys(home: MarketAtHome) -> None:
    """What a cluster calls its own is offered, though no cloud has it."""
    market = at_home(home, FakeInfra({("slurm", "alpha"): (replace(L4, accelerator="XL9"),)}))
    assert {offer.accelerator for offer in market.offers(["slurm"], ["xl9"])} == {"XL9"}
    assert market.offers(["slurm"], ["H100"]) == ()
    with pytest.raises(Refused, match="nobody has an accelerator called XL8; did you mean XL9"):
        market.offers(["slurm"], ["XL8"])


def spot(instance: str, region: str = "us-east-1", accelerators: int = 1) -> Offer:
    cell = f"aws/{region}"
    return Offer(cell, "L4", accelerators, 24, 16, use_spot=True, dollars_per_hour=0.3, instance=instance)


def test_a_score_reorders_and_never_vetoes() -> None:
    """The lowest is free too; what is on demand, another cloud's or not scored is unknown."""
    best, worst = spot("a"), spot("a", "us-west-2")
    source = FakeSource("aws", {best: Score(9, 10, "score 9 of 10"), worst: Score(1, 10, "score 1 of 10")})
    market = SkyPilotMarket(infra=FakeInfra(), sources=(source,), now=lambda: 5)
    offers = [best, worst, spot("a", "eu-west-1"), replace(best, use_spot=False), replace(best, cell="gcp/us-central1")]
    found = market.stock(offers)
    assert [(stock.answer, stock.confidence) for stock in found] == [
        ("free", 0.9),
        ("free", 0.1),
        *[("unknown", 0)] * 3,
    ]
    assert {stock.at for stock in found} == {5}
    assert found[0].words == "score 9 of 10"
    assert "gcp does not say" in found[-1].words
    assert source.asked == [tuple(offers[:3])]


def test_a_source_says_itself_what_it_knows_of() -> None:
    """One that counts machines on demand is asked about them, and its no is as sure as it says."""

    @dataclass(frozen=True)
    class Counted:
        def stock(self, at: float) -> Stock:
            return Stock("none", at, 1.0, "0 of 8 are left", replicas=0)

    @dataclass
    class CountsOnDemand(FakeSource):
        def knows(self, offer: Offer) -> bool:
            return not offer.use_spot

    on_demand = replace(spot("a"), cell="lambda/us-east-1", use_spot=False)
    source = CountsOnDemand("lambda", {on_demand: Counted()})
    market = SkyPilotMarket(infra=FakeInfra(), sources=(source,), now=lambda: 5)
    found = market.stock([on_demand, replace(on_demand, use_spot=True)])
    assert found[0] == Stock("none", 5, 1.0, "0 of 8 are left", replicas=0)
    assert (found[1].answer, source.asked) == ("unknown", [(on_demand,)])


def test_a_cloud_that_forecasts_is_asked_once_about_all_its_machines() -> None:
    """A forecast is stock; its errors are told one by one; what is on demand, or left out, is unknown."""
    cell = "gcp/us-central1"
    likely, unlikely, restricted, full, stale, left_out = (replace(spot(name), cell=cell) for name in "abcdef")
    told = {
        likely: Forecast(0.9, "obtainability 0.9 of 1"),
        unlikely: Forecast(0.1, "obtainability 0.1 of 1"),
        restricted: Refused("never to us"),
        full: NoCapacity(cell, "no quota"),
        stale: Unavailable("no fresh data"),
    }
    source = FakeSource("gcp", told)
    market = SkyPilotMarket(infra=FakeInfra(), sources=(source,), now=lambda: 5)
    on_demand = replace(likely, use_spot=False)
    found = market.stock([*told, left_out, on_demand])
    assert [(stock.answer, stock.confidence, stock.at) for stock in found] == [
        ("free", pytest.approx(0.64), 5),
        ("none", pytest.approx(0.64), 5),
        ("refused", 1, 5),
        ("none", 1, 5),
        ("unknown", 0, 5),
        ("unknown", 0, 5),
        ("unknown", 0, 5),
    ]
    assert found[0].words == "obtainability 0.9 of 1"
    assert "no quota" in found[3].words
    assert "gcp does not say" in found[5].words
    assert "gcp does not say" in found[6].words
    assert source.asked == [(*told, left_out)]


@pytest.mark.parametrize(
    ("error", "answer"), [(Refused("no keys"), "refused"), (Unavailable("not reached"), "unknown")]
)
def test_a_forecast_that_fails_as_a_whole_is_told_of_each_offer(error: SkyferryError, answer: str) -> None:
    """Whether we may not rent there or nobody answers, the words are the source's; on demand it was not asked."""
    market = SkyPilotMarket(infra=FakeInfra(), sources=(FakeSource("azure", error),))
    offers = [replace(spot(name), cell="azure/eastus") for name in "ab"]
    found = market.stock([*offers, replace(offers[0], use_spot=False)])
    assert [(stock.answer, stock.words) for stock in found[:2]] == [(answer, str(error))] * 2
    assert found[2].answer == "unknown"


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_a_cloud_without_credentials_is_refused_and_not_asked(cloud: str) -> None:
    """SkyPilot's reason is in the words, with the command that tells more."""
    source = FakeSource(cloud, {})
    infra = FakeInfra(refusals={cloud: "no key is set"})
    (stock,) = SkyPilotMarket(infra=infra, sources=(source,)).stock([replace(spot("a"), cell=f"{cloud}/us-central1")])
    assert (stock.answer, source.asked) == ("refused", [])
    assert "no key is set" in stock.words
    assert f"sky check {cloud}" in stock.words


def test_a_source_that_never_answers_holds_nobody_up() -> None:
    """It is unknown once its time is over; the others have been asked meanwhile."""
    never = Event()

    class Hangs(FakeInfra):
        def nodes(self, kind: Kind, name: str) -> tuple[Node, ...]:
            if name == "beta":
                never.wait()
            return super().nodes(kind, name)

    market = SkyPilotMarket(infra=Hangs(BOTH), sources=(), seconds=0.2)
    beta, alpha = market.stock([replace(one(1), cell="slurm/beta"), one(1)])
    never.set()
    assert (alpha.answer, beta.answer) == ("free", "unknown")
    assert "slurm/beta gave no answer within 0.2 s" in beta.words


def test_a_source_that_breaks_is_unknown() -> None:
    """An error that nobody foresaw is told, not raised."""

    class Breaks(FakeInfra):
        def refusal(self, cloud: str) -> str | None:
            raise KeyError(cloud)

    (stock,) = SkyPilotMarket(infra=Breaks(), sources=()).stock([spot("a")])
    assert (stock.answer, stock.words) == ("unknown", "aws could not be asked: KeyError: 'aws'")


# --- The catalogue --------------------------------------------------------------------------------------------------


def skypilots_own(cloud: str) -> set[tuple[str, float, str, float]]:
    """Machine, count, region and price on demand, as SkyPilot lists them."""
    from sky import catalog  # noqa: PLC0415 - in the process with the seeded home only

    listed = catalog.list_accelerators(clouds=cloud, all_regions=True).values()
    return {
        (str(info.instance_type), info.accelerator_count, info.region, round(info.price, 5))
        for infos in listed
        for info in infos
    }


@pytest.mark.server
@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_prices_are_those_that_skypilot_would_pay(home: MarketAtHome, cloud: str) -> None:
    """All that SkyPilot lists by whole accelerators is offered on demand, at its own price; GCP's with the host."""
    ours = {
        (str(offer.instance), offer.accelerators, offer.cell.split("/")[1], round(offer.dollars_per_hour or 0, 5))
        for offer in home.offers([cloud], [])
        if not offer.use_spot
    }
    theirs = {listed for listed in home.run(skypilots_own, cloud) if listed[1] % 1 == 0}
    assert theirs
    assert theirs <= ours


@pytest.mark.server
def test_memory_is_known_where_rows_do_not_say_it(home: MarketAtHome) -> None:
    """Azure's rows cannot be read, so the table of accelerators counts."""
    assert {offer.accelerator_gib for offer in home.offers(["azure"], ["A100-80GB"])} == {80}


@pytest.mark.server
def test_shares_of_accelerators_and_other_architectures_are_left_out(home: MarketAtHome) -> None:
    """No replica gets an eighth of an L4, and no engine runs on Arm; of machines alike the cheapest is offered."""
    machines = {offer.instance for offer in home.offers(["aws", "azure", "gcp"], [])}
    assert not machines & {"g6f.large", "Standard_NV6ads_A10_v5", "m6g.xlarge", "m7i.xlarge", None}
    assert not any(offer.accelerator.startswith("tpu") for offer in home.offers(["gcp"], []))


@pytest.mark.server
def test_without_an_account_a_region_is_as_dear_as_its_dearest_zone(home: MarketAtHome) -> None:
    """AWS's zones have no names yet, and no cap may be broken in whichever it will be."""
    offers = home.offers(["aws/us-east-1"], ["L4"])
    assert [offer.dollars_per_hour for offer in offers if offer.use_spot and offer.instance == "g6.xlarge"] == [0.36]
    with pytest.raises(Refused, match=r"us-east-1a.*name the region"):
        home.offers(["aws/us-east-1/us-east-1a"], ["L4"])


@pytest.mark.server
def test_with_an_account_zones_are_cells_where_their_prices_differ(tmp_path: Path) -> None:
    """Equal prices stay one cell, the region; regions that the account has not opened are not offered."""
    seed(tmp_path, with_zone_names=True)
    with process_at(tmp_path) as process:
        market = MarketAtHome(process, SkyPilotMarket())
        offers = market.offers(["aws"], ["L4"])
        assert {(offer.cell, offer.dollars_per_hour) for offer in offers if offer.use_spot} == {
            ("aws/us-east-1/us-east-1a", 0.31),
            ("aws/us-east-1/us-east-1b", 0.36),
            ("aws/us-east-1/us-east-1c", 0.33),
            ("aws/us-east-1", 0.39),
            ("aws/us-east-1", 1.84),
            ("aws/us-west-2", 0.28),
        }
        in_zone = market.offers(["aws/us-east-1/us-east-1B"], ["L4"])
        assert {(offer.cell, offer.use_spot, offer.dollars_per_hour) for offer in in_zone} >= {
            ("aws/us-east-1/us-east-1b", True, 0.36),
            ("aws/us-east-1/us-east-1b", False, 0.8048),
        }
        with pytest.raises(Refused, match="eu-central-1 is no region of aws"):
            market.offers(["aws/eu-central-1"], ["L4"])


@pytest.mark.server
def test_nobody_without_credentials_is_let_in(home: MarketAtHome) -> None:
    """Over the real SkyPilot, without an account: each cloud is refused with its own reason, within its time."""
    offers = home.offers(["aws/us-east-1", "gcp/us-central1", "azure/eastus"], ["L4", "A10"])
    answers = home.stock(offers)
    assert {stock.answer for stock in answers} == {"refused"}
    assert "AWS credentials are not set" in answers[0].words
    assert all(
        f"sky check {offer.cell.split('/')[0]}" in stock.words for offer, stock in zip(offers, answers, strict=True)
    )


@pytest.mark.server
def test_a_catalogue_of_many_thousand_machines_is_listed_whole(tmp_path: Path) -> None:
    """None of them is left out."""
    seed(tmp_path)
    table = tmp_path / ".sky" / "catalogs" / "v8" / "aws" / "vms.csv"
    rows = [
        f"m{kind}.x,,,{kind},{kind},,{kind},,r{region},z,x86_64\n" for kind in range(1, 201) for region in range(60)
    ]
    table.write_text(table.read_text() + "".join(rows))
    with process_at(tmp_path) as process:
        market = MarketAtHome(process, SkyPilotMarket())
        assert len(market.offers(["aws"], ["CPU"])) > 12_000
