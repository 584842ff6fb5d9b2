"""Where replicas go, what it costs at most, and in which words it is refused."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from blocks.errors import Refused
from blocks.ports.fleet import Replica
from blocks.ports.market import Offer, Stock
from flows.policy.placement.attempts import Attempt, Attempts
from flows.policy.placement.plan import Placement, PlacementRules, check_caps, dollars_per_hour, plan_placement

NOW = 1_800_000_000.0
UNHURRIED = settings(deadline=None)
"""The machine may be busy with something else."""
ANYWHERE = PlacementRules(spot="allowed")


@dataclass(frozen=True)
class Fit:
    fits: bool
    words: str


@dataclass(frozen=True)
class Listed:
    """One line of a market."""

    offer: Offer
    stock: Stock
    fit: Fit = Fit(fits=True, words="16 of 24 GiB")


def stock(
    answer: Literal["free", "none", "unknown", "refused"] = "unknown",
    words: str = "the cloud does not say",
    *,
    confidence: float = 1.0,
    replicas: int | None = None,
    load: float | None = None,
) -> Stock:
    return Stock(answer, NOW, confidence, words, replicas, load)


def listed(cell: str, price: float | None = 1.0, said: Stock | None = None, *, fits: bool = True) -> Listed:
    offer = Offer(cell, "L4", 1, 24, 64, use_spot=False, dollars_per_hour=price)
    return Listed(offer, said or stock(), Fit(fits=fits, words="16 of 24 GiB" if fits else "needs 40 GiB, has 24"))


def replica(cell: str, price: float | None, name: str = "chat-0") -> Replica:
    return Replica(name, "chat", "release", cell, "address:1", dollars_per_hour=price)


def plan(
    market: Sequence[Listed],
    wanted: int = 1,
    rules: PlacementRules = ANYWHERE,
    *,
    attempts: Attempts | None = None,
    said_no: Sequence[Offer] = (),
    standing: Sequence[Replica] = (),
    neighbours: Sequence[Replica] = (),
    service_cap: float | None = None,
    even_where_refused: bool = False,
) -> Placement:
    return plan_placement(
        wanted,
        [one.offer for one in market],
        [one.stock for one in market],
        [one.fit for one in market],
        attempts or Attempts(),
        rules,
        now=NOW,
        said_no=dict.fromkeys(said_no, "no capacity"),
        standing=standing,
        neighbours=neighbours,
        service_cap_dollars_per_hour=service_cap,
        even_where_refused=even_where_refused,
    )


def cells(placement: Placement) -> list[str]:
    return [offer.cell for offer in placement.placed]


def why(placement: Placement, cell: str) -> str:
    return next(one.why for one in placement.considered if one.offer.cell == cell)


# --- Properties -----------------------------------------------------------------------------------------------------

CELLS = (
    "aws/us-east-1/us-east-1a",
    "aws/us-east-1/us-east-1b",
    "gcp/us-central1",
    "azure/eastus",
    "slurm/alpha",
    "k8s/x",
)
OFFERS = st.builds(
    Offer,
    st.sampled_from(CELLS),
    st.sampled_from(["L4", "A100-80GB"]),
    st.sampled_from([1, 2, 8]),
    st.just(24.0),
    st.none(),
    use_spot=st.booleans(),
    dollars_per_hour=st.one_of(st.none(), st.floats(0.05, 40)),
    instance=st.sampled_from([None, "small", "large"]),
)
STOCKS = st.builds(
    Stock,
    st.sampled_from(["free", "none", "unknown", "refused"]),
    st.floats(NOW - 86400, NOW),
    st.floats(0, 1),
    st.just("so it is said"),
    st.one_of(st.none(), st.integers(0, 4)),
    st.one_of(st.none(), st.floats(0, 1)),
)
FITS = st.sampled_from([Fit(fits=True, words="fits"), Fit(fits=True, words="fits"), Fit(fits=False, words="too small")])
MARKETS = st.lists(st.builds(Listed, OFFERS, STOCKS, FITS), min_size=1, max_size=12, unique_by=lambda one: one.offer)
ONE_KIND_A_CELL = st.lists(
    st.builds(Listed, OFFERS, STOCKS, FITS), max_size=12, unique_by=lambda one: (one.offer.cell, one.offer.accelerator)
)
CAPS = st.one_of(st.none(), st.floats(0.1, 120))
RULES = st.builds(
    PlacementRules,
    spot=st.sampled_from(["never", "allowed", "only"]),
    spread=st.booleans(),
    max_dollars_per_hour=CAPS,
    hours=st.floats(0.5, 500),
    dollars_per_hour_waited=st.floats(0, 20),
    dollars_per_load=st.floats(0, 2),
)
REPLICAS = st.lists(st.builds(replica, st.sampled_from(CELLS), st.floats(0.05, 10)), max_size=3)
PASTS = st.lists(
    st.builds(
        Attempt,
        cell=st.sampled_from(CELLS),
        accelerator=st.sampled_from(["L4", "A100-80GB"]),
        accelerators=st.sampled_from([1, 2, 8]),
        use_spot=st.booleans(),
        at=st.floats(NOW - 1e6, NOW),
        seconds=st.floats(1, 2000),
        said_no=st.sampled_from([None, "full"]),
    ),
    max_size=8,
).map(lambda attempts: Attempts(attempts=tuple(attempts)))


@UNHURRIED
@given(MARKETS, st.integers(1, 5), RULES, CAPS, REPLICAS, REPLICAS, PASTS, st.data())
def test_no_plan_breaks_a_rule(
    market: list[Listed],
    wanted: int,
    rules: PlacementRules,
    service_cap: float | None,
    standing: list[Replica],
    neighbours: list[Replica],
    past: Attempts,
    data: st.DataObject,
) -> None:
    """Never over a cap, never an unfit machine, one without a price, refused or that said no; spread where asked."""
    said_no = data.draw(st.sets(st.sampled_from([one.offer for one in market])))
    try:
        placement = plan(
            market, wanted, rules, attempts=past, said_no=tuple(said_no), standing=standing, neighbours=neighbours,
            service_cap=service_cap,
        )  # fmt: skip
    except Refused as error:
        assert "$/hour" in str(error) or "spread" in str(error) or "nothing can be rented" in str(error)  # noqa: PT017 - either answer will do
        return
    assert len(placement.placed) == wanted
    fleet = sum(offer.dollars_per_hour or 0 for offer in placement.placed) + (dollars_per_hour(standing) or 0)
    assert placement.dollars_per_hour == pytest.approx(fleet)
    assert fleet <= (rules.max_dollars_per_hour or fleet) + 1e-6
    assert fleet + (dollars_per_hour(neighbours) or 0) <= (service_cap or 1e9) + 1e-6
    by_offer = {one.offer: one for one in market}
    for offer in placement.placed:
        assert by_offer[offer].fit.fits
        assert by_offer[offer].stock.answer != "refused"
        assert offer.dollars_per_hour is not None
        assert offer not in said_no
        assert offer.use_spot is {"never": False, "only": True}.get(rules.spot, offer.use_spot)
    if rules.spread:
        domains = {offer.domain for offer in placement.placed} | {"/".join(one.cell.split("/")[:2]) for one in standing}
        assert len(domains) > 1
    assert Counter(placement.placed) == {one.offer: one.taken for one in placement.considered if one.taken}
    assert {one.offer for one in placement.considered} == set(by_offer)
    assert all(one.why for one in placement.considered)


@UNHURRIED
@given(MARKETS, st.integers(1, 4), RULES, PASTS, st.randoms(use_true_random=False))
def test_the_order_of_the_offers_does_not_matter(
    market: list[Listed], wanted: int, rules: PlacementRules, past: Attempts, random: Random
) -> None:
    """The same facts give the same plan, or the same refusal."""
    shuffled = list(market)
    random.shuffle(shuffled)
    answers = []
    for facts in (market, shuffled):
        try:
            answers.append(plan(facts, wanted, rules, attempts=past))
        except Refused as error:
            answers.append(str(error))
    assert answers[0] == answers[1]


@UNHURRIED
@given(MARKETS, st.integers(1, 4), RULES, PASTS, st.floats(0.01, 0.99), st.data())
def test_a_cheaper_twin_never_loses(
    market: list[Listed], wanted: int, rules: PlacementRules, past: Attempts, share: float, data: st.DataObject
) -> None:
    """Of two offers that differ by their price alone, the dearer one is taken only where the other is as well."""
    dear = data.draw(st.sampled_from(market))
    assume(dear.offer.dollars_per_hour is not None)
    cheap = replace(
        dear,
        offer=replace(dear.offer, dollars_per_hour=(dear.offer.dollars_per_hour or 0) * share, instance="twin"),
    )
    try:
        placement = plan([*market, cheap], wanted, rules, attempts=past)
    except Refused:
        return
    order = [one.offer for one in placement.considered]
    assert order.index(cheap.offer) < order.index(dear.offer)
    assert dear.offer not in placement.placed or cheap.offer in placement.placed


@UNHURRIED
@given(
    price=st.floats(0, 40),
    use_spot=st.booleans(),
    confidence=st.floats(0, 1),
    age=st.floats(0, 86400),
    rules=RULES,
    names=st.permutations(["a", "b"]),
)
def test_unknown_never_beats_free_at_the_same_price(
    *, price: float, use_spot: bool, confidence: float, age: float, rules: PlacementRules, names: list[str]
) -> None:
    """However little that free is worth, and whatever the cells are called."""
    assume(rules.max_dollars_per_hour is None or rules.max_dollars_per_hour > price)
    free, unknown = (
        Offer(f"slurm/{name}", "L4", 1, 24, None, use_spot=use_spot, dollars_per_hour=price) for name in names
    )
    facts = [
        Listed(unknown, Stock("unknown", NOW, 0, "nobody knows")),
        Listed(free, Stock("free", NOW - age, confidence, "free")),
    ]
    assert plan(facts, 1, rules.model_copy(update={"spot": "allowed", "spread": False})).placed == (free,)


@UNHURRIED
@given(MARKETS, PASTS, st.data())
def test_a_no_never_moves_an_offer_up(market: list[Listed], past: Attempts, data: st.DataObject) -> None:
    """One more refused launch, and the offer ranks no better than before among those that it says nothing about."""
    one = data.draw(st.sampled_from(market)).offer
    no = Attempt(
        cell=one.cell, accelerator=one.accelerator, accelerators=one.accelerators, use_spot=one.use_spot,
        at=NOW, seconds=90, said_no="full",
    )  # fmt: skip
    kept = Attempts(attempts=tuple(each for each in past.attempts if each.said_no is None or each.seconds == 90))
    before, after = (plan(market, 0, attempts=memory) for memory in (kept, Attempts(attempts=(*kept.attempts, no))))
    scores = [next(each.score for each in answer.considered if each.offer == one) for answer in (before, after)]
    assert scores[0] <= scores[1] * (1 + 1e-12)


@UNHURRIED
@given(ONE_KIND_A_CELL, st.integers(1, 6), PASTS)
def test_stock_is_not_overdrawn_while_others_have_room(market: list[Listed], wanted: int, past: Attempts) -> None:
    """Where an offer got more replicas than its cell has cards for, every other offer that may be taken is full too."""
    try:
        placement = plan(market, wanted, attempts=past)
    except Refused:
        return
    cards: Counter[tuple[str, str]] = Counter()
    for offer in placement.placed:
        cards[offer.cell, offer.accelerator] += offer.accelerators

    def room(stock: Stock, offer: Offer) -> float:
        if stock.replicas is None:
            return float("inf")
        return stock.replicas * offer.accelerators - cards[offer.cell, offer.accelerator]

    open_to_us = [one for one in placement.considered if one.score != float("inf")]
    if any(one.taken and room(one.stock, one.offer) < 0 for one in open_to_us):
        assert all(room(one.stock, one.offer) < one.offer.accelerators for one in open_to_us)


# --- What it decides ------------------------------------------------------------------------------------------------


def test_replicas_are_divided_by_what_is_in_stock() -> None:
    """Two fit on alpha, the third goes to the next best, though alpha is cheaper; a full cell comes last."""
    market = [
        listed("slurm/alpha", 1.0, stock("free", "sinfo: 2 of 4 L4 are free", replicas=2)),
        listed("aws/us-east-1", 2.0),
        listed("slurm/beta", 0.5, stock("none", "sinfo: 0 of 4 L4 are free", replicas=0)),
    ]
    placement = plan(market, 3)
    assert cells(placement) == ["slurm/alpha", "slurm/alpha", "aws/us-east-1"]
    assert "sinfo: 0 of 4" in why(placement, "slurm/beta")
    assert why(placement, "slurm/alpha").startswith("2 of 3: 1.00 $/hour")


def test_what_is_counted_out_is_still_tried_last() -> None:
    """Nothing that is said of a stock is a veto; without any other cell the full one is asked."""
    full = listed("slurm/beta", 0.5, stock("none", "0 of 4 are free", replicas=0))
    assert cells(plan([full], 2)) == ["slurm/beta", "slurm/beta"]


def test_offers_of_one_cell_share_its_cards() -> None:
    """Four cards are one replica of four or two of two, not both."""
    four = Listed(Offer("k8s/x", "L4", 4, 24, None, use_spot=False, dollars_per_hour=3), stock("free", replicas=1))
    two = Listed(Offer("k8s/x", "L4", 2, 24, None, use_spot=False, dollars_per_hour=4), stock("free", replicas=2))
    assert plan([four, two, listed("aws/a", 5)], 2).placed == (four.offer, listed("aws/a", 5).offer)


def test_a_fleet_is_spread_over_two_domains() -> None:
    """Two zones of one region are one domain; what stands already counts."""
    market = [listed("aws/a/1", 1.0), listed("aws/a/2", 1.0), listed("gcp/b", 3.0)]
    rules = PlacementRules(spread=True)
    assert cells(plan(market, 3, rules)) == ["aws/a/1", "aws/a/1", "gcp/b"]
    assert cells(plan(market, 1, rules, standing=[replica("gcp/b", 3.0)])) == ["aws/a/1"]
    assert cells(plan(market, 1, rules, standing=[replica("aws/a/1", 1.0)])) == ["gcp/b"]


def test_the_candidate_keeps_apart_from_the_live_release_where_that_is_cheap() -> None:
    """Ten percent more is paid for another failure domain, and not twice the price."""
    live = [replica("aws/a", 1.0)]
    apart = plan([listed("aws/a", 1.0), listed("gcp/b", 1.05)], neighbours=live)
    assert cells(apart) == ["gcp/b"]
    assert why(apart, "aws/a").endswith("beside the live release")
    assert cells(plan([listed("aws/a", 1.0), listed("gcp/b", 2.0)], neighbours=live)) == ["aws/a"]


def test_a_cap_takes_the_cheaper_where_the_better_would_break_it() -> None:
    """The second replica still has to fit."""
    market = [listed("slurm/alpha", 1.0, stock("none")), listed("aws/a", 2.0)]
    assert cells(plan(market, 2, PlacementRules(max_dollars_per_hour=4.0))) == ["aws/a", "aws/a"]
    tight = plan(market, 2, PlacementRules(max_dollars_per_hour=3.0))
    assert cells(tight) == ["aws/a", "slurm/alpha"]


def test_latency_and_load_weigh_as_much_as_the_caller_says() -> None:
    """By the longest name that fits; with no weight they count for nothing."""
    near = listed("aws/eu-west-1", 1.2, stock("free", load=0.9))
    far = listed("aws/us-east-1", 1.0, stock("free", load=0.1))
    latency = {"aws": 150.0, "aws/eu-west-1": 20.0}
    assert cells(plan([near, far])) == ["aws/us-east-1"]
    by_latency = PlacementRules(latency_ms=latency, dollars_per_100_ms=0.5)
    assert cells(plan([near, far], rules=by_latency)) == ["aws/eu-west-1"]
    both = PlacementRules(latency_ms=latency, dollars_per_100_ms=0.5, dollars_per_load=2)
    assert cells(plan([near, far], rules=both)) == ["aws/us-east-1"]


def test_a_cell_without_a_latency_counts_as_the_slowest() -> None:
    """Silence is no advantage."""
    rules = PlacementRules(latency_ms={"aws/a": 100}, dollars_per_100_ms=5)
    assert cells(plan([listed("aws/a", 1.0), listed("gcp/b", 1.1)], rules=rules)) == ["aws/a"]


def test_a_cell_that_does_not_tell_its_load_counts_as_full() -> None:
    """Silence is no advantage here either."""
    rules = PlacementRules(dollars_per_load=2)
    market = [listed("aws/a", 1.0), listed("gcp/b", 1.1, stock(load=0.5))]
    assert cells(plan(market, rules=rules)) == ["gcp/b"]


def test_spot_has_to_pay_for_the_starts_that_its_losses_cost() -> None:
    """At nearly the same price the machine that stays is taken, at half of it the one that may go."""
    stays = listed("aws/a", 1.0)
    barely, half = (
        replace(stays, offer=replace(stays.offer, use_spot=True, dollars_per_hour=price)) for price in (0.97, 0.5)
    )
    assert plan([stays, barely]).placed == (stays.offer,)
    assert plan([stays, half]).placed == (half.offer,)


def test_waiting_is_worth_what_the_caller_says() -> None:
    """The cheaper one, likely out of stock, is tried first only by who can wait."""
    market = [listed("gcp/b", 1.0, stock("none", confidence=0.8)), listed("aws/a", 1.1, stock("free"))]
    assert cells(plan(market)) == ["gcp/b"]
    assert cells(plan(market, rules=PlacementRules(dollars_per_hour_waited=50))) == ["aws/a"]


def test_nothing_wanted_is_nothing_placed() -> None:
    """The table is drawn all the same, without a refusal."""
    placement = plan([listed("aws/a"), listed("gcp/b", None)], 0)
    assert placement.placed == ()
    assert placement.considered[0].why == "no replica is wanted"


def test_a_look_without_an_account_plans_where_nothing_may_be_rented() -> None:
    """The stock says refused; who only looks sees the plan."""
    market = [listed("aws/a", 1.0, stock("refused", "no credentials for AWS"))]
    with pytest.raises(Refused, match="no credentials for AWS"):
        plan(market)
    assert cells(plan(market, even_where_refused=True)) == ["aws/a"]


# --- How it refuses -------------------------------------------------------------------------------------------------


def test_each_reason_is_named_when_nothing_can_be_rented() -> None:
    """Too small, refused, no price, said no, not allowed: each group with its offers."""
    market = [
        listed("aws/a", fits=False),
        listed("azure/c", 1.0, stock("refused", "the key is refused; run az login")),
        listed("slurm/alpha", None),
        listed("gcp/b"),
        listed("k8s/x"),
    ]
    rules = PlacementRules(cells=("aws", "azure", "slurm/alpha", "gcp"))
    with pytest.raises(Refused) as refused:
        plan(market, rules=rules, said_no=[market[3].offer])
    for words in (
        "L4:1 in aws/a: needs 40 GiB, has 24",
        "L4:1 in azure/c: the key is refused; run az login",
        "L4:1 in slurm/alpha: nobody has named a price; name one in the rate card",
        "L4:1 in gcp/b: said no: no capacity",
        "L4:1 in k8s/x: not one of the cells that the plan allows",
    ):
        assert words in str(refused.value)


def test_a_node_without_two_is_not_asked_for_four() -> None:
    """A no of a cluster holds for more of the same; for fewer, and among machines that are named, each has its own."""
    two = replace(listed("slurm/alpha").offer, accelerators=2)
    for no, offer, is_asked in (
        (two, replace(two, accelerators=4, dollars_per_hour=2.0), False),
        (two, replace(two, accelerators=1), True),
        (two, replace(two, accelerators=4, accelerator="A100"), True),
        (replace(two, instance="g6.12xlarge"), replace(two, accelerators=4, instance="g6.48xlarge"), True),
    ):
        market = [Listed(each, stock(), Fit(fits=True, words="fits")) for each in (no, offer)]
        if is_asked:
            assert plan(market, said_no=[no]).placed == (offer,)
        else:
            with pytest.raises(Refused, match="said no"):
                plan(market, said_no=[no])


def test_many_offers_are_named_in_short() -> None:
    """Ten thousand unfit offers do not make a message of ten thousand names."""
    with pytest.raises(Refused, match=r"and 196 more: needs 40 GiB") as refused:
        plan([listed(f"aws/{number}", fits=False) for number in range(200)])
    assert len(str(refused.value)) < 500


def test_a_cap_below_the_cheapest_offer_is_refused_with_both_figures() -> None:
    """So is the service's, with what of it is spent."""
    market = [listed("aws/a", 2.0), listed("gcp/b", 3.0)]
    with pytest.raises(Refused, match=r"fleet's cap of 1\.00 \$/hour is below.*L4:1 in aws/a costs 2\.00"):
        plan(market, rules=PlacementRules(max_dollars_per_hour=1))
    with pytest.raises(Refused, match=r"service's cap of 5\.00 \$/hour, of which 4\.00 are spent, is below"):
        plan(market, neighbours=[replica("aws/a", 4.0)], service_cap=5)


