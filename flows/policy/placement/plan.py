"""Which machine does each replica go to? The cheapest that can be expected to come, within caps that hold."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from blocks.errors import Refused
from blocks.ports.fleet import Replica
from blocks.ports.market import Offer, Stock, domain_of, is_within
from flows.policy.placement.attempts import (
    FIRST_START_SECONDS,
    LOWEST_CHANCE,
    STAY_SECONDS,
    Attempts,
    answer_seconds,
    chance,
    freshness,
    start_seconds,
    usual_chance,
)
from flows.policy.placement.division import Budget, Candidate, Division

ANSWER_SECONDS = 90.0
"""How long a cell is taken to need to say no before one has been measured."""
SURE = 0.9
"""A stock that was counted, and not long ago: where it is none, the cell is asked after all others."""
SHOWN_REASONS = 12
SHOWN_OFFERS = 4
HOUR = 3600.0
NO_PRICE = "nobody has named a price; name one in the rate card"


class PlacementRules(BaseModel):
    """Where a fleet may run, and what matters in choosing; all weights are dollars an hour for one replica."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cells: tuple[str, ...] = Field(
        default=(),
        title="Cells",
        description="Only these cells are used, named whole or in part, such as aws, aws/us-east-1 or slurm/alpha; "
        "an empty list allows every cell that the fleet may use.",
    )
    accelerators: tuple[str, ...] = Field(
        default=(),
        title="Accelerators",
        description="Only these accelerators are used, such as L4 or A100-80GB; an empty list allows each that fits; "
        "CPU stands for none at all.",
    )
    spot: Literal["never", "allowed", "only"] = Field(
        default="never",
        title="Spot machines",
        description="Spot machines are cheaper and can be taken away at any time: never, where they pay off, or only.",
    )
    spread: bool = Field(
        default=False,
        title="Spread",
        description="The fleet stands in at least two failure domains: regions, Kubernetes or Slurm clusters.",
    )
    max_dollars_per_hour: float | None = Field(
        default=None,
        gt=0,
        title="Cap ($/hour)",
        description="The whole fleet never costs more than this an hour; what would is refused before it is started.",
    )
    hours: float = Field(
        default=24.0,
        gt=0,
        title="Runs for (hours)",
        description="The cost of starting is spread over the time that the fleet is expected to run.",
    )
    apart_percent: float = Field(
        default=10.0,
        ge=0,
        title="Apart from the live release (%)",
        description="A failure domain in which the live release runs is avoided where the next best offer elsewhere "
        "scores at most this much higher.",
    )
    dollars_per_hour_waited: float = Field(
        default=0.0,
        ge=0,
        title="An hour's wait is worth ($)",
        description="What it would be worth to have a replica one hour sooner; with 0, waiting only costs its rent.",
    )
    latency_ms: dict[str, float] = Field(
        default={},
        title="Latency by cell (ms)",
        description="The way from the users to the cells, by cell or part of one; the longest name that fits counts, "
        "and a cell without a figure counts as the slowest named.",
    )
    dollars_per_100_ms: float = Field(
        default=0.0,
        ge=0,
        title="100 ms are worth ($/hour)",
        description="What it would be worth, an hour and replica, to be 100 ms nearer to the users.",
    )
    dollars_per_load: float = Field(
        default=0.0,
        ge=0,
        title="An empty cell is worth ($/hour)",
        description="What it would be worth, an hour and replica, to run where none of this kind is in use instead of "
        "where all are; a cell that does not say counts as full.",
    )


class Fits(Protocol):
    """Whether the model fits the machine, with the arithmetic."""

    @property
    def fits(self) -> bool: ...
    @property
    def words(self) -> str: ...


@dataclass(frozen=True)
class Considered:
    """One offer, what is to be expected of it, and why it was taken or not."""

    offer: Offer
    stock: Stock
    chance: float
    """That a launch succeeds now; 0 where it is not even tried."""
    dollars_per_hour: float | None
    """The rent and the expected cost of starting; the rent alone where it is not even tried, None without a price."""
    score: float
    """What the offers are ranked by, in dollars an hour; infinite where it is not even tried."""
    taken: int
    """How many replicas go there."""
    why: str


@dataclass(frozen=True)
class Placement:
    """The plan: where each wanted replica goes, and what was weighed."""

    placed: tuple[Offer, ...]
    """One a replica, in the order of their ranks."""
    considered: tuple[Considered, ...]
    """Every offer, the best first."""
    dollars_per_hour: float
    """Of the fleet: what stands of it already, and what is placed."""


