"""Who gets a fleet sooner and cheaper? `python -m benchmarks.placement` plays policies over synthetic markets.

SkyPilot's own order, the cheapest first, ours, and an oracle that knows the future; see `benchmarks.markets` for where
the markets have their shapes from.

Each release wants some replicas for a day. A launch that finds nothing in stock costs the time of the answer; a spot
replica is lost when its zone runs out, and is launched anew. A replica is paid from launch to end, also while it
starts and while it waits for the rest of its fleet; it serves from when the fleet was first complete. For each hour
in which one of the wanted replicas does not serve, an outside provider is paid, at about three times the price of
spot or one and a half times that of on demand.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf
from pathlib import Path
from statistics import fmean, geometric_mean
from time import process_time
from typing import Annotated, Protocol

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.markets import STEP, Lot, World, worlds
from blocks.errors import Refused
from blocks.ports.market import Offer, Stock
from flows.policy.placement.attempts import Attempt, Attempts, note
from flows.policy.placement.plan import PlacementRules, plan_placement

HOUR = 3600.0
WANTED = 4
RUNS_HOURS = 24.0
BETWEEN_RELEASES_HOURS = 31.0
"""Longer than a release, and no whole number of days."""
RETRY_GAP_SECONDS = 30.0
"""Where all have said no: `_RETRY_UNTIL_UP_INIT_GAP_SECONDS` of SkyPilot 0.14, for everybody alike."""
RANKED = 10_000
RIVALS = ("SkyPilot's order", "cheapest first")
OURS, ORACLE = "ours", "oracle"
LEVEL = 0.001
"""Figures that differ by less are level."""


@dataclass(frozen=True)
class Running:
    lot: Lot
    since: float
    ends: float

    @property
    def ready(self) -> float:
        return self.since + self.lot.start_seconds


class Policy(Protocol):
    """Chooses a lot for each replica that is missing; None: all have said no."""

    def choose(
        self, missing: Sequence[int], now: float, running: Sequence[Running], ends: float
    ) -> list[Lot | None]: ...
    def heard(self, replica: int, lot: Lot, now: float, *, is_no: bool) -> None: ...
    def begin(self, replica: int) -> None:
        """What was heard so far in this run counts no more."""
        ...


@dataclass
class SkyPilotOrder:
    """The cheapest by the catalogue; each replica's launch has its own block list (`RetryingVmProvisioner`).

    Own clusters come first, for SkyPilot takes them to cost nothing. Launches do not learn from one another.
    """

    world: World
    blocked: dict[int, set[Offer]] = field(default_factory=dict)

    def choose(self, missing: Sequence[int], now: float, running: Sequence[Running], ends: float) -> list[Lot | None]:
        lots = sorted(self.world.lots, key=lambda lot: lot.catalogue_price)
        return [
            next((lot for lot in lots if lot.offer not in self.blocked.get(replica, ())), None) for replica in missing
        ]

    def heard(self, replica: int, lot: Lot, now: float, *, is_no: bool) -> None:
        if is_no:
            self.blocked.setdefault(replica, set()).add(lot.offer)

    def begin(self, replica: int) -> None:
        self.blocked.pop(replica, None)


@dataclass
class CheapestFirst(SkyPilotOrder):
    """The cheapest by what is really paid; a no to one replica counts for all of this run."""

    def choose(self, missing: Sequence[int], now: float, running: Sequence[Running], ends: float) -> list[Lot | None]:
        blocked = set().union(*self.blocked.values())
        lots = sorted(self.world.lots, key=lambda lot: lot.offer.dollars_per_hour or 0.0)
        return [next((lot for lot in lots if lot.offer not in blocked), None)] * len(missing)

    def begin(self, replica: int) -> None:
        self.blocked.clear()


@dataclass
class Ours:
    """`plan_placement`, with what past launches said; with `asks`, also with what the cells say of their stock."""

    world: World
    asks: bool
    attempts: Attempts = field(default_factory=Attempts)
    said_no: dict[Offer, str] = field(default_factory=dict)

    @property
    def rules(self) -> PlacementRules:
        return PlacementRules(spot="allowed", hours=RUNS_HOURS, dollars_per_hour_waited=self.world.outside)

    def choose(self, missing: Sequence[int], now: float, running: Sequence[Running], ends: float) -> list[Lot | None]:
        lots = self.world.lots
        stock = [lot.said(int(now // STEP)) if self.asks else Stock("unknown", now, 0.0, "not asked") for lot in lots]
        try:
            plan = plan_placement(
                len(missing), [lot.offer for lot in lots], stock, [FITS] * len(lots), self.attempts, self.rules,
                now=now, said_no=self.said_no,
            )  # fmt: skip
        except Refused:
            return [None] * len(missing)
        by_offer = {lot.offer: lot for lot in lots}
        return [by_offer[offer] for offer in plan.placed]

    def heard(self, replica: int, lot: Lot, now: float, *, is_no: bool) -> None:
        offer = lot.offer
        self.attempts = note(
            self.attempts,
            Attempt(
                cell=offer.cell, accelerator=offer.accelerator, accelerators=offer.accelerators,
                use_spot=offer.use_spot, at=now, seconds=lot.answer_seconds if is_no else lot.start_seconds,
                said_no="no capacity" if is_no else None,
            ),
        )  # fmt: skip
        if is_no:
            self.said_no[offer] = "no capacity"

    def begin(self, replica: int) -> None:
        self.said_no.clear()


@dataclass
class Oracle:
    """Knows the whole trace, and has for each step the cheapest way to the end of the release, by going backwards.

    It plans one replica at a time and moves as the others may: a machine is kept until it is taken away.
    """

    world: World
    _to_end: dict[float, dict[int, float]] = field(default_factory=dict)

    def choose(self, missing: Sequence[int], now: float, running: Sequence[Running], ends: float) -> list[Lot | None]:
        if ends not in self._to_end:
            self._to_end[ends] = self._ways(int(now // STEP), ends)
        used = Counter(id(one.lot) for one in running)
        chosen: list[Lot | None] = []
        for _ in missing:
            free = [lot for lot in self.world.lots if lot.free_at(now) > used[id(lot)]]
            best = min(free, key=lambda lot: self._cost(lot, now, ends, self._to_end[ends]), default=None)
            chosen.append(best)
            used[id(best)] += 1
        return chosen

    def _ways(self, first: int, ends: float) -> dict[int, float]:
        """What the rest of the release costs at least, from each step at which nothing runs."""
        last = int(ends // STEP)
        costs = {last: 0.0}
        for step in range(last - 1, first - 1, -1):
            now = step * STEP
            ways = [self._cost(lot, now, ends, costs) for lot in self.world.lots if lot.free_at(now)]
            costs[step] = min([*ways, costs[step + 1] + self.world.outside * STEP / HOUR])
        return costs

    def _cost(self, lot: Lot, now: float, ends: float, costs: Mapping[int, float]) -> float:
        until = min(lot.taken_away_at(now), ends)
        waits = min(lot.start_seconds, until - now)
        dollars = (lot.offer.dollars_per_hour or 0.0) * (until - now) + self.world.outside * waits
        return dollars / HOUR + costs[int(until // STEP)]

    def heard(self, replica: int, lot: Lot, now: float, *, is_no: bool) -> None: ...
    def begin(self, replica: int) -> None: ...


@dataclass(frozen=True)
class Fits:
    fits: bool
    words: str


FITS = Fits(fits=True, words="fits")


@dataclass(frozen=True)
class Outcome:
    """What came of one release."""

    dollars: float
    served_hours: float
    hours_to_fleet: float
    failed_tries: int


@dataclass(frozen=True)
class Game:
    """All releases of one market under one policy."""

    world: str
    market: int
    policy: str
    dollars_per_replica_hour: float
    served_percent: float
    minutes_to_fleet: float
    failed_tries: float


@dataclass(frozen=True)
class Row:
    """All games of a world, or of all worlds, under one policy; ratios by their geometric mean."""

    world: str
    policy: str
    dollars_per_replica_hour: float
    cost_to_oracle: float
    served_percent: float
    minutes_to_fleet: float
    time_to_oracle: float
    failed_tries: float


def play(policy: Policy, world: World, begins: float) -> Outcome:
    """One release: get the fleet, keep it for its hours, replace what is taken away."""
    ends = begins + RUNS_HOURS * HOUR
    now, complete, failed = begins, inf, 0
    running: dict[int, Running] = {}
    past: list[Running] = []
    for replica in range(WANTED):
        policy.begin(replica)
    while now < ends:
        for replica, one in list(running.items()):
            if one.ends <= now:
                past.append(running.pop(replica))
                policy.begin(replica)
        missing = [replica for replica in range(WANTED) if replica not in running]
        if not missing:
            all_ready = max(one.ready for one in running.values())
            next_loss = min(one.ends for one in running.values())
            complete = min(complete, all_ready) if all_ready < next_loss else complete
            now = min(next_loss, ends)
            continue
        waits = 0.0
        for replica, lot in zip(missing, policy.choose(missing, now, list(running.values()), ends), strict=True):
            if lot is None:
                policy.begin(replica)
                waits = max(waits, RETRY_GAP_SECONDS)
                continue
            is_no = lot.free_at(now) <= sum(one.lot is lot for one in running.values())
            policy.heard(replica, lot, now, is_no=is_no)
            if is_no:
                failed += 1
                waits = max(waits, lot.answer_seconds)
            else:
                running[replica] = Running(lot, now, lot.taken_away_at(now))
        now += waits
    everything = [replace(one, ends=min(one.ends, ends)) for one in (*past, *running.values())]
    dollars = sum((one.ends - one.since) / HOUR * (one.lot.offer.dollars_per_hour or 0.0) for one in everything)
    served = sum(max(0.0, one.ends - max(one.ready, complete)) for one in everything) / HOUR
    dollars += world.outside * (WANTED * RUNS_HOURS - served)
    return Outcome(dollars, served, (min(complete, ends) - begins) / HOUR, failed)


def measure(world: World, market: int, releases: int) -> list[Game]:
    """Each policy plays the same market, and remembers from release to release."""
    policies: dict[str, Policy] = {
        RIVALS[0]: SkyPilotOrder(world),
        RIVALS[1]: CheapestFirst(world),
        "ours, stock unknown": Ours(world, asks=False),
        OURS: Ours(world, asks=True),
        ORACLE: Oracle(world),
    }
    games: list[Game] = []
    for name, policy in policies.items():
        outcomes = [play(policy, world, release * BETWEEN_RELEASES_HOURS * HOUR) for release in range(releases)]
        games.append(
            Game(
                world=world.name,
                market=market,
                policy=name,
                dollars_per_replica_hour=fmean(one.dollars for one in outcomes) / (WANTED * RUNS_HOURS),
                served_percent=100 * fmean(one.served_hours for one in outcomes) / (WANTED * RUNS_HOURS),
                minutes_to_fleet=60 * fmean(one.hours_to_fleet for one in outcomes),
                failed_tries=fmean(one.failed_tries for one in outcomes),
            )
        )
    return games


def ratios(games: Sequence[Game], policy: str, to: str, figure: str) -> list[float]:
    """The policy's figure through the other's, market by market."""
    others = {(one.world, one.market): getattr(one, figure) for one in games if one.policy == to}
    return [getattr(one, figure) / others[one.world, one.market] for one in games if one.policy == policy]


def rows(games: Sequence[Game], name: str) -> list[Row]:
    """A row a policy."""
    result: list[Row] = []
    for policy in dict.fromkeys(one.policy for one in games):
        mine = [one for one in games if one.policy == policy]
        cost, time = (
            geometric_mean(ratios(games, policy, ORACLE, figure))
            for figure in ("dollars_per_replica_hour", "minutes_to_fleet")
        )
        result.append(
            Row(
                world=name,
                policy=policy,
                dollars_per_replica_hour=fmean(one.dollars_per_replica_hour for one in mine),
                cost_to_oracle=cost,
                served_percent=fmean(one.served_percent for one in mine),
                minutes_to_fleet=fmean(one.minutes_to_fleet for one in mine),
                time_to_oracle=time,
                failed_tries=fmean(one.failed_tries for one in mine),
            )
        )
    return result


def wins(games: Sequence[Game], rival: str, figure: str) -> tuple[int, int, int]:
    """In how many markets ours is ahead of the rival, level with it, and behind."""
    ours = ratios(games, OURS, rival, figure)
    ahead, behind = sum(one < 1 - LEVEL for one in ours), sum(one > 1 + LEVEL for one in ours)
    return ahead, len(ours) - ahead - behind, behind


def rank_cpu_seconds(seed: int) -> float:
    """The CPU time of one plan over 10,000 offers."""
    some = [lot for world in worlds(seed, 1) for lot in world.lots]
    offers = [
        replace(
            some[number % len(some)].offer,
            instance=f"machine-{number}",
            cell=f"{some[number % len(some)].offer.cell}{number // 500}",
        )
        for number in range(RANKED)
    ]
    stock = [some[number % len(some)].said(0) for number in range(RANKED)]
    attempts = Attempts(
        attempts=tuple(
            Attempt(
                cell=offer.cell, accelerator=offer.accelerator, accelerators=offer.accelerators,
                use_spot=offer.use_spot, at=float(at), seconds=60, said_no="no" if at % 3 else None,
            )
            for at, offer in enumerate(offers[:1000])
        )
    )  # fmt: skip
    begun = process_time()
    plan_placement(WANTED, offers, stock, [FITS] * RANKED, attempts, PlacementRules(spot="allowed"), now=1000.0)
    return process_time() - begun


def table(all_rows: Sequence[Row]) -> Table:
    result = Table("world", "policy", title="Getting a fleet, and keeping it for a day")
    for column in ("$/replica-hour", "÷ oracle", "served %", "minutes to fleet", "÷ oracle", "failed tries"):
        result.add_column(column, justify="right")
    for before, row in zip([None, *all_rows], all_rows, strict=False):
        begins = before is None or before.world != row.world
        if begins:
            result.add_section()
        result.add_row(
            row.world if begins else "",
            row.policy,
            f"{row.dollars_per_replica_hour:.3f}",
            f"{row.cost_to_oracle:.3f}",
            f"{row.served_percent:.1f}",
            f"{row.minutes_to_fleet:.1f}",
            f"{row.time_to_oracle:.2f}",
            f"{row.failed_tries:.1f}",
        )
    return result


app = typer.Typer()


@app.command()
def main(
    seed: Annotated[int, typer.Option(help="Of the first market; the next ones have the next numbers.")] = 1,
    markets: Annotated[int, typer.Option(min=1, help="How many markets of each world are played.")] = 6,
    releases: Annotated[int, typer.Option(min=1, help="How many releases each policy plays in each market.")] = 12,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there as well.")] = None,
) -> None:
    """Play the policies and print what came of it."""
    days = ((releases - 1) * BETWEEN_RELEASES_HOURS + RUNS_HOURS) / 24 + 1
    games = [
        game
        for market in range(seed, seed + markets)
        for world in worlds(market, days)
        for game in measure(world, market, releases)
    ]
    names = list(dict.fromkeys(game.world for game in games))
    all_rows = [row for name in names for row in rows([game for game in games if game.world == name], name)]
    all_rows += rows(games, "all")
    console = Console()
    console.print(table(all_rows))
    standings = [
        {
            "rival": rival,
            "figure": figure,
            **dict(zip(("ahead", "level", "behind"), wins(games, rival, figure), strict=True)),
        }
        for rival in RIVALS
        for figure in ("dollars_per_replica_hour", "minutes_to_fleet")
    ]
    for one in standings:
        words = "ours against {rival} in {figure}: ahead in {ahead} markets, level in {level}, behind in {behind}"
        console.print(words.format(**one).replace("_", " "))
    seconds = rank_cpu_seconds(seed)
    console.print(f"{RANKED:,} offers ranked in {seconds:.2f} CPU seconds")
    if json_file is not None:
        report = {
            "seed": seed,
            "markets": markets,
            "releases": releases,
            "rows": [asdict(row) for row in all_rows],
            "games": [asdict(game) for game in games],
            "standings": standings,
            "rank_10000_offers_cpu_seconds": seconds,
        }
        json_file.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    app()