def test_a_cap_for_fewer_than_wanted_says_for_how_many() -> None:
    """Nothing is started where the fleet would stay incomplete."""
    with pytest.raises(Refused, match=r"3 replicas cost at least 6\.00 \$/hour.*leaves 5\.00.*enough for 2"):
        plan([listed("aws/a", 2.0)], 3, PlacementRules(max_dollars_per_hour=5))


def test_a_spread_that_cannot_be_had_is_refused() -> None:
    """With one domain, with one replica, and with a second domain that is too dear."""
    one_domain = [listed("aws/a/1"), listed("aws/a/2")]
    with pytest.raises(Refused, match="cannot be spread: all that can be rented is in aws/a"):
        plan(one_domain, 2, PlacementRules(spread=True))
    with pytest.raises(Refused, match="single replica cannot be spread"):
        plan([listed("aws/a"), listed("gcp/b")], 1, PlacementRules(spread=True))
    with pytest.raises(Refused, match=r"2 replicas cost at least 10\.00"):
        plan([listed("aws/a", 1), listed("gcp/b", 9)], 2, PlacementRules(spread=True, max_dollars_per_hour=5))


def test_caps_are_checked_again_after_the_launch() -> None:
    """What really runs may cost more than was planned; a price that nobody knows keeps no cap."""
    rules = PlacementRules(max_dollars_per_hour=3)
    fleet = [replica("aws/a", 1.5), replica("aws/a", 1.5, "chat-1")]
    check_caps(fleet, [], rules, None)
    with pytest.raises(Refused, match=r"costs 1\.00 \$/hour more than the service's cap of 4\.00"):
        check_caps(fleet, [replica("gcp/b", 2.0, "old-0")], rules, 4.0)
    with pytest.raises(Refused, match="nobody knows what chat-2 costs"):
        check_caps([replica("aws/a", None, "chat-2")], [], rules, None)
    check_caps([replica("aws/a", None, "chat-2")], [], PlacementRules(), None)


def test_the_bill_is_the_sum_where_all_prices_are_known() -> None:
    """One unknown price makes it unknown."""
    assert dollars_per_hour([replica("a", 1.5), replica("a", 2.0)]) == 3.5
    assert dollars_per_hour([replica("a", 1.5), replica("a", None)]) is None
    assert dollars_per_hour([]) == 0