def plan_placement(
    wanted: int,
    offers: Sequence[Offer],
    stock: Sequence[Stock],
    fits: Sequence[Fits],
    attempts: Attempts,
    rules: PlacementRules,
    *,
    now: float,
    said_no: Mapping[Offer, str] | None = None,
    standing: Sequence[Replica] = (),
    neighbours: Sequence[Replica] = (),
    service_cap_dollars_per_hour: float | None = None,
    even_where_refused: bool = False,
) -> Placement:
    """Choose an offer for each of the replicas that are still wanted, and say why.

    `said_no` are offers that did so in this run; `standing` the fleet's replicas that run already; `neighbours` the
    live release's, which count to the service's cap and whose failure domains are avoided where that is cheap.
    `even_where_refused` plans with cells that we may not rent from, as where somebody without an account looks.
    Refused, with each group's reason, where there is no such choice.
    """
    excluded: list[Considered] = []
    candidates: list[Candidate] = []
    neighbour_domains = {domain_of(replica.cell) for replica in neighbours}
    for offer, said, fit in zip(offers, stock, fits, strict=True):
        price = offer.dollars_per_hour
        why = _veto(offer, said, fit, rules, said_no or {}, even_where_refused=even_where_refused)
        if price is None or why:
            excluded.append(Considered(offer, said, 0.0, price, inf, 0, why or NO_PRICE))
        else:
            candidates.append(_weigh(offer, price, said, attempts, rules, neighbour_domains, now))
    candidates.sort(key=lambda candidate: candidate.rank)
    excluded.sort(key=lambda one: (one.dollars_per_hour or inf, str(one.offer), one.offer.instance or ""))
    budget = _budget(standing, neighbours, rules, service_cap_dollars_per_hour)
    considered, placed = excluded, ()
    if candidates:
        division = Division(candidates, budget, {domain_of(one.cell) for one in standing}, spread=rules.spread)
        placed = _divide(division, wanted, excluded) if wanted else ()
        considered = [*_explain(candidates, placed, division.passed_over, neighbour_domains), *excluded]
    elif wanted:
        raise Refused(f"nothing can be rented for this fleet: {_reasons(excluded) or 'no cell offers anything'}")
    return Placement(
        placed=tuple(one.offer for one in placed),
        considered=tuple(considered),
        dollars_per_hour=(dollars_per_hour(standing) or 0.0) + sum(one.price for one in placed),
    )


def dollars_per_hour(replicas: Sequence[Replica]) -> float | None:
    """What they cost together; None where that of one is not known."""
    prices = [replica.dollars_per_hour for replica in replicas if replica.dollars_per_hour is not None]
    return sum(prices) if len(prices) == len(replicas) else None


def check_caps(
    fleet: Sequence[Replica],
    neighbours: Sequence[Replica],
    rules: PlacementRules,
    service_cap_dollars_per_hour: float | None,
) -> None:
    """Refused where what really runs costs more than a cap allows, or where nobody knows what it costs."""
    budget = _budget(fleet, neighbours, rules, service_cap_dollars_per_hour)
    if not budget.allows(0.0):
        over = -budget.dollars_per_hour
        raise Refused(f"what runs costs {over:.2f} $/hour more than {budget.words} allows; stop replicas or raise it")


def _veto(
    offer: Offer,
    stock: Stock,
    fit: Fits,
    rules: PlacementRules,
    said_no: Mapping[Offer, str],
    *,
    even_where_refused: bool,
) -> str:
    """Why the offer is not even tried; empty where it may be."""
    allowed = rules.accelerators
    checks = (
        (
            bool(rules.cells) and not any(is_within(offer.cell, cell) for cell in rules.cells),
            "not one of the cells that the plan allows",
        ),
        (
            bool(allowed) and offer.accelerator.casefold() not in map(str.casefold, allowed),
            "not one of the accelerators that the plan allows",
        ),
        (offer.use_spot and rules.spot == "never", "a spot machine, and the plan allows none"),
        (not offer.use_spot and rules.spot == "only", "no spot machine, and the plan allows no other"),
        (not fit.fits, fit.words),
        *((True, f"said no: {reason}") for no, reason in said_no.items() if _holds_of(no, offer)),
        (stock.answer == "refused" and not even_where_refused, stock.words),
    )
    return next((why for applies, why in checks if applies), "")


def _holds_of(no: Offer, offer: Offer) -> bool:
    """A node that has no four accelerators left has no eight; machines of a public cloud are each in stock or not."""
    is_alike = (no.cell, no.accelerator, no.use_spot) == (offer.cell, offer.accelerator, offer.use_spot)
    return no == offer or (is_alike and offer.instance is None and 0 < no.accelerators <= offer.accelerators)


def _weigh(
    offer: Offer,
    price: float,
    stock: Stock,
    attempts: Attempts,
    rules: PlacementRules,
    neighbour_domains: Collection[str],
    now: float,
) -> Candidate:
    """What is to be expected of the offer, in dollars an hour for one replica.

    Until a replica is there an hour costs its rent, for the rest of the fleet idles, and what waiting is worth: the
    start, and before it the failed tries, 1 / chance - 1 of them. A spot machine is taken away as often as its cell
    runs out of stock, and each time that is paid anew. Spread over `rules.hours` and added to the rent, this is the
    index by which to open boxes of unknown content (Weitzman, "Optimal search for the best alternative", 1979). The
    chance divides the cost of trying and not the rent, which is paid only for what has come: to divide a day's rent by
    it would buy away a minute's wait at any price.
    """
    likely = chance(attempts, offer, now, stock)
    start = start_seconds(attempts, offer, FIRST_START_SECONDS) / HOUR
    answer = answer_seconds(attempts, offer, ANSWER_SECONDS) / HOUR
    hours_until_ready = start + (1 / likely - 1) * answer
    if offer.use_spot:
        usually = max(usual_chance(attempts, offer, now), LOWEST_CHANCE)
        losses = rules.hours * HOUR * (1 - usually) / STAY_SECONDS
        hours_until_ready += losses * (start + (1 / usually - 1) * answer)
    share = hours_until_ready / rules.hours
    expected = price * (1 + share)
    score = expected + rules.dollars_per_hour_waited * share
    score += rules.dollars_per_100_ms * _latency_ms(offer.cell, rules.latency_ms) / 100
    score += rules.dollars_per_load * (1.0 if stock.load is None else stock.load)
    if offer.domain in neighbour_domains:
        score *= 1 + rules.apart_percent / 100
    is_counted_out = stock.answer == "none" and stock.confidence * freshness(stock.at, now) >= SURE
    return Candidate(offer, price, stock, likely, expected, score, is_counted_out)


def _latency_ms(cell: str, latency_ms: Mapping[str, float]) -> float:
    names = [name for name in latency_ms if is_within(cell, name)]
    return latency_ms[max(names, key=len)] if names else max(latency_ms.values(), default=0.0)


def _budget(
    standing: Sequence[Replica],
    neighbours: Sequence[Replica],
    rules: PlacementRules,
    service_cap_dollars_per_hour: float | None,
) -> Budget:
    """The tighter of the two caps, less what is spent."""
    budgets = [Budget(inf, "no cap")]
    for cap, whose, replicas in (
        (rules.max_dollars_per_hour, "the fleet's cap", standing),
        (service_cap_dollars_per_hour, "the service's cap", (*standing, *neighbours)),
    ):
        if cap is None:
            continue
        spent = dollars_per_hour(replicas)
        if spent is None:
            unknown = ", ".join(replica.name for replica in replicas if replica.dollars_per_hour is None)
            raise Refused(
                f"{whose} of {cap:.2f} $/hour cannot be kept: nobody knows what {unknown} costs; "
                f"name its price in the rate card, or lift the cap"
            )
        taken = f", of which {spent:.2f} are spent," if spent else ""
        budgets.append(Budget(cap - spent, f"{whose} of {cap:.2f} $/hour{taken}"))
    return min(budgets, key=lambda budget: budget.dollars_per_hour)


def _divide(division: Division, wanted: int, excluded: Sequence[Considered]) -> tuple[Candidate, ...]:
    try:
        division.check(wanted)
    except Refused as error:
        raise Refused(f"{error}; not considered: {_reasons(excluded)}" if excluded else str(error)) from error
    return division.place(wanted)


def _explain(
    candidates: Sequence[Candidate],
    placed: Sequence[Candidate],
    passed_over: Mapping[Offer, str],
    neighbour_domains: Collection[str],
) -> Iterator[Considered]:
    """Why each was taken or not, in words, with the numbers that decided."""
    taken = Counter(one.offer for one in placed)
    last = max((one.score for one in placed), default=0.0)
    for one in candidates:
        if count := taken[one.offer]:
            starting = one.expected - one.price
            why = f"{one.price:.2f} $/hour and {starting:.2f} for starting, chance {one.chance:.0%}; {one.stock.words}"
            why = f"{count} of {len(placed)}: {why}"
        elif not placed:
            why = "no replica is wanted"
        elif one.offer in passed_over:
            why = passed_over[one.offer]
        elif one.is_counted_out:
            why = f"asked after all others: {one.stock.words}"
        else:
            beside = ", beside the live release" if one.offer.domain in neighbour_domains else ""
            why = f"{one.score - last:.2f} $/hour behind: {one.price:.2f} $/hour, chance {one.chance:.0%}{beside}"
        yield Considered(one.offer, one.stock, one.chance, one.expected, one.score, count, why)


def _reasons(excluded: Sequence[Considered]) -> str:
    """Why each group of offers is not tried; the groups in their order, shortened where there are many."""
    groups: dict[str, list[str]] = defaultdict(list)
    for one in excluded:
        groups[one.why].append(str(one.offer))
    lines = [f"{_names(offers)}: {why}" for why, offers in groups.items()]
    more = [f"and {len(lines) - SHOWN_REASONS} more reasons"] if len(lines) > SHOWN_REASONS else []
    return "; ".join((*lines[:SHOWN_REASONS], *more))


def _names(offers: Sequence[str]) -> str:
    more = f" and {len(offers) - SHOWN_OFFERS} more" if len(offers) > SHOWN_OFFERS else ""
    return ", ".join(offers[:SHOWN_OFFERS]) + more
